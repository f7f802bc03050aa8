"""Documents of a source: Parquet files or JSON lines in, Arrow batches of (digest, text) out; large Parquet files in slices of
row groups.

A file has its text in a column `raw_content`, as the corpus does, or `text`, as most data sets on Hugging Face. Its `digest`
decides its split; where there is none, it is the SHA-256 of the text.
"""

import codecs
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH = 4096  # documents that are held at a time
TEXTS = ("raw_content", "text")
JSON_LINES = (".json.gz", ".jsonl.gz", ".jsonl")
BROKEN = (OSError, EOFError, zlib.error, pa.ArrowInvalid)  # what reading a broken file raises


class Slice(NamedTuple):
    """Row groups `first` … `last` - 1 of a Parquet file with `bytes` of text, or a whole file of JSON lines of `bytes`, at a
    path or URL."""

    path: str
    first: int
    last: int
    bytes: int


def slices(path: str, slice_bytes: int) -> list[Slice]:
    """Cuts a file between row groups into slices of about `slice_bytes` of text, at least one row group each. A file of JSON
    lines is one slice.

    ValueError, in one line, for a file that is no Parquet file or has no text.
    """
    if path.endswith(JSON_LINES):
        files, name = fsspec.core.url_to_fs(path)
        return [Slice(path, 0, 1, int(files.size(name) or 0))]
    with opened_parquet(path) as file:
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
    passed over, texts are `well_formed`. ValueError, in one line, for a file that can't be read and for a line that is no JSON
    object with a text."""
    rows = _json_lines(part.path) if part.path.endswith(JSON_LINES) else _row_groups(part)
    try:
        for digest, text in rows:
            batch = pa.record_batch([digest, text], ["digest", "raw_content"]).filter(text.is_valid())
            digest, text = batch.column(0), well_formed(batch.column(1)).cast(pa.string())
            if digest.null_count:
                own = [hashlib.sha256(octets).hexdigest() for octets in text.cast(pa.binary()).to_pylist()]
                digest = pc.coalesce(digest, pa.array(own, pa.string()))
            yield pa.record_batch([digest, text], ["digest", "raw_content"])
    except BROKEN as error:
        raise ValueError(f"{part.path}: can't be read: {error}") from error


def well_formed(texts: pa.Array) -> pa.Array:
    """Texts, (large) string or binary without nulls, as large_string. Each byte of malformed UTF-8 is U+FFFD, as SentencePiece
    has it."""
    try:
        texts = texts.cast(pa.large_string())
        texts.validate(full=True)
    except pa.ArrowInvalid:
        whole = [text.decode(errors="each-byte") for text in texts.cast(pa.large_binary()).to_pylist()]
        texts = pa.array(whole, pa.large_string())
    return texts


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD in place of one byte; Python's own "replace" puts one in place of several."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd", error.start + 1


codecs.register_error("each-byte", _each_byte)


def _row_groups(part: Slice) -> Iterator[tuple[pa.Array, pa.Array]]:
    with opened_parquet(part.path) as file:
        name = _text_column(part.path, file)
        columns = [name, "digest"] if "digest" in file.schema_arrow.names else [name]
        for batch in file.iter_batches(BATCH, row_groups=range(part.first, part.last), columns=columns):
            digest = batch.column("digest") if "digest" in columns else pa.nulls(len(batch))
            yield digest.cast(pa.string()), batch.column(name).cast(pa.string())


def _json_lines(path: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    with fsspec.open(path, "rb", compression="infer") as lines:
        numbered = enumerate(lines, 1)
        while some := list(islice(numbered, BATCH)):
            digests: list[str | None] = []
            texts: list[str] = []
            for number, line in some:
                try:
                    row = json.loads(line)
                    texts.append(row["raw_content"] if "raw_content" in row else row["text"])
                    digests.append(None if row.get("digest") is None else str(row["digest"]))
                    pa.array([texts[-1], digests[-1]], pa.string())
                except (ValueError, KeyError, TypeError, pa.ArrowInvalid, pa.ArrowTypeError):
                    raise ValueError(f"{path}: line {number} is no JSON object with a string {' or '.join(TEXTS)}") from None
            yield pa.array(digests, pa.string()), pa.array(texts, pa.string())


@contextmanager
def opened_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file at a path or URL. ValueError, in one line, for a file that is none."""
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
