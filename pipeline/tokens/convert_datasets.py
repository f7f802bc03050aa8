"""Token shards from and to Hugging Face `datasets`, through Parquet files that both read: a row a document, its ids in the
list column `input_ids`.

`datasets.load_dataset("parquet", data_files=…)` reads what `export_shards` writes, `import_shard` what `Dataset.to_parquet`
writes; `pipeline.commands.convert_tokens` is their command line. Texts take no conversion:
`tokenize.sources` names their files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tokens import tokenizer
from pipeline.tokens.documents import opened_parquet
from pipeline.tokens.shards import Shard, ShardFiles, Vocabulary, dtype_for, write_shard

COLUMN = "input_ids"
ROW_GROUP_TOKENS = 1 << 22
BATCH = 1024  # documents that are held at a time


def export_shards(prefixes: Sequence[Path], file: Path) -> int:
    """Writes the documents of shards, eos included, to a Parquet file with one column, `input_ids`: list of uint16 or int32.

    Returns their number. ValueError for a broken shard, and for shards of different types.
    """
    shards = [Shard(prefix) for prefix in prefixes]
    types = {pa.from_numpy_dtype(shard.dtype) for shard in shards}
    if len(types) != 1:
        raise ValueError(f"{file}: the shards have ids of {len(types)} types: export those of one vocabulary together")
    schema = pa.schema([pa.field(COLUMN, pa.list_(types.pop()))])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for shard in shards:
            ends = np.cumsum(shard.lengths, dtype=np.int64)
            first = 0
            while first < len(shard):
                before = int(ends[first - 1]) if first else 0
                last = max(first + 1, int(np.searchsorted(ends, before + ROW_GROUP_TOKENS, side="right")))
                offsets = np.concatenate([[0], ends[first:last] - before]).astype(np.int32)
                ids = pa.array(shard.tokens[before : int(ends[last - 1])])
                writer.write_table(pa.table([pa.ListArray.from_arrays(pa.array(offsets), ids)], schema=schema))
                first = last
    return sum(map(len, shards))


def import_shard(files: Sequence[Path], model: Path, prefix: Path) -> dict[str, int]:
    """Writes the rows of Parquet files, whose `input_ids` are lists of integers made with the tokenizer `model`, to the shard
    `prefix`; a document that does not end with eos gets it.

    Returns {documents, tokens}. ValueError for a file that is no Parquet file or has no such column, and for an id that is not
    the tokenizer's.
    """
    processor = tokenizer.load(model)
    vocabulary = Vocabulary(tokenizer.digest(model), processor.get_piece_size(), processor.eos_id())
    targets = ShardFiles.of(prefix)
    counts = write_shard(_rows(files, vocabulary), targets.bin, targets.idx, dtype_for(vocabulary.pieces))
    vocabulary.write(targets.meta)
    return counts


def _rows(files: Sequence[Path], vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    for path in files:
        with opened_parquet(str(path)) as file:
            kind = file.schema_arrow.field(COLUMN).type if COLUMN in file.schema_arrow.names else pa.null()
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_integer(kind.value_type):
                raise ValueError(f"{path}: no column {COLUMN} of lists of integers")
            for batch in file.iter_batches(BATCH, columns=[COLUMN]):
                yield from _documents(batch.column(0), path, vocabulary)


def _documents(column: pa.Array, path: Path, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    flat = column.flatten()
    if flat.null_count:
        raise ValueError(f"{path}: {flat.null_count} ids are missing (null)")
    ids = flat.to_numpy()
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary.pieces:
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"{path}: id {worst}; the tokenizer has {vocabulary.pieces} pieces: give the one that made the ids")
    lengths = column.value_lengths().fill_null(0).to_numpy()
    for document in np.split(ids, np.cumsum(lengths)[:-1]):
        ended = len(document) and document[-1] == vocabulary.eos
        yield document if ended else np.append(document, np.array(vocabulary.eos, ids.dtype))
