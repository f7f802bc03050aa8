"""Two runs side by side: what moved between buckets, and by how much the counts differ.

In: the folders of two finished runs (other thresholds, another snapshot, other language models). Out: a section of figures
(`pipeline.figures`), examples among them. Pages are matched by their URL; of the documents only the small columns are read.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from ccnet.buckets import BUCKETS
from pipeline.figures import Chart, Column, Figure, Run, Section, columns_of, figures
from pipeline.page_road import FinishedRun

MATCHED = 10_000_000  # documents of a run that are matched, about; of a larger one a share of the URLs
EXAMPLES = 3  # of each move
EXCERPT = 240  # characters
ABSENT = "not mined"  # never crawled there, too short, a duplicate, held out


@dataclass(frozen=True)
class _Documents:
    """The mined documents of a run by URL, each URL once: parallel arrays, sorted by `key`."""

    key: np.ndarray  # uint64: xxh3-64 of the URL
    outcome: np.ndarray  # int16: number in `names`
    perplexity: np.ndarray  # float32, nan without
    place: np.ndarray  # int64[documents, 2]: segment and row
    names: list[str]


def compare(out: Path, against: Path) -> Section:
    """The section `compare` of the run `out`, set against the run `against`.

    Raises ValueError where one of them has no finished `regroup`.
    """
    runs = {out: FinishedRun(out), against: FinishedRun(against)}
    for folder, run in runs.items():
        if not run.regrouped["result"]:
            raise ValueError(f"report.against: {folder} has no finished regroup: there is no corpus to compare")
    mined = max(run.mined["result"]["statistics"]["documents"]["kept"] for run in runs.values())
    share = min(1.0, MATCHED / max(mined, 1))
    here, there = (_documents(run, share) for run in runs.values())
    names = [
        name for name in (*BUCKETS, *sorted({*here.names, *there.names} - {*BUCKETS})) if name in (*here.names, *there.names)
    ]
    names.append(ABSENT)
    both = np.union1d(here.key, there.key)
    now, before = _outcomes(here, both, names), _outcomes(there, both, names)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (before, now), 1)
    of = "" if share == 1 else f" Matched were the URLs of a share of {share:.3%}, chosen by their hash."
    matrix = Figure(
        "compare-moves",
        "What moved between buckets",
        (Column("there, and here →", "text"), *(Column(name, "count") for name in names)),
        [[name, *map(int, row)] for name, row in zip(names, counts, strict=True)],
        f"Pages by URL: rows are what {against} made of them, columns what this run did. On the diagonal nothing changed."
        f" “{ABSENT}”: not crawled there, too short, held out, or a duplicate.{of}",
    )
    examples = list(_examples(runs[out], here, runs[against], there, both, before, now, names))
    columns = columns_of(
        ("there", "text"),
        ("here", "text"),
        ("perplexity there", "number"),
        ("perplexity here", "number"),
        ("url", "quote"),
        ("text", "quote"),
    )
    moved = Figure(
        "compare-examples",
        "Examples of what moved",
        columns,
        examples,
        "A few pages of each move, chosen by the hash of their URL, with the beginning of their text.",
    )
    tables = [*_settings(runs[out], runs[against]), _counts(out, against), *_cutoffs(runs[out], runs[against]), matrix]
    return Section("compare", "Against another run", [*tables, *([moved] if examples else [])])


def _documents(run: FinishedRun, share: float) -> _Documents:
    keys, outcomes, perplexities, places = array("Q"), array("h"), array("f"), array("q")
    names: dict[str, int] = {}
    limit = int(share * (2**64 - 1))
    for number in range(len(run.segments)):
        for row, (url, scores) in enumerate(run.judged(number)):
            key = xxhash.xxh3_64_intdigest(url.encode())
            if key <= limit:
                name = scores.bucket or scores.outcome
                keys.append(key)
                outcomes.append(names.setdefault(name, len(names)))
                perplexities.append(np.nan if scores.perplexity is None else scores.perplexity)
                places.extend((number, row))
    unique, first = np.unique(np.array(keys, np.uint64), return_index=True)
    place = np.array(places, np.int64).reshape(-1, 2)[first]
    return _Documents(
        unique, np.array(outcomes, np.int16)[first], np.array(perplexities, np.float32)[first], place, list(names)
    )


def _index(documents: _Documents, keys: np.ndarray) -> np.ndarray:
    """The number of each key's document, -1 where it has none."""
    if not len(documents.key):
        return np.full(len(keys), -1)
    at = np.minimum(np.searchsorted(documents.key, keys), len(documents.key) - 1)
    return np.where(documents.key[at] == keys, at, -1)


