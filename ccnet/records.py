"""The bytes of a crawl file in, its WARC records out; whatever is broken costs itself only, and is counted.

Source: the WARC 1.1 specification.
"""

import re
from collections import Counter
from collections.abc import Iterator

MAX_HEADER = 1 << 16
MAX_BODY = 64 << 20
PAGE_TYPES = frozenset({"conversion", "response"})
OTHER_TYPES = frozenset({"request", "metadata", "revisit", "resource", "continuation"})

_LINE_ENDS = re.compile(rb"[\r\n]*")
_RECORD_START = re.compile(rb"WARC/1\.[01]\r?\n[A-Za-z-]{1,60}:")
_RECORD_FOLLOWS = re.compile(rb"[\r\n]*(?:WARC/1\.|[WARC/1]{0,6}\Z)")
_FIELD = re.compile(r"\n(content-(?:length|type)|warc-(?:type|target-uri|date|block-digest))[ \t]*:([^\n]*)", re.IGNORECASE)


def read_records(chunks: Iterator[bytes], counts: Counter[str]) -> Iterator[tuple[dict[str, str], bytearray]]:
    """Headers (names in lower case; only those that pages need) and body of each conversion and response record.

    `chunks` are the bytes of the file, an empty one where some are missing. Records of other types are counted as
    `skipped_{type}`, warcinfo not at all.
    After a body come line ends and the next record. Where that is not so, or the header cannot be read, the record is
    broken, and reading goes on where the next one starts after its beginning: a wrong Content-Length costs no other
    record. A body that is too large to be held is passed over in the same way, whether its length is true or not.
    Where a header's lines end at LF alone, against the specification, a text tool has rewritten the file, and lengths
    may be those of before: there, a body that does not fit its length goes on to the next record.
    """
    for headers, body in _whole_records(_Window(chunks), counts):
        kind = headers["warc-type"]
        if kind in PAGE_TYPES:
            yield headers, body
        else:
            _count_skipped(kind, counts)


def record_start(chunks: Iterator[bytes], position: int) -> int | None:
    """The number of bytes in `chunks` before the first record that begins at `position` or after; None without one.

    Records are followed from the first start that is seen on, so a body that looks like a record is taken for none where
    `chunks` begin well before `position`.
    """
    window = _Window(chunks)
    window.skip_to_record()
    for _ in _whole_records(window, Counter()):
        if window.passed >= position and window.skip_line_ends() and _RECORD_START.match(window.data, window.at):
            return window.passed
    return None


def _count_skipped(kind: str, counts: Counter[str]) -> None:
    if kind != "warcinfo":
        counts[f"skipped_{kind}" if kind in OTHER_TYPES else "skipped_other"] += 1


def _whole_records(window: "_Window", counts: Counter[str]) -> Iterator[tuple[dict[str, str], bytearray]]:
    """Every record that is whole; behind it, the window is where its body ends."""
    found = False
    while window.skip_line_ends() or window.skip_gap():
        window.fill(MAX_HEADER)
        header_end, body_start = _header_end(window.data, window.at)
        headers = _headers(window.data[window.at : header_end]) if body_start else None
        if headers is None:
            window.at += 1
            if window.skip_to_record() or (found and body_start):
                counts["bad_broken_record"] += 1
            elif found and not window.gap:
                counts["bad_truncated"] += 1
            continue
        found = True
        length = int(headers["content-length"])
        only_lf = window.data[header_end:body_start] == b"\n\n" and window.data[header_end - 1] != ord("\r")
        window.at = body_start
        if length > MAX_BODY:
            if headers["warc-type"] in PAGE_TYPES:
                counts["bad_too_large"] += 1
            else:
                _count_skipped(headers["warc-type"], counts)
            window.skip_to_record()
            continue
        window.fill(length + 16)
        end = window.at + length
        body = window.data[window.at : end]
        if len(body) == length and _RECORD_FOLLOWS.match(window.data, end, end + 16):
            window.at = end
        elif only_lf and (rest := window.take_to_record()) is not None:
            body = rest.rstrip(b"\n") + b"\n"
        else:
            if window.skip_to_record() or len(body) == length:
                counts["bad_broken_record"] += 1
            elif not window.gap:
                counts["bad_truncated"] += 1
            continue
        yield headers, body
    if not found and not window.gaps:
        counts["bad_not_a_crawl_file"] += 1


def _header_end(data: bytearray, at: int) -> tuple[int, int]:
    """The last line end of the header, and where the body begins; (0, 0) where there is no empty line."""
    crlf = data.find(b"\n\r\n", at, at + MAX_HEADER)
    lf = data.find(b"\n\n", at, at + MAX_HEADER if crlf < 0 else crlf)
    if lf >= 0:
        return lf, lf + 2
    return (crlf, crlf + 3) if crlf >= 0 else (0, 0)


def _headers(block: bytearray) -> dict[str, str] | None:
    """The fields of a record's header that pages need, or None where one is missing or makes no sense."""
    headers = {name.lower(): value.strip() for name, value in _FIELD.findall(block.decode(errors="replace"))}
    length = headers.get("content-length", "")
    needed = ("warc-type", "warc-target-uri") if headers.get("warc-type") in PAGE_TYPES else ("warc-type",)
    if not block.startswith(b"WARC/1.") or not length.isascii() or not length.isdigit() or len(length) > 18:
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
        self._dropped = 0  # bytes before `data`

    @property
    def passed(self) -> int:
        """How many bytes lie before the next one."""
        return self._dropped + self.at

    def fill(self, size: int) -> bool:
        """Read on until `size` bytes lie ahead. Returns whether so many come before the end or the gap."""
        while len(self.data) - self.at < size and not self.gap:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            if not chunk:
                self.gap = True
                self.gaps += 1
            self._dropped += self.at
            del self.data[: self.at]
            self.at = 0
            self.data += chunk
        return len(self.data) - self.at >= size

    def skip_line_ends(self) -> bool:
        """Go to the next byte that is not a line end. Returns whether there is one before the end or the gap."""
        while self.fill(1):
            self.at = _LINE_ENDS.match(self.data, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.data):
                return True
        return False

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
