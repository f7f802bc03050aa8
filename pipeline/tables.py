"""A run's files as tables of DuckDB, for questions in SQL.

In: the folder of a run. Out: a connection with a view for each of `TABLES` whose files are there. Nothing is copied: a
question reads the columns and row groups it needs. It can read below the run's folder and nowhere else, and change nothing.
"""

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa

from ccnet.corpus import JSON_SUFFIX
from ccnet.schema import DOCUMENT

BATCH = 1000  # rows that are fetched at a time
MESSAGE = 500  # characters of an error that are told; those of DuckDB quote whole texts
LONGEST = 64 << 20  # bytes of a JSON record of the corpus, at most
TYPES = {pa.string(): "VARCHAR", pa.int32(): "INTEGER", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}
TYPES |= {pa.list_(pa.int32()): "INTEGER[]"}
JSON_COLUMNS = ", ".join(f"{field.name}: '{TYPES[field.type]}'" for field in DOCUMENT)


@dataclass(frozen=True)
class Table:
    """A view: what it holds; (glob below `out`, query) of each layout, of which the first whose glob finds files counts. In the
    query `{files}` is that glob as an SQL text and `{largest}` the bytes of the largest of the files."""

    help: str
    layouts: tuple[tuple[str, str], ...]


def _one(help: str, files: str, query: str) -> Table:
    return Table(help, ((files, query),))


def _counts(outcome: str) -> str:
    return f"coalesce((result->'$.statistics.{outcome}'->>reason)::BIGINT, 0)"


TABLES = {
    "corpus": Table(
        "the documents of the corpus: url, date_download, digest, length, nlines, source_domain, title, raw_content, …, "
        "language, language_score, perplexity, bucket",
        (
            ("corpus/*/*/part-*.parquet", "SELECT * FROM read_parquet({files})"),
            (
                f"corpus/*{JSON_SUFFIX}",
                f"SELECT * FROM read_json({{files}}, format = 'newline_delimited', columns = {{{{{JSON_COLUMNS}}}}},"
                f" maximum_object_size = {LONGEST})",
            ),
        ),
    ),
    "mined": _one(
        "what mine scored, with the perplexity of each line (paragraph_perplexity) and the segment; no buckets",
        "mine/*.parquet",
        "SELECT * EXCLUDE (filename), parse_filename(filename, true) AS segment FROM read_parquet({files}, filename = true)",
    ),
    "dropped": _one(
        "pages and documents that are not in the corpus, with the reason and the stage; written with keep_dropped=true",
        "dropped/*.parquet",
        "SELECT * EXCLUDE (filename), regexp_extract(filename, '(\\w+)\\.parquet$', 1) AS stage,"
        " regexp_extract(filename, '([^/]+)\\.\\w+\\.parquet$', 1) AS segment"
        " FROM read_parquet({files}, filename = true, union_by_name = true)",
    ),
    "near": _one(
        "near-duplicates: url and place of the document that is dropped and of the one that is kept, their similarity",
        "near/pairs.parquet",
        "SELECT * FROM read_parquet({files})",
    ),
    "stages": _one(
        "the manifest of each finished stage: units, seconds of all workers, digest; config, inputs, result (JSON)",
        "records/*.json",
        "SELECT * FROM read_json({files}, maximum_object_size = {largest}, columns = {{stage: 'VARCHAR', units: 'BIGINT',"
        " seconds: 'DOUBLE', digest: 'VARCHAR', config: 'JSON', inputs: 'JSON', result: 'JSON'}})",
    ),
    "units": _one(
        "the record of each finished unit: stage, round, unit, seconds, files and bytes written, statistics (JSON)",
        "records/*/*/*/*.json",
        "SELECT parse_path(filename)[-4] AS stage, parse_path(filename)[-3] AS round, unit, seconds,"
        " len(json_keys(outputs)) AS files, list_sum((outputs->'$.*.bytes')::BIGINT[])::BIGINT AS bytes, statistics"
        " FROM read_json({files}, filename = true, maximum_object_size = {largest}, columns = {{unit: 'VARCHAR',"
        " seconds: 'DOUBLE', outputs: 'JSON', statistics: 'JSON'}})",
    ),
    "reasons": _one(
        "why documents were dropped: stage, reason, documents, lines, chars",
        "records/mine.json",
        f"SELECT stage, reason, {_counts('documents.dropped')} AS documents, {_counts('lines.dropped')} AS lines,"
        f" {_counts('chars.dropped')} AS chars FROM (SELECT stage, result,"
        " unnest(json_keys(result, '$.statistics.documents.dropped')) AS reason"
        " FROM stages WHERE stage IN ('mine', 'regroup'))",
    ),
    "cutoffs": _one(
        "perplexity cut-offs: language, low (head below it), high (middle below it)",
        "records/regroup.json",
        "SELECT key AS language, (value->>'low')::DOUBLE AS low, (value->>'high')::DOUBLE AS high"
        " FROM stages, json_each(stages.result, '$.cutoffs') WHERE stages.stage = 'regroup'",
    ),
    "paragraphs": _one(
        "the most frequent duplicated paragraphs: text (null: not looked up), documents that have it",
        "records/mine.json",
        "SELECT value->>'text' AS text, (value->>'documents')::BIGINT AS documents"
        " FROM stages, json_each(stages.result, '$.frequent') WHERE stages.stage = 'mine'",
    ),
    "shards": _one(
        "what each unit of tokenize wrote: split, source, unit, documents, tokens, bytes and chars of text",
        "records/tokenize/tokenize/*/*.json",
        "SELECT split, split_part(unit, '.', 1) AS source, unit, (statistics->split->>'documents')::BIGINT AS documents,"
        " (statistics->split->>'tokens')::BIGINT AS tokens, (statistics->split->>'bytes')::BIGINT AS bytes,"
        " (statistics->split->>'chars')::BIGINT AS chars"
        " FROM (SELECT unit, statistics, unnest(['train', 'validation']) AS split FROM units WHERE stage = 'tokenize')",
    ),
    "metrics": _one(
        "a row a step of the training: step, tokens, loss, lr, grad_norm, seconds, tokens_per_second, in some validation_loss",
        "train/metrics.jsonl",
        "SELECT * FROM read_json({files}, format = 'newline_delimited', sample_size = -1, ignore_errors = true)"
        " WHERE step IS NOT NULL",  # the last line may be cut
    ),
    "events": _one(
        "what the guards of the training saw and did",
        "train/events.jsonl",
        "SELECT * FROM read_json({files}, format = 'newline_delimited', sample_size = -1, ignore_errors = true)"
        " WHERE step IS NOT NULL",  # the last line may be cut
    ),
}


