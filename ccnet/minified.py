"""Minified metadata: a segment's mined documents in, some tens of bytes for each out; `ccnet.regenerate` goes back.

Source: CCNet (arXiv 1911.00359) as released stores about 70 bytes a document: digest, kept lines in 16 bits, scores. Here
kept lines are runs of any length, so a page may have any number of them.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

MINIFIED = pa.schema(
    [
        pa.field("page", pa.uint64(), nullable=False),  # xxh3-64 of the page's digest
        pa.field("text", pa.uint32(), nullable=False),  # low half of the xxh3-64 of raw_content
        pa.field("lines", pa.binary(), nullable=False),  # LEB128 numbers, in turn how many lines are left out and how many kept
        pa.field("language", pa.string(), nullable=False),
        pa.field("language_score", pa.float32(), nullable=False),  # fastText's numbers are fp32
        pa.field("perplexity", pa.float64()),
    ]
)


def minify(documents: pa.Table, target: Path) -> None:
    """Writes the metadata of a segment's documents (`ccnet.schema.SCORED`), in their order, as Parquet (`MINIFIED`)."""
    ids = documents.column("line_ids").combine_chunks()
    numbers, offsets = ids.flatten().to_numpy(), np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy())])
    columns = [
        pa.array([page_number(digest) for digest in documents.column("digest").to_pylist()], pa.uint64()),
        pa.array([text_number(text) for text in documents.column("raw_content").to_pylist()], pa.uint32()),
        pa.array([pack_lines(numbers[low:high]) for low, high in pairwise(offsets)], pa.binary()),
        *(documents.column(name).cast(MINIFIED.field(name).type) for name in MINIFIED.names[3:]),
    ]
    pq.write_table(
        pa.Table.from_arrays(columns, schema=MINIFIED),
        target,
        compression="zstd",
        compression_level=19,
        use_dictionary=["language"],
        column_encoding={"language_score": "BYTE_STREAM_SPLIT", "perplexity": "BYTE_STREAM_SPLIT"},
        write_statistics=False,
        store_schema=False,
    )


def pack_lines(ids: np.ndarray) -> bytes:
    """Ascending line numbers as runs: how many lines are left out, how many kept, and so on, each number as LEB128."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    firsts, ends = ids[np.concatenate([[0], breaks])], ids[np.concatenate([breaks - 1, [len(ids) - 1]])] + 1
    packed = bytearray()
    for number in np.diff(np.stack([firsts, ends], 1).ravel(), prepend=0).tolist():
        while number >= 128:
            packed.append(number & 127 | 128)
            number >>= 7
        packed.append(number)
    return bytes(packed)


def unpack_lines(packed: bytes, lines: int) -> Iterator[int]:
    """The line numbers of `pack_lines`, those of a page of so many lines."""
    at = number = shift = 0
    kept = False
    for byte in packed:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            if kept:
                yield from range(at, min(at + number, lines))
            at, number, shift, kept = at + number, 0, 0, not kept


def page_number(digest: str) -> int:
    """`page` of a digest."""
    return xxhash.xxh3_64_intdigest(digest.encode())


def text_number(text: str) -> int:
    """`text` of a raw_content."""
    return xxhash.xxh3_64_intdigest(text.encode()) & 0xFFFFFFFF


def read_minified(path: Path) -> pa.Table:
    """The rows of a file of `minify`. Raises ValueError for another file."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: no minified metadata: {' '.join(str(error).split())}") from None
    if table.schema.names != MINIFIED.names:
        raise ValueError(f"{path}: no minified metadata: its columns are {', '.join(table.schema.names)}")
    return table
