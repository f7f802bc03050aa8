"""One segment through the filters: pages and their keep marks in, documents with scores out (a Parquet file).

`surviving_documents` is the part that the training of language models shares: pages read again, duplicated lines taken
out, language identified. `filter_segment` scores their perplexity and writes them, sorted by language.

Source: CCNet (arXiv 1911.00359, section 3) as released; the order of the steps is the same.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.buckets import bin_of
from ccnet.corpus import ROW_GROUP_BYTES
from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks
from ccnet.language import LanguageIdentifier
from ccnet.normalize import paragraph_keys
from ccnet.perplexity import LanguageModel
from ccnet.schema import DOCUMENT
from ccnet.wet import read_pages

TOP_DOMAINS = 200


@dataclass(frozen=True)
class Rules:
    """What a page must pass.

    `min_length`: characters of a page, before deduplication; `min_length_after`: the same after it; `threshold`: of the
    language score; `keep`: languages, empty for all; `held_out`: share of the pages that belong to the training of
    language models.
    """

    min_length: int = 300
    min_length_after: int = 0
    threshold: float = 0.5
    keep: Collection[str] = ()
    held_out: float = 0.0


@dataclass
class Tally:
    """Counts of one segment by reason; `statistics` is their JSON form, mergeable by addition.

    Lines and characters are those of raw_content, LF between lines being a character. What deduplication takes out of a
    document counts as duplicate, line ends that go with the lines included; what is left counts as kept, or by the reason
    that drops the document. Pages that are too short count with their characters but are never split into lines. So for
    documents, chars and lines alike: in = kept + the sum over all reasons.
    """

    read: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    chars: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    def drop(self, reason: str, documents: int, chars: int, lines: int) -> None:
        """Counts documents that are dropped for a reason."""
        self.documents[reason] += documents
        self.chars[reason] += chars
        self.lines[reason] += lines

    def statistics(self) -> dict[str, Any]:
        """{documents, chars, lines: {in, kept, dropped: {reason: n}}, bad: {reason: n}}."""
        result: dict[str, Any] = {}
        for name, counts in (("documents", self.documents), ("chars", self.chars), ("lines", self.lines)):
            dropped = {reason: n for reason, n in sorted(counts.items()) if reason not in ("in", "kept")}
            result[name] = {"in": counts["in"], "kept": counts["kept"], "dropped": dropped}
        result["bad"] = {k.removeprefix("bad_"): n for k, n in sorted(self.read.items()) if k.startswith("bad_")}
        return result


def is_held_out(digest: str, share: float) -> bool:
    """Whether a page belongs to the training of language models and not to the corpus, by a hash of its digest."""
    return int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8]) < share * 2.0**64


def surviving_documents(
    source: str | Source, marks: SegmentMarks, identifier: LanguageIdentifier, rules: Rules, tally: Tally, *, held_out: bool
) -> Iterator[dict[str, Any]]:
    """The documents of a segment after deduplication and language identification, in crawl order.

    Either those that are held out (`is_held_out`), or the others. Yields rows of `ccnet.schema.DOCUMENT` without
    perplexity and bucket; the language's score is rounded to 2 decimals, as CCNet does before it compares. Documents that
    go are counted in `tally` as short, duplicate (no line is left), short_after_dedup, held_out (on the other side of
    that split), language_score or language_not_kept.
    """
    keep = frozenset(rules.keep)
    for batch in read_pages(source, tally.read, min_length=rules.min_length):
        text = batch.column("raw_content")
        keys, offsets = paragraph_keys(text)
        content, lines = keep_lines(text, offsets, marks.apply(keys, offsets))
        pages = batch.drop_columns(["raw_content"]).to_pylist()
        for page, before, after, count, line_ids in zip(pages, text, content, np.diff(offsets), lines, strict=True):
            tally.documents["in"] += 1
            tally.chars["in"] += (chars := len(before.as_py()))
            tally.lines["in"] += int(count)
            gone = int(count) - len(line_ids)
            if not len(line_ids):
                tally.drop("duplicate", 1, chars, gone)
                continue
            kept = after.as_py()
            tally.drop("duplicate", 0, chars - len(kept), gone)
            if len(kept) < rules.min_length_after:
                tally.drop("short_after_dedup", 1, len(kept), len(line_ids))
                continue
            if is_held_out(page["digest"], rules.held_out) != held_out:
                tally.drop("held_out", 1, len(kept), len(line_ids))
                continue
            language, score = identifier.predict(kept)
            score = round(score, 2)
            if score < rules.threshold:
                tally.drop("language_score", 1, len(kept), len(line_ids))
                continue
            if keep and language not in keep:
                tally.drop("language_not_kept", 1, len(kept), len(line_ids))
                continue
            yield page | {
                "length": len(kept),
                "nlines": len(line_ids),
                "source_domain": _domain(page["url"]),
                "raw_content": kept,
                "line_ids": line_ids,
                "language": language,
                "language_score": score,
            }
    marks.finish()
    short = tally.read["dropped_short"]
    tally.documents["in"] += short
    tally.chars["in"] += tally.read["dropped_short_chars"]
    tally.drop("short", short, tally.read["dropped_short_chars"], 0)


def filter_segment(
    source: str | Source,
    target: Path,
    *,
    marks: SegmentMarks,
    language_model: Path,
    rules: Rules,
    models: Mapping[str, tuple[Path, Path]],
) -> dict[str, Any]:
    """Writes the surviving documents of a segment to `target` as Parquet, and returns the counts.

    The file is sorted by language, then in crawl order; a row group holds one language. `models` are the language models
    (`ccnet.perplexity.find_models`); perplexities are rounded to 0.1, as CCNet does before it compares them; `bucket` is
    null until the cut-offs are known. Memory: the text of the segment.

    Beside those of `Tally` the counts are `languages` ({language: {documents, chars, bytes}}), `perplexity`
    ({language: {bin: documents}}, `ccnet.buckets`), `language_score` ({hundredths: documents}), `length`
    ({floor of log2: documents}) and `domains` (the most frequent ones).
    """
    tally = Tally()
    scorers: dict[str, LanguageModel] = {}
    documents: dict[str, list[dict[str, Any]]] = defaultdict(list)
    perplexities: dict[str, Counter[str]] = defaultdict(Counter)
    scores, lengths, domains = Counter[str](), Counter[str](), Counter[str]()
    identifier = LanguageIdentifier(language_model)
    for document in surviving_documents(source, marks, identifier, rules, tally, held_out=False):
        language, text = document["language"], document["raw_content"]
        document["perplexity"] = None
        if language in models:
            if language not in scorers:
                scorers[language] = LanguageModel(*models[language])
            document["perplexity"] = round(scorers[language].perplexity(text), 1)
            perplexities[language][str(bin_of(document["perplexity"]))] += 1
        documents[language].append(document | {"bucket": None})
        tally.documents["kept"] += 1
        tally.chars["kept"] += len(text)
        tally.lines["kept"] += document["nlines"]
        scores[str(round(document["language_score"] * 100))] += 1
        lengths[str(max(len(text), 1).bit_length() - 1)] += 1
        domains[document["source_domain"]] += 1
    languages = {}
    with pq.ParquetWriter(target, DOCUMENT, compression="zstd") as writer:
        for language in sorted(documents):
            table = pa.Table.from_pylist(documents[language], DOCUMENT)
            size = table.column("raw_content").nbytes
            writer.write_table(table, row_group_size=max(1, len(table) * ROW_GROUP_BYTES // max(size, ROW_GROUP_BYTES)))
            chars = sum(document["length"] for document in documents[language])
            languages[language] = {"documents": len(table), "chars": chars, "bytes": size}
    return tally.statistics() | {
        "languages": languages,
        "perplexity": {language: dict(counts) for language, counts in sorted(perplexities.items())},
        "language_score": dict(scores),
        "length": dict(lengths),
        "domains": dict(sorted(domains.items(), key=lambda item: (-item[1], item[0]))[:TOP_DOMAINS]),
    }


def keep_lines(text: pa.StringArray, offsets: np.ndarray, keep: np.ndarray) -> tuple[pa.StringArray, list[np.ndarray]]:
    """Documents with only some of their lines.

    Args: text: string[documents], lines joined by LF; offsets: int64[documents + 1] into keep: bool[lines].
    Returns: string[documents], the kept lines joined by LF; and for each document the numbers of its kept lines, int32.
    """
    starts = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1].astype(np.int64)
    data = np.frombuffer(text.buffers()[2] or b"", np.uint8)
    kept, ends = _keep_lines(data, starts, offsets, keep)
    array = pa.StringArray.from_buffers(len(text), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(kept))
    return array, [np.flatnonzero(keep[low:high]).astype(np.int32) for low, high in pairwise(offsets)]


@numba.njit(cache=True, nogil=True)
def _keep_lines(data, starts, offsets, keep):  # type: ignore[no-untyped-def]
    """The bytes of the kept lines, and int64[documents + 1] where each document begins in them."""
    kept = np.empty(starts[-1] - starts[0], np.uint8)
    ends = np.zeros(len(starts), np.int64)
    size = 0
    for document in range(len(starts) - 1):
        line = offsets[document]
        first = True
        position = starts[document]
        while line < offsets[document + 1]:
            end = position
            while end < starts[document + 1] and data[end] != 10:
                end += 1
            if keep[line]:
                if not first:
                    kept[size] = 10
                    size += 1
                kept[size : size + end - position] = data[position:end]
                size += end - position
                first = False
            position = end + 1
            line += 1
        ends[document + 1] = size
    return kept[:size], ends


def _domain(url: str) -> str:
    try:
        return urlsplit(url).netloc
    except ValueError:  # of URLs that are none, such as http://[x
        return ""
