"""Documents of a source: Parquet files in, Arrow batches of (digest, text) out; large files in slices of row groups.

A file has its text in a column `raw_content`, as the corpus does, or `text`, as most data sets on Hugging Face. Its `digest`
decides its split; where there is none, it is the SHA-256 of the text.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH = 4096  # documents that are held at a time
TEXTS = ("raw_content", "text")


class Slice(NamedTuple):
    """Row groups `first` … `last` - 1 of a Parquet file, a path or URL; `bytes` of text in them."""

    path: str
    first: int
    last: int
    bytes: int


def slices(path: str, slice_bytes: int) -> list[Slice]:
    """Cuts a file between row groups into slices of about `slice_bytes` of text, at least one row group each.

    ValueError, in one line, for a file that is no Parquet file or has no text.
    """
    with _opened(path) as file:
        column = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)].index(_text_column(path, file))
        sizes = [file.metadata.row_group(i).column(column).total_uncompressed_size for i in range(file.num_row_groups)]
    cut: list[Slice] = []
    for group, size in enumerate(sizes):
        if cut and cut[-1].bytes + size <= slice_bytes:
            cut[-1] = cut[-1]._replace(last=group + 1, bytes=cut[-1].bytes + size)
        else:
            cut.append(Slice(path, group, group + 1, size))
    return cut


def read_documents(part: Slice) -> Iterator[pa.RecordBatch]:
    """The documents of a slice in their order: batches of `digest` and `raw_content` (both string). Rows without a text are
    passed over."""
    with _opened(part.path) as file:
        name = _text_column(part.path, file)
        columns = [name, "digest"] if "digest" in file.schema_arrow.names else [name]
        for batch in file.iter_batches(BATCH, row_groups=range(part.first, part.last), columns=columns):
            batch = batch.filter(batch.column(name).is_valid())
            text = batch.column(name).cast(pa.string())
            digest = batch.column("digest").cast(pa.string()) if "digest" in columns else pa.nulls(len(text), pa.string())
            if digest.null_count:
                own = [hashlib.sha256(value.encode()).hexdigest() for value in text.to_pylist()]
                digest = pc.coalesce(digest, pa.array(own, pa.string()))
            yield pa.record_batch([digest, text], ["digest", "raw_content"])


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    with fsspec.open(path, "rb") as raw:
        try:
            file = pq.ParquetFile(raw)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: no Parquet file: {error}") from None
        with file:
            yield file


def _text_column(path: str, file: pq.ParquetFile) -> str:
    types = {field.name: field.type for field in file.schema_arrow}
    for name in TEXTS:
        if name in types and (pa.types.is_string(types[name]) or pa.types.is_large_string(types[name])):
            return name
    raise ValueError(f"{path}: has no text: no column {' or '.join(TEXTS)} of strings among {', '.join(types) or 'none'}")
