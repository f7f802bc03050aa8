"""The road of pages through the data stage: a finished run in, pages out with what happened to each line, and why.

A page's lines are read from the crawl again, its scores are those of `mine`, its marks those of `dedup`; the rules and
cut-offs are the run's. Where a line was first seen is looked up in the paragraph keys of all segments, within bounds.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccnet.buckets import bucket
from ccnet.corpus import SIGNALS, CorpusRules, MinedSegment
from ccnet.crawl import Source
from ccnet.dedup import KeyFiles, SegmentMarks, first_in_document, partition_of, segment_offsets
from ccnet.filter import is_held_out
from ccnet.normalize import paragraph_keys
from ccnet.wet import read_pages
from pipeline.outputs import read_json
from pipeline.stages.dedup import marks_files
from pipeline.stages.hash import keys_file
from pipeline.tokens.encode import is_validation

LIKELY = np.uint64((1 << 20) - 1)
KEYS_BYTES = 2 << 30  # of paragraph keys that are read to find where lines were first seen
FIRST_SEGMENTS = 32  # segments that are read again to find their pages
REASONS = {
    "duplicate": "duplicate: another page has it",
    "repeated": "repeated: this page has it further up",
    "earlier_run": "duplicate: an earlier run has it (dedup.seen)",
    "rule": "a rule of quality.rules takes it out",
}


@dataclass(frozen=True)
class First:
    """The first page of the crawl that has a line, in crawl order."""

    url: str
    segment: str


@dataclass(frozen=True)
class Line:
    """A line of a page: its text, its key, and why it is not in the document (`REASONS`; empty where it is).

    `perplexity`: where the document has one and the line has a piece. `first`: the page that has it first, if that was found.
    """

    text: str
    key: int
    why: str = ""
    perplexity: float | None = None
    first: First | None = None

    @property
    def reason(self) -> str:
        """Why it was taken out, in words; empty where it was not."""
        if self.why == "duplicate" and self.first:
            return f"duplicate: first seen on {self.first.url} (segment {self.first.segment})"
        return REASONS[self.why] if self.why else ""


@dataclass(frozen=True)
class Page:
    """A page of the crawl and its outcome: `corpus` and its bucket, or the reason why it was dropped.

    `number` is its place among the pages of its segment, from 0. What was not found out before it was dropped is None.
    `steps` are (stage, what happened there) in the order of the data.
    """

    url: str
    segment: str
    number: int
    digest: str
    date: str
    title: str
    chars: int
    outcome: str
    bucket: str | None
    language: str | None
    language_score: float | None
    perplexity: float | None
    steps: list[tuple[str, str]]
    lines: list[Line]


@dataclass(frozen=True)
class Scores:
    """What `mine` and the rules say of a document: its row in `mine/{segment}.parquet`, its scores and outcome."""

    row: int
    language: str
    language_score: float
    perplexity: float | None
    outcome: str
    bucket: str | None


class FinishedRun:
    """What the manifests of a run say about its pages. Raises ValueError where `mine` has not finished."""

    def __init__(self, out: Path) -> None:
        self.out = out
        if not self._path("mine").exists():
            raise ValueError(f"{out} has no finished mine: the road of a page is told from there on")
        self.segments: list[dict[str, Any]] = self.manifest("fetch")["result"]["segments"]

    def _path(self, stage: str) -> Path:
        return self.out / "records" / f"{stage}.json"

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage; {"result": {}, "config": {}} of another."""
        return dict(read_json(self._path(stage))) if self._path(stage).exists() else {"result": {}, "config": {}}

    @cached_property
    def mined(self) -> dict[str, Any]:
        """The manifest of `mine`."""
        return self.manifest("mine")

    @cached_property
    def regrouped(self) -> dict[str, Any]:
        """The manifest of `regroup`."""
        return self.manifest("regroup")

    @cached_property
    def min_length(self) -> int:
        """Characters of a page that is not dropped at once."""
        return int(self.mined["config"].get("crawl.min_length", 0))

    @cached_property
    def keep(self) -> str:
        """The rule of `dedup`: first, or none."""
        return str(self.manifest("dedup")["config"].get("dedup.keep", "first"))

    @cached_property
    def keys(self) -> KeyFiles | None:
        """The paragraph keys of all segments; None where the run has none (`regenerate`)."""
        hashed = {s["name"]: s["partition_keys"] for s in self.manifest("hash")["result"].get("segments", ())}
        if not self.segments or any(s["name"] not in hashed for s in self.segments):
            return None
        counts = np.array([hashed[s["name"]] for s in self.segments], np.int64)
        return KeyFiles([self.out / keys_file(s["name"]) for s in self.segments], counts)

    def source(self, number: int) -> Source:
        """Where segment `number` is read from."""
        segment = self.segments[number]
        path = segment["source"] if "://" in segment["source"] else str(self.out / segment["source"])
        return Source(path, tuple(segment["part"]) if segment.get("part") else None, segment["text_column"])

    def marks(self, number: int) -> SegmentMarks | None:
        """The keep marks of segment `number`, or None where the run has none."""
        if self.keys is None:
            return None
        counts = self.keys.partition_keys
        files = [self.out / marks_files(p)[0] for p in range(counts.shape[1])]
        return SegmentMarks(files, segment_offsets(counts)[number], counts[number])

    def scores(self, number: int) -> dict[tuple[str, str], Scores]:
        """{(url, digest): scores and outcome} of a segment's mined documents."""
        digests = pq.read_table(self.mined_file(number), columns=["digest"]).column("digest").to_pylist()
        return {(url, digest): scores for (url, scores), digest in zip(self.judged(number), digests, strict=True)}

    def judged(self, number: int) -> Iterator[tuple[str, Scores]]:
        """URL, scores and outcome of each of a segment's mined documents, in the order of its file."""
        path = self.mined_file(number)
        pairs = self.manifest("near")["result"].get("pairs")
        near = MinedSegment(self.segments[number]["name"], path, self.out / pairs if pairs else None).rows_to_drop()
        table = pq.read_table(path, columns=["url", *SIGNALS])
        config, result = self.regrouped["config"], self.regrouped["result"]
        cuts = {language: (cut["low"], cut["high"]) for language, cut in result.get("cutoffs", {}).items()}
        reasons = np.full(len(table), "mined", object)
        if result:
            rules = CorpusRules(
                config["dedup.min_length"],
                config["language.threshold"],
                tuple(config["language.keep"]),
                config.get("corpus.rounded", False),
            )
            table, reasons = rules.apply(table, np.isin(np.arange(len(table)), near))
        columns = (table.column(name).to_pylist() for name in ("url", "language", "language_score", "perplexity"))
        for row, (url, language, score, perplexity) in enumerate(zip(*columns, strict=True)):
            chosen = bucket(perplexity, cuts.get(language)) if reasons[row] == "" else None
            yield url, Scores(row, language, score, perplexity, str(reasons[row]) or "corpus", chosen)

    def dropped(self, number: int) -> dict[tuple[str, str], str]:
        """{(url, digest): reason} of the pages of a segment that `mine` dropped, where it wrote them (keep_dropped)."""
        path = self.out / f"dropped/{self.segments[number]['name']}.mine.parquet"
        if not path.exists():
            return {}
        table = pq.read_table(path, columns=["url", "digest", "reason"])
        columns = (table.column(name).to_pylist() for name in table.schema.names)
        return {(url, digest): reason for url, digest, reason in zip(*columns, strict=True)}

    @cached_property
    def _mined_paths(self) -> dict[str, str]:
        return {segment["name"]: segment["path"] for segment in self.mined["result"]["segments"]}

    def mined_file(self, number: int) -> Path:
        """The documents of segment `number`. Raises ValueError where the crawl has another one than was mined."""
        name = self.segments[number]["name"]
        if name not in self._mined_paths:
            raise ValueError(f"{self.out}: segment {name} was not mined: run mine again")
        return self.out / self._mined_paths[name]

    @cached_property
    def _near_pairs(self) -> dict[tuple[str, int], str]:
        pairs = self.manifest("near")["result"].get("pairs")
        if not pairs:
            return {}
        table = pq.read_table(self.out / pairs, columns=["segment", "row", "kept_url"])
        columns = (table.column(name).to_pylist() for name in table.schema.names)
        return {(segment, row): url for segment, row, url in zip(*columns, strict=True)}

    def near_url(self, segment: str, row: int) -> str | None:
        """The URL of the document that stayed in place of a near-duplicate."""
        return self._near_pairs.get((segment, row))

    @cached_property
    def _tokenized(self) -> Mapping[str, Any]:
        return dict(self.manifest("tokenize")["config"])

    def tokens_step(self, bucket_name: str | None, digest: str) -> str | None:
        """What `tokenize` did with a document of the corpus; None where it has not run."""
        if not self._tokenized:
            return None
        if bucket_name not in self._tokenized["tokenize.buckets"]:
            return f"not tokenized: the bucket {bucket_name} is not in tokenize.buckets"
        held = is_validation(digest, self._tokenized["tokenize.validation"])
        return "tokenized, to validate with" if held else "tokenized, to train on"


