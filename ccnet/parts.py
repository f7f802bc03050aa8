"""A large file in, byte ranges out that can be read by several workers: together they hold each record exactly once.

`split` cuts only where a record begins, so a part is read like a file of its own (`Source.part`). A file that is one gzip
stream, zstd or bz2 has no such places.
"""

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.gzip_members import CHUNK, GZIP, LOOK_BACK, split_point
from ccnet.records import record_start
from ccnet.text_files import is_json, row_group_starts
from ccnet.wet import CODECS, PARQUET


def split(path: str, split_bytes: int) -> list[tuple[int, int]]:
    """The parts of a local file, in order, each (first byte, byte behind the last), of about `split_bytes` or more.

    One part where the file is smaller, or cannot be cut.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        starts, wanted = [0], split_bytes
        while wanted < size:
            start = _next_start(file, wanted, split_bytes)
            if start is not None and start < size:
                starts.append(start)
                wanted = start
            wanted += split_bytes
    return list(zip(starts, [*starts[1:], size], strict=True))


def _next_start(file: BinaryIO, wanted: int, split_bytes: int) -> int | None:
    """Where the first record at `wanted` or after begins; None where there is none in the next `split_bytes`."""
    file.seek(0)
    magic = file.read(4)
    if magic == PARQUET:
        file.seek(0)
        try:
            return next((start for start in row_group_starts(pq.ParquetFile(file)) if start >= wanted), None)
        except (pa.ArrowInvalid, OSError):
            return None
    if magic.startswith(GZIP):
        return split_point(file, wanted, wanted + split_bytes)
    if magic.startswith(tuple(CODECS)):
        return None
    file.seek(0)
    if is_json(file.read(CHUNK)):
        file.seek(wanted - 1)
        file.readline()
        return file.tell()
    first = max(wanted - LOOK_BACK, 0)
    start = record_start(_read_from(file, first, wanted + split_bytes), wanted - first)
    return None if start is None else first + start


def _read_from(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (chunk := file.read(CHUNK)):
        start += len(chunk)
        yield chunk
