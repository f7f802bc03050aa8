"""Reading: the crawl's files beside warcio and obvious Python, and main text beside trafilatura, in one run on the same pages.

In: WET and WARC files (arguments), or a segment of the demo crawl that is written here. Out: MB of text, or pages, a second of
CPU. What is not installed is left out: `pip install warcio trafilatura`.
`python -m benchmarks.reading [FILE …]`
"""

import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastwarc import ArchiveIterator, WarcRecordType

from benchmarks.machine import machine
from ccnet.crawl import open_source
from ccnet.demo_crawl import plan, write_segment
from ccnet.html import page_text
from ccnet.records import read_records
from ccnet.wet import plain_chunks, read_pages

ROUNDS = 5
COLUMNS = ["url", "title", "raw_content"]


def ours(files: list[str]) -> list[pa.RecordBatch]:
    """Arrow batches, as the stages read them."""
    return [batch for file in files for batch in read_pages(file, Counter(), min_length=0)]


def obvious(url: str, body: bytes) -> tuple[str, str, str]:
    """A page by CCNet's rules."""
    lines = body.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    title, *rest = map(str.strip, lines)
    return url, title, "\n".join(rest)


def table(pages: list[tuple[str, str, str]]) -> pa.Table:
    """Arrow columns, as we have them, of what is not empty."""
    return pa.table([list(column) for column in zip(*(page for page in pages if page[2]), strict=True)], COLUMNS)


def with_fastwarc(files: list[str]) -> pa.Table:
    """FastWARC's own record reader, and obvious Python."""
    return table(
        [
            obvious(record.headers["WARC-Target-URI"], record.reader.read())
            for file in files
            for record in ArchiveIterator(file, record_types=WarcRecordType.conversion, parse_http=False)
        ]
    )


def with_warcio(files: list[str]) -> pa.Table:
    """warcio's record reader, and obvious Python."""
    from warcio.archiveiterator import ArchiveIterator as Iterator

    pages = []
    for file in files:
        with open(file, "rb") as stream:
            for record in Iterator(stream):
                if record.rec_type == "conversion":
                    pages.append(obvious(record.rec_headers["WARC-Target-URI"], record.content_stream().read()))
    return table(pages)


def seconds(work: Callable[[Any], Any], data: Any, rounds: int = ROUNDS) -> float:
    """The least CPU time of some rounds, after one that is not counted."""
    work(data)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work(data)
        times.append(time.process_time() - start)
    return min(times)


def responses(files: list[str]) -> list[bytes]:
    """Those from which we get the main text of a page."""
    found = []
    for path in files:
        with open_source(path) as file:
            for headers, body in read_records(plain_chunks(file, Counter()), Counter()):
                if headers["warc-type"] == "response" and page_text(body, Counter()) is not None:
                    found.append(bytes(body))
    return found


def show(rows: list[tuple[str, float]], unit: str) -> None:
    """A line for each, the first one being ours."""
    for name, rate in rows:
        print(f"{name:<42}{rate:9.1f} {unit}{'' if name == rows[0][0] else f'   ours {rows[0][1] / rate:.1f} times'}")


def reading(files: list[str]) -> None:
    """The table of WET."""
    wanted = with_fastwarc(files)
    assert pa.Table.from_batches(ours(files)).select(COLUMNS).to_pydict() == wanted.to_pydict()
    size = sum(wanted.column(name).nbytes for name in COLUMNS[1:]) / 1e6
    rows = [("this project", size / seconds(ours, files)), ("fastwarc + Python", size / seconds(with_fastwarc, files))]
    if importlib.util.find_spec("warcio"):
        rows.append(("warcio + Python", size / seconds(with_warcio, files)))
    print(f"WET: {len(wanted):,} pages, {size:.1f} MB of text, one process")
    show(rows, "MB/s")


def extracting(pages: list[bytes]) -> None:
    """The table of WARC."""
    texts = [page_text(page, Counter()) or "" for page in pages]
    print(f"WARC: {len(pages):,} pages of {sum(map(len, pages)) / 1e6:.1f} MB, one process")
    rows = [("this project (resiliparse)", len(pages) / seconds(lambda x: [page_text(page, Counter()) for page in x], pages))]
    if importlib.util.find_spec("trafilatura"):
        from trafilatura import extract

        bodies = [page.partition(b"\r\n\r\n")[2] for page in pages]
        rows.append(("trafilatura", len(pages) / seconds(lambda x: [extract(body) for body in x], bodies, rounds=1)))
        others = [extract(body) or "" for body in bodies]
        shared = [
            len(ours_lines & theirs) / max(len(theirs), 1)
            for ours_lines, theirs in ((set(a.split()), set(b.split())) for a, b in zip(texts, others, strict=True))
        ]
        print(f"characters: ours {sum(map(len, texts)):,}, trafilatura {sum(map(len, others)):,};"
              f" of its words we have {100 * sum(shared) / len(shared):.1f} % on a page")  # fmt: skip
    show(rows, "pages/s")


def main(files: list[str]) -> None:
    """Prints the tables."""
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        if not files:
            files = [str(Path(folder) / "demo.warc.wet.gz")]
            write_segment(plan(8)[0], Path(files[0]))
        html = [file for file in files if not file.endswith((".wet", ".wet.gz"))]
        if text := [file for file in files if file not in html]:
            reading(text)
        if pages := responses(html):
            extracting(pages)


if __name__ == "__main__":
    main(sys.argv[1:])
