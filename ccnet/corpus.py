"""The corpus: mined segments and rules in, files by language and perplexity bucket out, and read again.

`judge_segment` applies the rules to the small columns of a segment and counts; from the counts of all segments follow
the cut-offs; `regroup` writes the documents that pass. A file of the corpus holds documents of one language and bucket
in crawl order: Parquet (`ccnet.schema.DOCUMENT`, zstd), or CCNet's JSON lines (gzip).
"""

import gzip
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccnet.buckets import BUCKETS, bucket
from ccnet.privacy import mask_documents
from ccnet.schema import DROPPED, SCORED, document_schema
from ccnet.stats import Tally, by_language

ROW_GROUP_BYTES = 32 << 20  # text in a row group, about
GZIP_LEVEL = 4  # twice as fast as 6, for files 4 % larger
JSON_SUFFIX = ".json.gz"
SIGNALS = ["length", "nlines", "source_domain", "language", "language_score", "perplexity"]


@dataclass(frozen=True)
class CorpusRules:
    """What a mined document must pass.

    `min_length`: characters after deduplication; `threshold`: of the language's score; `keep`: languages, empty for all;
    `references`: {language: least score of likeness to cited pages};
    `rounded`: the language's score is rounded to 2 decimals and the perplexity to 1, before they are compared and in the
    corpus, as CCNet does.
    """

    min_length: int = 0
    threshold: float = 0.5
    keep: Collection[str] = ()
    references: Mapping[str, float] = field(default_factory=dict)
    rounded: bool = False

    REASONS: ClassVar = ("short_after_dedup", "language_score", "language_not_kept", "near_duplicate", "unlike_references")

    def apply(self, documents: pa.Table, near_duplicate: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        """The documents (any columns with `SIGNALS`) with scores as they are compared, and the reason why each goes.

        `near_duplicate`: bool[documents]. Returns the reasons as str[documents], empty for those that stay.
        """
        if self.rounded:
            for name, digits in (("language_score", 2), ("perplexity", 1)):
                values = [None if v is None else round(v, digits) for v in documents.column(name).to_pylist()]
                number = documents.schema.get_field_index(name)
                documents = documents.set_column(number, SCORED.field(name), pa.array(values, pa.float64()))
        unwanted = ~np.isin(documents.column("language").to_numpy(), list(self.keep)) if self.keep else False
        unlike = False
        if "reference_score" in documents.column_names:
            least = np.array([self.references.get(language, 0.0) for language in documents.column("language").to_pylist()])
            unlike = documents.column("reference_score").fill_null(1.0).to_numpy() < least
        tests = (
            documents.column("length").to_numpy() < self.min_length,
            documents.column("language_score").to_numpy() < self.threshold,
            np.broadcast_to(unwanted, len(documents)),
            near_duplicate,
            np.broadcast_to(unlike, len(documents)),
        )
        return documents, np.select(tests, self.REASONS, "")


@dataclass(frozen=True)
class MinedSegment:
    """A segment's documents (`ccnet.filter.filter_segment`), the file of near-duplicates where they are to go, and that of
    the documents' likeness to cited pages where they have one.

    `near_duplicates` is a Parquet file with the columns `segment` (its name) and `row` (in `path`, from 0); `references` one
    of the schema `ccnet.references.SCORES`.
    """

    name: str
    path: Path
    near_duplicates: Path | None = None
    references: Path | None = None

    def rows_to_drop(self) -> np.ndarray:
        """int64[rows], ascending: the near-duplicates."""
        if self.near_duplicates is None:
            return np.empty(0, np.int64)
        table = pq.read_table(self.near_duplicates, columns=["row"], filters=[("segment", "=", self.name)])
        return np.unique(table.column("row").to_numpy()).astype(np.int64)

    def with_references(self, documents: pa.Table, rows: np.ndarray) -> pa.Table:
        """The documents, those of so numbered rows, with the column `reference_score` where there is one."""
        if self.references is None:
            return documents
        return documents.append_column("reference_score", pq.read_table(self.references).column(0).take(pa.array(rows)))


def write_documents(documents: pa.Table, target: Path) -> None:
    """Writes a segment's documents (`SCORED`, sorted by language) as Parquet: row groups of one language each."""
    with pq.ParquetWriter(target, SCORED, compression="zstd") as writer:
        for language in pc.unique(documents.column("language")).to_pylist():
            table = documents.filter(pc.equal(documents.column("language"), language))
            size = table.column("raw_content").nbytes
            writer.write_table(table, row_group_size=max(1, len(table) * ROW_GROUP_BYTES // max(size, ROW_GROUP_BYTES)))


def judge_segment(segment: MinedSegment, rules: CorpusRules, dropped: Path | None = None) -> dict[str, Any]:
    """Applies the rules to a segment without reading its text, and returns the counts.

    `dropped`: where the documents that go are written to, with their text (`DROPPED`).

    Beside those of `Tally` the counts are those of `by_language` of the documents that stay, and `bytes` ({language: of
    their text, about}).
    """
    tally = Tally()
    duplicates = segment.rows_to_drop()
    with pq.ParquetFile(segment.path) as file, ExitStack() as stack:
        signals = file.read(SIGNALS)
        rows = np.arange(len(signals))
        documents, reasons = rules.apply(segment.with_references(signals, rows), np.isin(rows, duplicates))
        chars, lines, domains = (documents.column(name).to_numpy() for name in ("length", "nlines", "source_domain"))
        stay = reasons == ""
        tally.add("in", len(documents), chars.sum(), lines.sum())
        tally.add("kept", stay.sum(), chars[stay].sum(), lines[stay].sum())
        for reason in rules.REASONS:
            tally.add(reason, (gone := reasons == reason).sum(), chars[gone].sum(), lines[gone].sum())
        tally.domains["kept"].update(domains[stay])
        tally.domains["dropped"].update(domains[~stay])
        if dropped is not None:
            others = stack.enter_context(DroppedFile(dropped))
            for group, rows in _row_groups(file):
                if not stay[rows].all():
                    whole = file.read_row_group(group)
                    for reason in rules.REASONS:
                        others.add(whole.filter(pa.array(reasons[rows] == reason)), reason)
        counts = by_language(documents.filter(pa.array(stay)))
        before = by_language(documents)["languages"]
        text = _text_bytes(file)
    shares = {name: kept["chars"] / max(before[name]["chars"], 1) for name, kept in counts["languages"].items()}
    sizes = {name: max(1, int(text[name] * share)) for name, share in shares.items()}
    return tally.statistics() | counts | {"bytes": sizes}


def regroup(
    segments: Sequence[MinedSegment],
    language: str,
    rules: CorpusRules,
    cutoffs: tuple[float, float] | None,
    targets: Mapping[str, Path],
    layout: str = "parquet",
    privacy: Sequence[str] = (),
) -> dict[str, dict[str, int]]:
    """Writes one language's documents of some segments that pass the rules, in crawl order, to a file a bucket.

    Args:
        segments: in crawl order; only the language's row groups are read.
        cutoffs: of the language's perplexities; None puts all documents into the bucket `all`.
        targets: {bucket: file}; a file is written only where its bucket has documents.
        layout: "parquet" (`DOCUMENT`), or "ccnet": a JSON object a line with CCNet's keys, gzip. CCNet leaves the
            perplexity out where there is none. With scores of likeness to cited pages, both have them as well.
        privacy: kinds of addresses that are replaced (`ccnet.privacy`).
    Returns: {bucket: {documents, chars}}, and with `privacy` under `replaced` {kind: addresses}. Memory: a row group a bucket.
    """
    files: dict[str, _File] = {}
    replaced: Counter[str] = Counter()
    with ExitStack() as stack:
        for segment in segments:
            duplicates = segment.rows_to_drop()
            with pq.ParquetFile(segment.path) as file:
                for group, rows in _row_groups(file):
                    if _language(file, group) != language:
                        continue
                    table = segment.with_references(file.read_row_group(group), rows)
                    table, reasons = rules.apply(table, np.isin(rows, duplicates))
                    table, addresses = mask_documents(table.filter(pa.array(reasons == "")), privacy)
                    replaced.update(addresses)
                    names = pa.array([bucket(value, cutoffs) for value in table.column("perplexity").to_pylist()], pa.string())
                    schema = document_schema(segment.references is not None)
                    table = table.append_column("bucket", names).select(schema.names).cast(schema)
                    for name in pc.unique(names).to_pylist():
                        if name not in files:
                            writer = _Parquet(targets[name], schema) if layout == "parquet" else _JsonLines(targets[name])
                            files[name] = stack.enter_context(_File(writer))
                        files[name].add(table.filter(pc.equal(names, name)))
    return {name: files[name].counts for name in BUCKETS if name in files} | ({"replaced": dict(replaced)} if privacy else {})


def _row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each row group, and those of its rows in the file."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        yield group, np.arange(start, end)
        start = end


def _language(file: pq.ParquetFile, group: int) -> str:
    """The one language of a row group."""
    return str(_column(file, group, "language").statistics.min)


def _text_bytes(file: pq.ParquetFile) -> dict[str, int]:
    """{language: bytes of its text}."""
    sizes = Counter[str]()
    for group in range(file.metadata.num_row_groups):
        sizes[_language(file, group)] += _column(file, group, "raw_content").total_uncompressed_size
    return sizes


def _column(file: pq.ParquetFile, group: int, name: str) -> Any:
    paths = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    return file.metadata.row_group(group).column(paths.index(name))


class DroppedFile:
    """A file of pages and documents that are not in the corpus: tables in, Parquet of the schema `DROPPED` out."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, DROPPED, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, documents: pa.Table | pa.RecordBatch, reason: str) -> None:
        """Writes what was dropped for this reason; columns that it does not have are null."""
        if len(documents):
            there = {name: documents.column(name) for name in documents.schema.names}
            there["reason"] = pa.repeat(reason, len(documents))
            arrays = [there.get(f.name, pa.nulls(len(documents), f.type)) for f in DROPPED]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=DROPPED))


class _Parquet:
    """Tables in, a Parquet file out: each one is a row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class _JsonLines:
    """Tables in, CCNet's records out: a JSON object a line, gzip. The same documents give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("wb")
        self._file = gzip.GzipFile("", "wb", GZIP_LEVEL, self._raw, mtime=0)

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            for name in ("perplexity", "reference_score"):
                if name in row and row[name] is None:
                    del row[name]
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        with self._raw:
            self._file.close()


class _File:
    """A corpus file: small tables in, pieces of ROW_GROUP_BYTES out, however few documents a segment has."""

    def __init__(self, writer: _Parquet | _JsonLines) -> None:
        self.counts = {"documents": 0, "chars": 0}
        self._writer = writer
        self._tables: list[pa.Table] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._writer):
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
            self._writer.write(pa.concat_tables(self._tables))
        self._tables, self._bytes = [], 0