@dataclass(frozen=True)
class SeenPage:
    """A page as it comes by: its outcome is known, its lines are made only when it is chosen (`page`)."""

    run: FinishedRun
    segment: int
    number: int
    url: str
    digest: str
    outcome: str
    scores: Scores | None
    row: pa.RecordBatch  # one row of `PAGE`
    keys: np.ndarray  # uint64[lines]; nothing of a page that is too short, nor in the next two
    keep: np.ndarray  # bool[lines]: by the marks
    first: np.ndarray  # bool[lines]: for the first time in this page

    @property
    def group(self) -> tuple[str, str, str]:
        """(outcome, language, bucket), with empty texts for what it does not have."""
        scores = self.scores
        return self.outcome, (scores.language if scores else ""), (scores and scores.bucket) or ""

    def page(self) -> Page:
        """The whole of it."""
        [columns] = self.row.to_pylist()
        texts = columns["raw_content"].split("\n")
        scores = self.scores
        if len(self.keys):
            whys = np.where(self.keep, "", np.where(self.first, "duplicate", "repeated")).tolist()
            lines = [Line(text, int(key), why) for text, key, why in zip(texts, self.keys, whys, strict=True)]
        else:
            lines = [Line(text, 0) for text in texts]
        if scores:
            lines = self._with_scores(lines, scores.row)
        name = self.run.segments[self.segment]["name"]
        return Page(
            url=self.url,
            segment=name,
            number=self.number,
            digest=self.digest,
            date=columns["date_download"],
            title=columns["title"],
            chars=len(columns["raw_content"]),
            outcome=self.outcome,
            bucket=scores.bucket if scores else None,
            language=scores.language if scores else None,
            language_score=scores.language_score if scores else None,
            perplexity=scores.perplexity if scores else None,
            steps=self._steps(name, len(columns["raw_content"]), lines),
            lines=lines,
        )

    def _with_scores(self, lines: list[Line], row: int) -> list[Line]:
        with pq.ParquetFile(self.run.mined_file(self.segment)) as file:
            start = 0
            for group in range(file.metadata.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < start + rows:
                    names = [n for n in ("line_ids", "paragraph_perplexity") if n in file.schema_arrow.names]
                    found = file.read_row_group(group, columns=names).slice(row - start, 1).to_pylist()[0]
                    break
                start += rows
        values = found.get("paragraph_perplexity") or [None] * len(found["line_ids"])
        by_line = dict(zip(found["line_ids"], values, strict=True))
        result = []
        for number, line in enumerate(lines):
            if number not in by_line:
                unmarked = "rule" if self.run.keys else "duplicate"  # a run without keys has no marks either
                result.append(dataclasses.replace(line, why=line.why or unmarked))
                continue
            value = by_line[number]
            finite = None if value is None or value != value else float(value)
            result.append(dataclasses.replace(line, perplexity=finite))
        return result

    def _steps(self, segment: str, chars: int, lines: Sequence[Line]) -> list[tuple[str, str]]:
        run, scores, outcome = self.run, self.scores, self.outcome
        place = f"page {self.number} of segment {segment}" if len(run.segments) > 1 else f"page {self.number}"
        steps = [("crawl", f"{place}: {chars:,} characters, {len(lines):,} lines")]
        if outcome == "short":
            return [*steps, ("mine", f"dropped: fewer than {run.min_length} characters (crawl.min_length)")]
        whys = Counter(line.why for line in lines)
        gone = f"{whys['duplicate']:,} of {len(lines):,} lines go because other pages have them"
        steps.append(("dedup", gone + (f", {whys['repeated']:,} because this page repeats them" if whys["repeated"] else "")))
        if whys["rule"]:
            steps.append(("mine", f"{whys['rule']:,} lines go by quality.rules"))
        if outcome == "duplicate":
            return [*steps, ("mine", "dropped: no line is left")]
        if outcome == "held_out":
            return [*steps, ("mine", "held out for the training of language models")]
        if outcome == "language_not_mined":
            return [*steps, ("mine", "dropped: its language is not in language.mine")]
        if scores is None:
            return [*steps, ("mine", f"dropped: {outcome}, by quality.rules")]
        perplexity = (
            "no language model, so no perplexity" if scores.perplexity is None else f"perplexity {scores.perplexity:,.1f}"
        )
        steps.append(("mine", f"language {scores.language} with score {scores.language_score:.2f}; {perplexity}"))
        if outcome == "corpus":
            steps.append(("regroup", f"in the corpus, bucket {scores.bucket}"))
            if (tokens := run.tokens_step(scores.bucket, self.digest)) is not None:
                steps.append(("tokenize", tokens))
        elif outcome != "mined":
            config = run.regrouped["config"]
            why = {
                "short_after_dedup": f"fewer than {config.get('dedup.min_length')} characters are left (dedup.min_length)",
                "language_score": f"the language scores less than {config.get('language.threshold')} (language.threshold)",
                "language_not_kept": f"{scores.language} is not in language.keep",
                "near_duplicate": f"nearly the same as {run.near_url(segment, scores.row)}",
            }[outcome]
            steps.append(("regroup", f"dropped: {why}"))
        return steps


def segment_pages(run: FinishedRun, number: int) -> Iterator[SeenPage]:
    """The pages of a segment in crawl order, each with its outcome.

    Of a run without keys (`regenerate`) only those whose outcome is known: mined ones and those that are too short.
    Raises OSError where the segment can't be read any more, ValueError where it has changed.
    """
    scores, marks, gone = run.scores(number), run.marks(number), run.dropped(number)
    unknown = "quality_rule" if run.mined["config"].get("quality.rules") else "language_not_mined"
    held_out = float(run.manifest("lm")["result"].get("held_out") or 0)
    seen = 0
    for batch in read_pages(run.source(number), Counter(), min_length=1):
        chars = pc.utf8_length(batch.column("raw_content")).to_numpy(zero_copy_only=False)
        long = chars >= run.min_length
        keys, offsets = paragraph_keys(batch.column("raw_content").filter(pa.array(long)))
        first = first_in_document(keys, offsets)
        keep = marks.apply(keys, offsets) if marks else first
        urls, digests = batch.column("url").to_pylist(), batch.column("digest").to_pylist()
        document = 0
        for row, (url, digest) in enumerate(zip(urls, digests, strict=True)):
            outcome, found, lines = "short", None, slice(0)
            if long[row]:
                lines = slice(offsets[document], offsets[document + 1])
                document += 1
                found = scores.get((url, digest))
                if not keep[lines].any():
                    outcome = "duplicate"
                elif is_held_out(digest, held_out):
                    outcome = "held_out"
                elif found:
                    outcome = found.outcome
                elif marks:
                    outcome = gone.get((url, digest), unknown)
                else:
                    continue
            marked = keys[lines], keep[lines], first[lines]
            yield SeenPage(run, number, seen + row, url, digest, outcome, found, batch.slice(row, 1), *marked)
        seen += len(batch)


def first_seen(run: FinishedRun, keys: Iterable[int]) -> dict[int, First]:
    """The first page that has each key, of those that are found within the bounds: KEYS_BYTES, FIRST_SEGMENTS."""
    if run.keys is None:
        return {}
    wanted = np.unique(np.fromiter(keys, np.uint64))
    partitions = run.keys.partition_keys.shape[1]
    left = {int(p): wanted[partition_of(wanted, partitions) == p] for p in np.unique(partition_of(wanted, partitions))}
    likely = np.zeros(int(LIKELY) + 1, np.bool_)  # by the low bits of a key: few keys have to be looked up in `left`
    likely[wanted & LIKELY] = True
    by_segment: dict[int, list[np.ndarray]] = {}
    budget = KEYS_BYTES
    for number in range(len(run.segments)):
        for partition in [p for p, those in left.items() if len(those)]:
            there = run.keys.segment(number, partition)
            budget -= there.nbytes
            maybe = there[likely[there & LIKELY]]
            found = np.isin(left[partition], maybe)
            if found.any():
                by_segment.setdefault(number, []).append(left[partition][found])
                left[partition] = left[partition][~found]
        if budget < 0 or not any(map(len, left.values())):
            break
    result: dict[int, First] = {}
    chosen = sorted(by_segment, key=lambda number: (-sum(map(len, by_segment[number])), number))[:FIRST_SEGMENTS]
    for number in sorted(chosen):
        result |= _first_pages(run, number, np.concatenate(by_segment[number]))
    return result


def _first_pages(run: FinishedRun, number: int, keys: np.ndarray) -> dict[int, First]:
    found: dict[int, First] = {}
    for batch in read_pages(run.source(number), Counter(), min_length=max(run.min_length, 1)):
        there, offsets = paragraph_keys(batch.column("raw_content"))
        places = np.flatnonzero(np.isin(there, keys))
        for key, first in zip(*np.unique(there[places], return_index=True), strict=True):
            if int(key) not in found:
                document = int(np.searchsorted(offsets, places[first], side="right")) - 1
                url = batch.column("url")[document].as_py()
                found[int(key)] = First(url, run.segments[number]["name"])
        if len(found) == len(keys):
            break
    return found


def with_first_pages(run: FinishedRun, pages: Sequence[Page]) -> list[Page]:
    """The pages with `Line.first` of their duplicated lines.

    A line that was taken out of the first page that has it, with dedup.keep=first, is one of an earlier run.
    """
    keys = {line.key for page in pages for line in page.lines if line.why == "duplicate"}
    found = first_seen(run, keys) if keys else {}

    def told(page: Page, line: Line) -> Line:
        first = found.get(line.key)
        if line.why != "duplicate" or first is None:
            return line
        if first != First(page.url, page.segment):
            return dataclasses.replace(line, first=first)
        return dataclasses.replace(line, why="earlier_run") if run.keep == "first" else line

    return [dataclasses.replace(page, lines=[told(page, line) for line in page.lines]) for page in pages]


def find_pages(out: Path, url: str) -> list[Page]:
    """The road of the pages with this URL: of all that were mined, else of the first that the crawl has.

    The URLs of mined documents are looked at first; a page that was dropped before is looked for in the whole crawl.
    Returns [] where the crawl has no such page. Raises ValueError where `mine` has not finished.
    """
    run = FinishedRun(out)
    numbers = [
        n for n in range(len(run.segments)) if pq.read_table(run.mined_file(n), columns=["url"], filters=[("url", "=", url)])
    ]
    pages = []
    for number in numbers or range(len(run.segments)):
        for seen in segment_pages(run, number):
            if seen.url == url and (seen.scores or not numbers):
                pages.append(seen.page())
        if pages and not numbers:
            break
    return with_first_pages(run, pages)
