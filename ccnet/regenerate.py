"""Documents again from minified metadata: a crawl file and the metadata of its documents in, the documents out.

What comes out is what `ccnet.filter` wrote when the metadata were made, without keys, marks or models; only the perplexities
of paragraphs are not there. A page that is not in the crawl any more, or has other lines, is left out and counted.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from ccnet.corpus import write_documents
from ccnet.crawl import Source
from ccnet.filter import domain
from ccnet.minified import page_number, read_minified, text_number, unpack_lines
from ccnet.schema import SCORED
from ccnet.stats import Tally, by_language
from ccnet.wet import read_pages


def regenerate_segment(source: str | Source, minified: Path, target: Path) -> dict[str, Any]:
    """Writes to `target` the documents that `minified` was made of.

    Args: source: the crawl file; minified: of this segment.
    Returns: the counts of `filter_segment`; under `bad` also `page_missing` (the file has no page with this digest) and
    `page_changed` (it has, with other lines): documents that are left out.
    Raises: ValueError for a file that is no metadata. Memory: the text of the segment.
    """
    tally = Tally()
    wanted: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for number, row in enumerate(read_minified(minified).to_pylist()):
        wanted.setdefault(row["page"], []).append((number, row))
    seen = set()
    documents: list[tuple[int, dict[str, Any]]] = []
    for batch in read_pages(source, tally.read, min_length=1):
        for page in batch.to_pylist():
            rows = wanted.get(of_page := page_number(page["digest"]))
            if not rows:
                continue
            seen.add(of_page)
            lines = page["raw_content"].split("\n")
            for candidate in rows:  # several where the headers of different pages have the same digest
                number, row = candidate
                line_ids = list(unpack_lines(row["lines"], len(lines)))
                text = "\n".join([lines[line] for line in line_ids])
                if text_number(text) == row["text"]:
                    rows.remove(candidate)
                    break
            else:
                continue
            content = {"raw_content": text, "length": len(text), "nlines": len(line_ids), "line_ids": line_ids}
            scores = {name: row[name] for name in ("language", "language_score", "perplexity")}
            documents.append((number, page | content | scores | {"source_domain": domain(page["url"])}))
    for of_page, rows in wanted.items():
        tally.read["bad_page_changed"] += len(rows) * (of_page in seen)
        tally.read["bad_page_missing"] += len(rows) * (of_page not in seen)
    table = pa.Table.from_pylist([document for _, document in sorted(documents, key=lambda pair: pair[0])], SCORED)
    write_documents(table, target)
    tally.add("in", len(table), sum(table.column("length").to_pylist()), sum(table.column("nlines").to_pylist()))
    tally.keep(table)
    return tally.statistics() | by_language(table)
