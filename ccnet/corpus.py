"""The corpus: filtered segments in, Parquet files by language and perplexity bucket out, and read again.

A file holds documents of one language and bucket in crawl order (schema `ccnet.schema.DOCUMENT`, zstd).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccnet.buckets import NAMES, UNSCORED, bucket
from ccnet.schema import DOCUMENT

BATCH = 4096  # documents that are held at a time
ROW_GROUP_BYTES = 32 << 20  # text in a row group, about


def regroup(
    parts: Sequence[Path], language: str, cutoffs: tuple[float, float] | None, targets: Mapping[str, Path]
) -> dict[str, dict[str, int]]:
    """Writes one language's documents of some filtered segments, in crawl order, to a file a bucket.

    Args:
        parts: Parquet files of `ccnet.filter.filter_segment`, in crawl order; only the language's row groups are read.
        cutoffs: of the language's perplexities; None puts all documents into the bucket `all`.
        targets: {bucket: file}; a file is written only where its bucket has documents.
    Returns: {bucket: {documents, chars}}. Memory: a row group a bucket.
    """
    files: dict[str, _File] = {}
    with ExitStack() as stack:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for table in _tables(file, language):
                    names = pa.array([bucket(value, cutoffs) for value in table.column("perplexity").to_pylist()], pa.string())
                    table = table.set_column(table.schema.get_field_index("bucket"), DOCUMENT.field("bucket"), names)
                    for name in pc.unique(names).to_pylist():
                        if name not in files:
                            files[name] = stack.enter_context(_File(targets[name]))
                        files[name].add(table.filter(pc.equal(names, name)))
    return {name: files[name].counts for name in (*NAMES, UNSCORED) if name in files}


def read_corpus(paths: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The chosen columns of corpus files, file after file, in batches."""
    for path in paths:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, columns=list(columns))


def _tables(file: pq.ParquetFile, language: str) -> Iterator[pa.Table]:
    paths = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    column = paths.index("language")
    for group in range(file.metadata.num_row_groups):
        if file.metadata.row_group(group).column(column).statistics.min == language:
            yield file.read_row_group(group)


class _File:
    """A corpus file: small tables in, row groups of ROW_GROUP_BYTES out, however few documents a segment has."""

    def __init__(self, path: Path) -> None:
        self.counts = {"documents": 0, "chars": 0}
        self._writer = pq.ParquetWriter(path, DOCUMENT, compression="zstd")
        self._tables: list[pa.Table] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self._flush()

    def add(self, table: pa.Table) -> None:
        self.counts["documents"] += len(table)
        self.counts["chars"] += pc.sum(table.column("length")).as_py()
        self._tables.append(table)
        self._bytes += table.column("raw_content").nbytes
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
        self._tables, self._bytes = [], 0
