"""A crawl file in (WET: gzip members, one gzip stream, or plain), Arrow batches of its pages out, every fault counted.

Follows the WARC 1.1 specification for records and CCNet's released code for what a page is: only records of the type
`conversion`; the first line is the title; the other lines, stripped, are the content.
"""

import base64
import hashlib
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import fsspec
import pyarrow as pa
from fastwarc import GzipReader

from ccnet.schema import PAGE

CHUNK = 1 << 20  # bytes that are read or inflated at a time
MAX_INPUT = 1 << 14  # bytes that zlib is given at a time: it makes at most 1,032 times as many of them
MAX_HEADER = 1 << 16
MAX_BODY = 64 << 20
GZIP = b"\x1f\x8b\x08"  # how a member begins (RFC 1952)

_HEADER_END = re.compile(rb"\r?\n\r?\n")
_RECORD_START = re.compile(rb"WARC/1\.[01]\r?\n[A-Za-z-]{1,60}:")
_RECORD_FOLLOWS = re.compile(rb"[\r\n]*(?:WARC/1\.|[WARC/1]{0,6}\Z)")


def read_pages(
    source: str, counts: Counter[str], *, batch_bytes: int = 16 << 20, min_length: int = 300
) -> Iterator[pa.RecordBatch]:
    """Read the pages of one crawl file, in order.

    Lines end at LF, CR or CRLF; empty ones are kept. A page with fewer than `min_length` characters of raw_content, or
    with none at all, is dropped. Bytes that are not UTF-8 become U+FFFD, as Common Crawl's own extraction has it.
    Memory: a few times `batch_bytes` and the largest body (64 MiB), whatever the file.

    Args:
        source: path or fsspec URL.
        counts: added to: `pages_read`, `bytes_read` (of bodies), `chars_read` and `lines_read` (title and content),
            `dropped_short`, `dropped_short_chars`, `skipped_not_conversion` (records of other types, warcinfo not
            counted), and faults: `bad_not_a_crawl_file`, `bad_truncated`, `bad_corrupt_gzip` (once per break),
            `bad_broken_record`, `bad_too_large` (a body of more than 64 MiB), `bad_undecodable` (the page is kept).
    Yields: batches of the schema `PAGE`.
    Raises: OSError where the source cannot be opened or read. Nothing for what is in it.
    """
    segment = _segment_name(source)
    rows: list[tuple[Any, ...]] = []
    size = 0
    for headers, body in _records(_chunks(source, counts), counts):
        counts["pages_read"] += 1
        counts["bytes_read"] += len(body)
        title, _, content = _text(body, counts).partition("\n")
        lines = content.count("\n") + 1 if content else 0
        counts["chars_read"] += len(title) + len(content)
        counts["lines_read"] += 1 + lines
        if len(content) < max(min_length, 1):
            counts["dropped_short"] += 1
            counts["dropped_short_chars"] += len(content)
            continue
        url = headers["warc-target-uri"].strip("<>")
        digest = headers.get("warc-block-digest") or _digest(body)
        # CCNet splits the file into lines, so where a body does not end with a line end it counts the empty line after.
        nlines = lines + (body[-1:] not in b"\r\n")
        rows.append((url, headers.get("warc-date", ""), digest, segment, title, content, nlines, len(body)))
        size += len(body)
        if size >= batch_bytes:
            batch, rows, size = _batch(rows), [], 0
            yield batch
    if rows:
        yield _batch(rows)


def statistics(counts: Counter[str]) -> dict[str, Any]:
    """The counts as a unit's statistics: faults together under `bad`, by reason; the others by name."""
    bad = {name.removeprefix("bad_"): count for name, count in counts.items() if name.startswith("bad_")}
    return {name: count for name, count in counts.items() if not name.startswith("bad_")} | {"bad": bad}


def _segment_name(source: str) -> str:
    """Common Crawl's name of the file where the source has it, else the file's own: never a path of this machine."""
    start = source.rfind("crawl-data/")
    return source[start:] if start >= 0 else source.rsplit("/", 1)[-1]


def _digest(body: bytearray) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(body, usedforsecurity=False).digest()).decode()


