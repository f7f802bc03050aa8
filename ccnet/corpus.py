"""The corpus: filtered segments in, Parquet files by language and perplexity bucket out, and read again.

A file holds documents of one language and bucket in crawl order (schema `ccnet.schema.DOCUMENT`, zstd).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccnet.buckets import NAMES, UNSCORED, bucket
from ccnet.schema import DOCUMENT

BATCH = 4096  # documents that are held at a time


def regroup(
    parts: Sequence[Path], language: str, cutoffs: tuple[float, float] | None, targets: Mapping[str, Path]
) -> dict[str, dict[str, int]]:
    """Writes one language's documents of some filtered segments, in crawl order, to a file a bucket.

    Args:
        parts: Parquet files of `ccnet.filter.filter_segment`, in crawl order; only the language's row groups are read.
        cutoffs: of the language's perplexities; None puts all documents into the bucket `all`.
        targets: {bucket: file}; a file is written only where its bucket has documents.
    Returns: {bucket: {documents, chars}}.
    """
    writers: dict[str, pq.ParquetWriter] = {}
    counts: dict[str, dict[str, int]] = {}
    try:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for table in _tables(file, language):
                    names = pa.array([bucket(value, cutoffs) for value in table.column("perplexity").to_pylist()], pa.string())
                    index = table.schema.get_field_index("bucket")
                    table = table.set_column(index, DOCUMENT.field("bucket"), names)
                    for name in (*NAMES, UNSCORED):
                        chosen = table.filter(pc.equal(table.column("bucket"), name))
                        if not len(chosen):
                            continue
                        if name not in writers:
                            writers[name] = pq.ParquetWriter(targets[name], DOCUMENT, compression="zstd")
                            counts[name] = {"documents": 0, "chars": 0}
                        writers[name].write_table(chosen)
                        counts[name]["documents"] += len(chosen)
                        counts[name]["chars"] += pc.sum(chosen.column("length")).as_py()
    finally:
        for writer in writers.values():
            writer.close()
    return {name: counts[name] for name in (*NAMES, UNSCORED) if name in counts}


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
