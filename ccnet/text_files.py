"""Files of texts in (JSON lines or Parquet), their rows out: url, date, title and text of each.

Names that are looked for beside the text column: `url` or else `id`; `date_download`, `date` or `timestamp`; `title`.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.crawl import Source

MAX_LINE = 64 << 20
ROWS = 1000  # of Parquet at a time
URL = ("url", "id")
DATE = ("date_download", "date", "timestamp")
TITLE = ("title",)


class Row(NamedTuple):
    """A text and what is known of it; empty strings for what is not."""

    url: str
    date: str
    title: str
    text: str


def is_json(start: bytes) -> bool:
    """Whether a file that begins like this has JSON lines; a byte order mark may stand before the first one."""
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{")


def json_rows(chunks: Iterator[bytes], column: str, counts: Counter[str]) -> Iterator[Row]:
    """A row for each line of a JSON lines file.

    `chunks` are its bytes, an empty one where some are missing. Lines that are no JSON object are counted as
    `bad_broken_record`, objects without a string in `column` as `bad_no_text`, lines of more than 64 MiB as `bad_too_large`.
    """
    for value in json_lines(chunks, counts):
        if isinstance(value.get(column), str):
            yield _row(value, column)
        else:
            counts["bad_no_text"] += 1


def json_lines(chunks: Iterator[bytes], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The JSON object of each line, with the faults of `json_rows` that are not about a column."""
    for line in _lines(chunks, counts):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        else:
            counts["bad_broken_record"] += 1


def parquet_rows(file: BinaryIO, source: Source, counts: Counter[str]) -> Iterator[Row]:
    """A row for each row of a Parquet file, or of those of its row groups that begin in `source.part`.

    Rows without a text are counted as `bad_no_text`, a file that breaks as `bad_not_a_crawl_file` or `bad_truncated`.
    Raises: ValueError where there is no column of strings with that name.
    """
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError):
        counts["bad_not_a_crawl_file"] += 1
        return
    schema = parquet.schema_arrow
    column = source.text_column
    if column not in schema.names or not _is_text(schema.field(column).type):
        names = ", ".join(schema.names)
        raise ValueError(f"{source.path}: there is no column {column!r} of strings; choose crawl.text_column from {names}")
    columns = [column, *(name for name in (*URL, *DATE, *TITLE) if name in schema.names and name != column)]
    starts = row_group_starts(parquet)
    first, end = source.part or (0, 1 << 62)
    groups = [number for number, start in enumerate(starts) if first <= start < end]
    try:
        for batch in parquet.iter_batches(ROWS, groups, columns) if groups else ():
            for value in batch.to_pylist():
                if value[column] is None:
                    counts["bad_no_text"] += 1
                else:
                    yield _row(value, column)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError):
        counts["bad_truncated"] += 1


def row_group_starts(parquet: pq.ParquetFile) -> list[int]:
    """The byte at which each row group begins."""
    starts = []
    for number in range(parquet.num_row_groups):
        first = parquet.metadata.row_group(number).column(0)
        dictionary = first.dictionary_page_offset
        starts.append(first.data_page_offset if dictionary is None else min(dictionary, first.data_page_offset))
    return starts


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _row(value: Mapping[str, Any], column: str) -> Row:
    url, date, title = (
        next((str(value[name]) for name in names if name != column and value.get(name) is not None), "")
        for names in (URL, DATE, TITLE)
    )
    return Row(url, date, title, value[column])


def _lines(chunks: Iterator[bytes], counts: Counter[str]) -> Iterator[bytes]:
    """The lines, without those that are cut by missing bytes or longer than MAX_LINE."""
    ahead = bytearray()
    cut = False  # the line ahead has lost its beginning
    for chunk in chunks:
        if not chunk:
            ahead.clear()
            cut = True
            continue
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            ahead += line
            if not cut:
                yield bytes(ahead)
            ahead.clear()
            cut = False
        ahead += rest
        if len(ahead) > MAX_LINE:
            counts["bad_too_large"] += int(not cut)
            ahead.clear()
            cut = True
    if ahead and not cut:
        yield bytes(ahead)
