"""A crawl file in (WET, WARC, JSON lines or Parquet), Arrow batches of its pages out, every fault counted.

What a file is, its bytes say, not its name: gzip members, one gzip stream, zstd, bz2 or plain; WARC records of the type
`conversion` (text) or `response` (HTML), JSON lines, or Parquet. Follows CCNet's released code for what a page is: the
first line is the title; the other lines, stripped, are the content.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain, compress
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from ccnet.crawl import Source, byte_range, open_source
from ccnet.gzip_members import CHUNK, GZIP, gunzip
from ccnet.html import page_text
from ccnet.lines import split_lines
from ccnet.records import read_records
from ccnet.schema import PAGE
from ccnet.text_files import Row, is_json, json_rows, parquet_rows

PARQUET = b"PAR1"
HTTP = "application/http"
CODECS = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}  # how a file begins, and Arrow's name of its compression


class _Body(NamedTuple):
    """What was crawled of a page: the columns of PAGE, but the text not yet split into a title and lines."""

    text: bytes | bytearray
    url: str
    date: str
    digest: str
    length: int
    extra_lines: int  # that CCNet counts


def read_pages(
    source: str | Source, counts: Counter[str], *, batch_bytes: int = 16 << 20, min_length: int = 300
) -> Iterator[pa.RecordBatch]:
    """Read the pages of one crawl file, or of a part of it, in order.

    Lines end at LF, CR or CRLF; empty ones are kept. A page with fewer than `min_length` characters of raw_content, or
    with none at all, is dropped. Bytes that are not UTF-8 become U+FFFD, as Common Crawl's own extraction has it. Pages of
    WARC responses have the title of the HTML and the lines of its main text (`ccnet.html`); rows of JSON lines and Parquet
    have the title, URL and date that are there, and the digest of their text.
    Memory: a few times `batch_bytes` and the largest body (64 MiB), whatever the file; for a WARC response up to 700 MB.

    Args:
        source: path or fsspec URL, or a `Source`.
        counts: added to: `pages_read`, `bytes_read` (of bodies), `chars_read` and `lines_read` (title and content),
            `dropped_short`, `dropped_short_chars`; `skipped_{reason}`: records of other types, by type (warcinfo not
            counted), and responses that are no pages (`status`, `content_type`); and faults: `bad_not_a_crawl_file`,
            `bad_truncated`, `bad_corrupt_gzip` (once per break), `bad_corrupt_zstd`, `bad_corrupt_bz2`,
            `bad_broken_record`, `bad_broken_http`, `bad_no_text` (of a row), `bad_too_large` (a body of more than 64 MiB,
            HTML of more than 6 MiB), `bad_undecodable` (the page is kept).
    Yields: batches of the schema `PAGE`.
    Raises: OSError where the source cannot be opened or read; ValueError where a Parquet file has no text column of that
        name. Nothing for what else is in it.
    """
    source = source if isinstance(source, Source) else Source(source)
    segment = segment_name(source.path)
    bodies: list[_Body] = []
    size = 0
    for body in _bodies(source, segment, counts):
        bodies.append(body)
        size += len(body.text)
        if size >= batch_bytes:
            if len(batch := _batch(bodies, segment, min_length, counts)):
                yield batch
            bodies, size = [], 0
    if bodies and len(batch := _batch(bodies, segment, min_length, counts)):
        yield batch


def statistics(counts: Counter[str]) -> dict[str, Any]:
    """The counts as a unit's statistics: faults together under `bad`, by reason, and `skipped` likewise; others by name."""
    groups: dict[str, dict[str, int]] = {"skipped": {}, "bad": {}}
    rest = {}
    for name, count in counts.items():
        group, _, reason = name.partition("_")
        if group in groups:
            groups[group][reason] = count
        else:
            rest[name] = count
    return rest | groups


def segment_name(path: str) -> str:
    """Common Crawl's name of the file where the source has it, else the file's own: never a path of this machine."""
    start = path.rfind("crawl-data/")
    return path[start:] if start >= 0 else path.rsplit("/", 1)[-1]