def _outcomes(documents: _Documents, keys: np.ndarray, names: list[str]) -> np.ndarray:
    """The number in `names` of each key's outcome."""
    at = _index(documents, keys)
    numbers = np.array([*(names.index(name) for name in documents.names), names.index(ABSENT)])
    return numbers[np.where(at < 0, len(documents.names), documents.outcome[at] if len(documents.outcome) else 0)]


def _examples(
    run: FinishedRun,
    here: _Documents,
    other: FinishedRun,
    there: _Documents,
    keys: np.ndarray,
    before: np.ndarray,
    now: np.ndarray,
    names: list[str],
) -> Iterator[list[Any]]:
    for old, new in sorted(set(zip(before[before != now].tolist(), now[before != now].tolist(), strict=True))):
        chosen = np.flatnonzero((before == old) & (now == new))[:EXAMPLES]  # keys are sorted, and hashes
        for mine, theirs in zip(_index(here, keys[chosen]), _index(there, keys[chosen]), strict=True):
            source, documents, number = (run, here, mine) if mine >= 0 else (other, there, theirs)
            url, text = _excerpt(source, *documents.place[number].tolist())
            values = [_finite(d.perplexity[n]) if n >= 0 else None for d, n in ((there, theirs), (here, mine))]
            yield [names[old], names[new], *values, url, text]


def _finite(value: np.float32) -> float | None:
    return None if np.isnan(value) else float(value)


def _excerpt(run: FinishedRun, segment: int, row: int) -> tuple[str, str]:
    """URL and the beginning of the text of a mined document."""
    with pq.ParquetFile(run.mined_file(segment)) as file:
        start = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < start + rows:
                break
            start += rows
        found: dict[str, Any] = file.read_row_group(group, columns=["url", "raw_content"]).slice(row - start, 1).to_pylist()[0]
    text = found["raw_content"]
    return found["url"], text if len(text) <= EXCERPT else f"{text[:EXCERPT]}…"


def _settings(run: FinishedRun, other: FinishedRun) -> list[Figure]:
    """The keys of the data stage in which the runs differ."""
    stages = ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup")
    configs = [{k: v for stage in stages for k, v in r.manifest(stage)["config"].items()} for r in (run, other)]
    rows = [
        [name, _text(configs[1].get(name)), _text(configs[0].get(name))]
        for name in sorted({*configs[0], *configs[1]})
        if configs[0].get(name) != configs[1].get(name)
    ]
    note = f"Here: {run.out}; there: {other.out}. "
    note += "The keys of the data stage in which they differ." if rows else "The data stage has the same configuration in both."
    columns = Column("key", "text"), Column("there", "text"), Column("here", "text")
    return [Figure("compare-settings", "Settings", columns, rows, note)]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _counts(out: Path, against: Path) -> Figure:
    """The funnel's rows of both, and the buckets'."""

    def rows(folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
        found = {f.name: f for section in figures(folder, Run(folder).read()) for f in section.figures}
        funnel = {(row[0], row[1].split(":")[0]): (row[2], row[4]) for row in found["funnel"].rows} if "funnel" in found else {}
        buckets = found["buckets"].rows if "buckets" in found else []
        return funnel | {("bucket", f"{row[0]} {row[1]}"): (row[2], row[3]) for row in buckets}

    here, there = rows(out), rows(against)
    nothing = (0, 0)
    table = [
        [*name, *(counts.get(name, nothing)[measure] for measure in (0, 1) for counts in (there, here))]
        for name in [*here, *(name for name in there if name not in here)]
    ]
    columns = columns_of(
        ("", "text"),
        ("what", "text"),
        ("documents there", "count"),
        ("documents here", "count"),
        ("characters there", "count"),
        ("characters here", "count"),
    )
    note = "The funnel and the buckets of both runs, in documents and characters."
    return Figure("compare-counts", "Counts side by side", columns, table, note, Chart("grouped", 1, (2, 3)))


def _cutoffs(run: FinishedRun, other: FinishedRun) -> list[Figure]:
    cuts = [r.regrouped["result"]["cutoffs"] for r in (other, run)]
    rows = [
        [language, *(cut.get(language, {}).get(end) for end in ("low", "high") for cut in cuts)]
        for language in sorted({*cuts[0], *cuts[1]})
    ]
    names = ("head ends there", "head ends here", "middle ends there", "middle ends here")
    columns = Column("language", "text"), *(Column(name, "number") for name in names)
    note = "Cut-offs of perplexity. They compare only where the language models are the same."
    return [Figure("compare-cutoffs", "Cut-offs side by side", columns, rows, note)] if rows else []
