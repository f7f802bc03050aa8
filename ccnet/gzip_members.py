"""Gzip files whose members are records of their own: what can be inflated, where members begin, whether the last is whole.

Source: RFC 1952 (gzip) and the WARC 1.1 specification, annex D (a record a member).
"""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc import GzipReader

CHUNK = 1 << 20  # bytes that are read or inflated at a time
MAX_INPUT = 1 << 14  # bytes that zlib is given at a time: it makes at most 1,032 times as many of them
GZIP = b"\x1f\x8b\x08"  # how a member begins
LOOK_BACK = 4 << 20  # bytes; more than a member that is stored inside a record of a crawl has


def gunzip(file: BinaryIO, counts: Counter[str]) -> Iterator[bytes]:
    """The inflated bytes from the start on, in pieces of about 1 MiB; an empty piece where some are missing.

    Every break adds to `bad_truncated` or `bad_corrupt_gzip` of `counts`.
    FastWARC's reader inflates four times as fast as zlib, but gives back nothing of a read in which it fails, and takes
    a truncated member for a whole one. A file in which one or the other happens is read again by zlib.
    """
    reader = GzipReader(file)
    done = 0
    try:
        while chunk := reader.read(CHUNK):
            done += len(chunk)
            yield chunk
        if member_end(file, reader.frame_start_position() or 0) is not None:
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


def is_whole(file: BinaryIO) -> bool:
    """Whether every member can be inflated to its end; zeros may follow the last one."""
    file.seek(0)
    counts: Counter[str] = Counter()
    return all(gunzip(file, counts)) and not counts


def member_end(file: BinaryIO, start: int, limit: int | None = None) -> int | None:
    """Where the member that begins at `start` ends; None where it is cut or corrupt. It isn't followed beyond `limit`."""
    file.seek(start)
    member = zlib.decompressobj(wbits=31)
    position = start
    try:
        while not member.eof:
            data = file.read(MAX_INPUT)
            if not data:
                return None
            member.decompress(data)
            position += len(data)
            if limit is not None and position >= limit + MAX_INPUT:
                break
    except zlib.error:
        return None
    return position - len(member.unused_data)


def next_record_member(file: BinaryIO, position: int, limit: int | None = None) -> int | None:
    """Where the next member that begins with a WARC record seems to begin, at `position` or after and before `limit`."""
    file.seek(position)
    data = b""
    while piece := file.read(CHUNK):
        data = data[-MAX_INPUT:] + piece
        first = file.tell() - len(data)
        if limit is not None and first >= limit:
            return None
        for match in re.finditer(re.escape(GZIP), data):
            if limit is not None and first + match.start() >= limit:
                return None
            if _begins_record(data[match.start() : match.start() + MAX_INPUT]):
                return first + match.start()
    return None


def split_point(file: BinaryIO, position: int, limit: int) -> int | None:
    """The first member at `position` or after, and before `limit`, that begins with a WARC record; None without one.

    A record may have gzip members stored in its body, so members are followed from one to the next from 4 MiB before.
    """
    start = next_record_member(file, max(position - LOOK_BACK, 0), limit)
    while start is not None and start < limit:
        file.seek(start)
        if start >= position and _begins_record(file.read(MAX_INPUT)):
            return start
        end = member_end(file, start, limit)
        file.seek(end or 0)
        follows = end is not None and file.read(len(GZIP)) == GZIP
        start = end if follows else next_record_member(file, start + 1 if end is None else end, limit)
    return None


def _begins_record(data: bytes) -> bool:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, 5) == b"WARC/"
    except zlib.error:
        return False


def _inflate(file: BinaryIO, counts: Counter[str]) -> Iterator[bytes]:
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
            following = next_record_member(file, start + 1)
            counts[fault if following is None else "bad_corrupt_gzip"] += 1
            yield b""
            if following is None:
                return
            file.seek(following)
            data = b""