def plain_chunks(file: BinaryIO, counts: Counter[str]) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces of about 1 MiB; an empty piece where bytes are missing."""
    magic = file.read(4)
    file.seek(0)
    codec = next((name for start, name in CODECS.items() if magic.startswith(start)), None)
    if magic.startswith(GZIP):
        yield from gunzip(file, counts)
    elif codec is not None:
        try:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), codec) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        except OSError:
            counts[f"bad_corrupt_{codec}"] += 1
            yield b""
    else:
        while chunk := file.read(CHUNK):
            yield chunk


def _bodies(source: Source, segment: str, counts: Counter[str]) -> Iterator[_Body]:
    with open_source(source.path) as file:
        if file.read(len(PARQUET)) == PARQUET:
            yield from _of_rows(parquet_rows(file, source, counts), segment)
            return
        of_file = next(plain_chunks(byte_range(file, None), Counter()), b"") if source.part else None
        chunks = plain_chunks(byte_range(file, source.part), counts)
        first = next(chunks, None)
        chunks = chunks if first is None else chain([first], chunks)
        if is_json((first or b"") if of_file is None else of_file):  # a part is what its file begins as
            yield from _of_rows(json_rows(chunks, source.text_column, counts), segment)
        else:
            yield from _of_records(read_records(chunks, counts), counts)


def _of_records(records: Iterator[tuple[dict[str, str], bytearray]], counts: Counter[str]) -> Iterator[_Body]:
    for headers, body in records:
        text: bytes | bytearray = body
        # CCNet splits the file into lines, so where a body does not end with a line end it counts the empty line after.
        extra = int(body[-1:] not in b"\r\n")
        if headers["warc-type"] == "response":
            if not headers.get("content-type", HTTP).lower().startswith(HTTP):  # of a DNS query, for one
                counts["skipped_content_type"] += 1
                continue
            page = page_text(body, counts)
            if page is None:
                continue
            text, extra = page.encode(errors="replace"), 0
        digest = headers.get("warc-block-digest") or _digest(body)
        yield _Body(text, headers["warc-target-uri"].strip("<>"), headers.get("warc-date", ""), digest, len(body), extra)


def _of_rows(rows: Iterator[Row], segment: str) -> Iterator[_Body]:
    for row in rows:
        text = row.text.encode(errors="replace")  # JSON can have halves of surrogate pairs
        title = " ".join(row.title.split()).encode(errors="replace")
        digest = _digest(text)
        url = row.url or f"{segment}#{digest}"  # the same whatever part of the file is read
        yield _Body(title + b"\n" + text, url, row.date, digest, len(text), 0)


def _digest(body: bytes | bytearray) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()


def _batch(bodies: list[_Body], segment: str, min_length: int, counts: Counter[str]) -> pa.RecordBatch:
    texts, urls, dates, digests, lengths, extra_lines = zip(*bodies, strict=True)
    split = split_lines(_valid(texts, counts), min_length)
    short = ~split.kept
    counts["pages_read"] += len(bodies)
    counts["bytes_read"] += sum(lengths)
    counts["chars_read"] += int(split.title_chars.sum() + split.chars.sum())
    counts["lines_read"] += len(bodies) + int(split.lines.sum())
    if short.any():
        counts["dropped_short"] += int(short.sum())
        counts["dropped_short_chars"] += int(split.chars[short].sum())
    kept = split.kept.tolist()
    columns = [
        *(pa.array(compress(column, kept), pa.string()) for column in (urls, dates, digests)),
        pa.repeat(segment, len(split.titles)),
        split.titles,
        split.contents,
        pa.array((split.lines + extra_lines)[split.kept], pa.int32()),
        pa.array(compress(lengths, kept), pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PAGE)


def _valid(texts: tuple[bytes | bytearray, ...], counts: Counter[str]) -> pa.StringArray:
    """The texts as UTF-8, with replacement characters where they are not."""
    array = pa.array(texts, pa.binary())
    try:
        return array.cast(pa.string())
    except pa.ArrowInvalid:
        valid = []
        for text in texts:
            try:
                valid.append(text.decode())
            except UnicodeDecodeError:
                counts["bad_undecodable"] += 1
                valid.append(text.decode(errors="replace"))
        return pa.array(valid, pa.string())