class Tables:
    """The tables of a run; `names` are those that are there. Made by `opened`."""

    def __init__(self, out: Path, connection: duckdb.DuckDBPyConnection) -> None:
        self._out, self._connection = out, connection
        self.names: list[str] = []
        self._faults: dict[str, str] = {}
        for name in TABLES:
            try:
                if _view(connection, out, name):
                    self.names.append(name)
            except duckdb.Error as error:  # a broken file spoils its own table only
                self._faults[name] = str(error)

    def ask(self, query: str, parameters: Mapping[str, str] | None = None) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """(column names, rows) of one question in SQL; `$name` in it stands for a parameter, which is never part of the SQL.

        Raises ValueError with one line where it is no question, where DuckDB rejects it, and, while rows are read, where it
        fails.
        """
        with self._told():
            statements = self._connection.extract_statements(query)
            kinds = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
            if len(statements) != 1 or statements[0].type not in kinds:
                raise ValueError(
                    "ask one question at a time, one that reads: SELECT, FROM, WITH, DESCRIBE, SUMMARIZE or EXPLAIN"
                )
            result = self._connection.execute(statements[0], dict(parameters or {}))
            columns = [name for name, *_ in result.description or ()]
        return columns, self._rows(result)

    def _rows(self, result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
        while True:
            with self._told():
                rows = result.fetchmany(BATCH)
            if not rows:
                return
            yield from rows

    @contextmanager
    def _told(self) -> Iterator[None]:
        """DuckDB's errors as ValueError, those of a table that is not there with the tables that are."""
        try:
            yield
        except duckdb.Error as error:
            if missing := re.match(r"Catalog Error: Table with name (\w+) does not exist", str(error)):
                raise ValueError(self._missing(missing[1])) from None
            message = str(error).split("\n\nLINE ")[0]
            raise ValueError(message[:MESSAGE] + ("…" if len(message) > MESSAGE else "")) from None

    def _missing(self, name: str) -> str:
        if name.lower() in self._faults:
            return f"{name}: can't be read: {self._faults[name.lower()]}"
        if name.lower() in TABLES:
            return f"{name}: {self._out} has none; it would hold {TABLES[name.lower()].help}"
        near = get_close_matches(name.lower(), self.names, n=1)
        return f"{name}: no such table; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names)}")


@contextmanager
def opened(out: Path, memory: str) -> Iterator[Tables]:
    """Opens the tables of a run, to be read with `memory` at most (such as `4GB`; more is kept on disk for the while).

    DuckDB is in memory, without extensions to load, without network, and can't be set otherwise afterwards.
    """
    out = out.resolve()
    with TemporaryDirectory(prefix="inspect-") as temporary:
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": temporary,
            "memory_limit": memory,
        }
        try:
            connection = duckdb.connect(":memory:", config=config)
        except duckdb.Error as error:
            raise ValueError(f"memory={memory}: {error}") from None
        with connection:
            tables = Tables(out, connection)
            allowed = {str(out), glob.escape(str(out))}  # of files, and of the globs of views
            connection.execute(f"SET allowed_directories = [{', '.join(map(_text, sorted(allowed)))}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield tables


def _view(connection: duckdb.DuckDBPyConnection, out: Path, name: str) -> bool:
    """Makes the view of a table if its files are there."""
    for pattern, query in TABLES[name].layouts:
        paths = glob.glob(pattern, root_dir=out)
        if not paths:
            continue
        largest = max(os.stat(out / path).st_size for path in paths) if "{largest}" in query else 0
        files = _text(f"{glob.escape(str(out))}/{pattern}")
        connection.execute(f"CREATE VIEW {name} AS {query.format(files=files, largest=max(largest, 1 << 20))}")
        return True
    return False


def _text(value: str) -> str:
    """A string as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"