def _text(body: bytearray, counts: Counter[str]) -> str:
    """The lines of a body, stripped, joined by "\\n"; a line end at its end begins no further line."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        counts["bad_undecodable"] += 1
        text = body.decode(errors="replace")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(map(str.strip, text.removesuffix("\n").split("\n")))


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, PAGE, strict=True)], schema=PAGE
    )


def _records(chunks: Iterator[bytes], counts: Counter[str]) -> Iterator[tuple[dict[str, str], bytearray]]:
    """Headers (names in lower case) and body of each conversion record.

    After a body come line ends and the next record. Where that is not so, or the header cannot be read, the record is
    broken, and reading goes on where the next one starts after its beginning: a wrong Content-Length costs no other
    record. A body that is too large to be held is passed over in the same way, whether its length is true or not.
    Where a header's lines end at LF alone, against the specification, a text tool has rewritten the file, and lengths
    may be those of before: there, a body that does not fit its length goes on to the next record.
    """
    window = _Window(chunks)
    found = False
    while window.skip_line_ends() or window.skip_gap():
        window.fill(MAX_HEADER)
        header_end = _HEADER_END.search(window.data, window.at, window.at + MAX_HEADER)
        headers = _headers(window.data[window.at : header_end.start()]) if header_end else None
        if not header_end or headers is None:
            window.at += 1
            if window.skip_to_record() or (found and header_end):
                counts["bad_broken_record"] += 1
            elif found and not window.gap:
                counts["bad_truncated"] += 1
            continue
        found = True
        conversion = headers["warc-type"] == "conversion"
        length = int(headers["content-length"])
        window.at = header_end.end()
        if length > MAX_BODY:
            counts["bad_too_large" if conversion else "skipped_not_conversion"] += 1
            window.skip_to_record()
            continue
        window.fill(length + 16)
        end = window.at + length
        body = window.data[window.at : end]
        if len(body) == length and _RECORD_FOLLOWS.match(window.data, end, end + 16):
            window.at = end
        elif b"\r" not in header_end.group() and (rest := window.take_to_record()) is not None:
            body = rest.rstrip(b"\n") + b"\n"
        else:
            if window.skip_to_record() or len(body) == length:
                counts["bad_broken_record"] += 1
            elif not window.gap:
                counts["bad_truncated"] += 1
            continue
        if conversion:
            yield headers, body
        elif headers["warc-type"] != "warcinfo":
            counts["skipped_not_conversion"] += 1
    if not found and not window.gaps:
        counts["bad_not_a_crawl_file"] += 1


def _headers(block: bytearray) -> dict[str, str] | None:
    """The named fields of a record's header, or None where one that is needed is missing or makes no sense."""
    version, *lines = block.decode(errors="replace").split("\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "")
    needed = ("warc-type", "warc-target-uri") if headers.get("warc-type") == "conversion" else ("warc-type",)
    if not version.startswith("WARC/1.") or not length.isascii() or not length.isdigit() or len(length) > 18:
        return None
    return headers if all(headers.get(name) for name in needed) else None


class _Window:
    """The bytes ahead: `data` from `at` on, to the end of the file or to a gap (an empty chunk: bytes are missing)."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks = chunks
        self.data = bytearray()
        self.at = 0
        self.gap = False
        self.gaps = 0  # so far

    def fill(self, size: int) -> bool:
        """Read on until `size` bytes lie ahead. Returns whether so many come before the end or the gap."""
        while len(self.data) - self.at < size and not self.gap:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            if not chunk:
                self.gap = True
                self.gaps += 1
            del self.data[: self.at]
            self.at = 0
            self.data += chunk
        return len(self.data) - self.at >= size

    def skip_line_ends(self) -> bool:
        """Go to the next byte that is not a line end. Returns whether there is one before the end or the gap."""
        while self.fill(1) and self.data[self.at] in b"\r\n":
            self.at += 1
        return self.fill(1)

    def skip_to_record(self) -> bool:
        """Go to the next start of a record. Returns whether there is one before the end or the gap."""
        while not (start := _RECORD_START.search(self.data, self.at)):
            self.at = max(self.at, len(self.data) - 80)  # a start may lie across the end
            if not self.fill(len(self.data) - self.at + 1):
                self.at = len(self.data)
                return False
        self.at = start.start()
        return True

    def take_to_record(self) -> bytearray | None:
        """What lies before the next start of a record or the end; None if neither comes within MAX_BODY bytes."""
        seen = 0
        while not (start := _RECORD_START.search(self.data, self.at + max(seen - 80, 0))):
            seen = len(self.data) - self.at
            if seen > MAX_BODY:
                return None
            if not self.fill(seen + 1):
                break
        if not start and self.gap:
            return None
        end = start.start() if start else len(self.data)
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def skip_gap(self) -> bool:
        """Go to the first record after the gap. Returns whether there is a gap and a record after it."""
        while self.gap:
            self.at = len(self.data)
            self.gap = False
            if self.skip_to_record():
                return True
        return False


def _chunks(source: str, counts: Counter[str]) -> Iterator[bytes]:
    """The decompressed bytes of a crawl file in pieces of about 1 MiB; an empty piece where bytes are missing."""
    with _open(source) as file:
        magic = file.read(len(GZIP))
        file.seek(0)
        if magic == GZIP:
            yield from _gunzip(file, counts)
        else:
            while chunk := file.read(CHUNK):
                yield chunk


@contextmanager
def _open(source: str) -> Iterator[IO[bytes]]:
    """A seekable file. What is remote is copied first, so a connection that breaks is an error and not a short file."""
    if "://" not in source:
        with open(source, "rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        with fsspec.open(source, "rb") as remote:
            shutil.copyfileobj(remote, copy, CHUNK)
        copy.seek(0)
        yield copy


def _gunzip(file: IO[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The inflated bytes, an empty piece where some are missing.

    FastWARC's reader inflates four times as fast as zlib, but gives back nothing of a read in which it fails, and takes
    a truncated member for a whole one. A file in which one or the other happens is read again by zlib.
    """
    reader = GzipReader(file)
    done = 0
    try:
        while chunk := reader.read(CHUNK):
            done += len(chunk)
            yield chunk
        if _is_whole(file, reader.frame_start_position() or 0):
            return
    except OSError:
        pass  # a file that cannot be read raises again below
    file.seek(0)
    for chunk in _inflate(file, counts):
        if not chunk:
            done = 0  # the fast reader came no further
        elif done >= len(chunk):
            done -= len(chunk)
            continue
        yield chunk[done:]
        done = 0


def _is_whole(file: IO[bytes], start: int) -> bool:
    """Whether the last gzip member, which begins at `start`, is complete."""
    file.seek(start)
    member = zlib.decompressobj(wbits=31)
    while not member.eof:
        data = file.read(MAX_INPUT)
        if not data:
            return False
        member.decompress(data)
    return True


def _inflate(file: IO[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The bytes of every member that can be inflated. After a broken one comes an empty piece, and the next member."""
    data = b""
    while data := (data or file.read(MAX_INPUT)).lstrip(b"\0"):  # zeros pad the files of some archives
        start = file.tell() - len(data)
        member = zlib.decompressobj(wbits=31)
        fault = "bad_truncated"
        try:
            while data and not member.eof:
                if piece := member.decompress(data):
                    yield piece
                data = member.unused_data or file.read(MAX_INPUT)
        except zlib.error:
            fault = "bad_corrupt_gzip"
        if not member.eof:
            data = _next_member(file, start + 1)
            counts["bad_corrupt_gzip" if data else fault] += 1
            yield b""


def _next_member(file: IO[bytes], position: int) -> bytes:
    """What lies ahead from the next gzip member with a record on, empty if there is none; the file is read so far."""
    file.seek(position)
    data = b""
    while piece := file.read(CHUNK):
        data = data[-MAX_INPUT:] + piece
        for start in re.finditer(re.escape(GZIP), data):
            with suppress(zlib.error):
                ahead = data[start.start() :]
                if zlib.decompressobj(wbits=31).decompress(ahead[:MAX_INPUT], 5) == b"WARC/":
                    return ahead
    return b""
