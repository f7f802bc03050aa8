"""The figures of a run: its manifests, records and training metrics in, sections of plain tables out.

What the HTML report, the terminal and the live view show stands here and nowhere else. The corpus is never read.

    Run(out).read()         what is known of each stage, of a running one from the records that are there
    figures(out, stages)    [Section(name, title, [Figure, …]), …]

A `Figure` is a table: `columns` of a kind each, `rows` of plain values (`None`: not known), a `note` that says what it
shows, and how it may be drawn (`Chart`). `shown(value, kind)` is a value's text. `dataclasses.asdict` of a section is JSON.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ccnet.buckets import bin_edges
from ccnet.stats import MEASURES, Total, chain, merge
from pipeline.outputs import read_json
from pipeline.progress import human_bytes, human_seconds
from pipeline.stages import SPECS
from pipeline.stages.train import FOLDER
from pipeline.training.metrics import read_metrics

Kind = Literal["text", "quote", "value", "count", "number", "share", "bytes", "seconds"]
TOP = 30  # rows of long tables
POINTS = 300  # rows of a training's table
BINS_OF_A_BAR = 20  # of a perplexity histogram: 10 per cent of perplexity
EVENTS = "events.jsonl"
LAST_EVENTS = 200

REASONS = {
    "short": "too few characters for a page (crawl.min_length)",
    "duplicate": "paragraphs that an earlier page has, and pages of nothing else",
    "held_out": "kept for the training of language models",
    "not_held_out": "not kept for the training of language models",
    "language_not_mined": "the language is not in language.mine",
    "short_after_dedup": "too few characters after deduplication (dedup.min_length)",
    "language_score": "the language is not certain enough (language.threshold)",
    "language_not_kept": "the language is not in language.keep",
    "near_duplicate": "nearly the same as an earlier document",
    "unlike_references": "less like the pages that Wikipedia cites than references.threshold",
    "evaluation_set": "has a piece of an evaluation set (quality.evaluations)",
    "quality_rule": "a rule of quality.rules",
    "bucket": "a perplexity bucket that is not tokenized (tokenize.buckets)",
}


@dataclass(frozen=True)
class Column:
    """A column: its heading, and what its values are.

    `text` are words of this program, `quote` words from the crawl; `count` whole numbers, `number` others, `share` from 0 to
    1; `bytes`, `seconds`; `value` is any of text, whole and other numbers.
    """

    name: str
    kind: Kind


@dataclass(frozen=True)
class Chart:
    """How a figure is drawn, by the numbers of its columns.

    `bars`: a bar a row, named by column `x`, made of the columns `values` end to end. `grouped`: a bar for each of `values` a
    row. `histogram`: a bar a row from the value in column `x` to that in the next column. `lines`: a line for each of
    `values` over the column `x`. `marks`: named values on the x axis.
    """

    kind: Literal["bars", "grouped", "histogram", "lines"]
    x: int
    values: tuple[int, ...]
    logarithmic: bool = False
    marks: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Figure:
    """A table with a name that no other figure of the run has (a-z, 0-9 and -)."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[list[Any]]
    note: str = ""
    chart: Chart | None = None


@dataclass(frozen=True)
class Section:
    """Figures on one step of the road from crawl to model."""

    name: str
    title: str
    figures: list[Figure]


@dataclass(frozen=True)
class StageState:
    """What is known of a stage: the `result` of its manifest, or as much of it as the records of a running one give.

    `digest` and `inputs` ({stage that was read: its digest then}) are those of a finished stage.
    """

    result: dict[str, Any]
    config: dict[str, Any]
    units: int
    seconds: float
    bytes: int
    finished: bool
    digest: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


class Run:
    """The stages of a run as they are; what was read is remembered, so that reading again costs only what is new."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._manifests: dict[str, tuple[int, StageState]] = {}
        self._partial: dict[str, _Partial] = {}

    def read(self) -> dict[str, StageState]:
        """{stage: state}, in the order of the data, of the stages that have begun to write records."""
        states: dict[str, StageState] = {}
        for name in SPECS:
            if name == "report":
                continue
            state = self._finished(name) or self._running(name, states)
            if state is not None:
                states[name] = state
        return states

    def _finished(self, name: str) -> StageState | None:
        try:
            changed = (self.out / "records" / f"{name}.json").stat().st_mtime_ns
            if name not in self._manifests or self._manifests[name][0] != changed:
                m = read_json(self.out / "records" / f"{name}.json")
                written = sum(entry["bytes"] for entry in m["outputs"].values())
                state = StageState(m["result"], m["config"], m["units"], m["seconds"], written, True, m["digest"], m["inputs"])
                self._manifests[name] = changed, state
        except FileNotFoundError:
            return None
        self._partial.pop(name, None)
        return self._manifests[name][1]

    def _running(self, name: str, before: Mapping[str, StageState]) -> StageState | None:
        folder = self.out / "records" / name
        partial = self._partial.setdefault(name, _Partial())
        if not partial.update(folder):
            partial = self._partial[name] = _Partial()
            partial.update(folder)
        if not partial.seen:
            return None
        result = _result(name, partial.rounds(), before)
        config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        return StageState(result, config, len(partial.seen), partial.seconds, partial.bytes, finished=False)


class _Partial:
    """The sum of a stage's records so far."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.added: dict[str, dict[str, Total]] = {}  # {round: {group: statistics}}
        self.seconds, self.bytes = 0.0, 0

    def update(self, folder: Path) -> bool:
        """Adds what is new. Returns whether all that was added before is still there."""
        found = _record_names(folder)
        if not self.seen <= found:
            return False
        for name in sorted(found - self.seen):
            try:
                record = read_json(folder / name)
            except FileNotFoundError:  # its stage has taken it back since
                continue
            self.seen.add(name)
            self.seconds += record["seconds"]
            self.bytes += sum(entry["bytes"] for entry in record["outputs"].values())
            round_name = name.partition("/")[0]
            if round_name in _ADDED:
                group = _GROUPS.get(round_name, lambda unit: "")(record["unit"])
                counts = record["statistics"]["counts"] if round_name == "read" else record["statistics"]
                counts = {k: v for k, v in counts.items() if k != "partition_keys"}
                self.added.setdefault(round_name, {}).setdefault(group, Total()).add(counts)
        return True

    def rounds(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{round: {group: statistics}}"""
        return {name: {group: sums.statistics() for group, sums in groups.items()} for name, groups in self.added.items()}


def _record_names(folder: Path) -> set[str]:
    """round/xx/unit.json of a stage's records. By their names alone: of many, `Path` objects would take most of the time."""
    rounds = [path.name for path in folder.iterdir() if path.is_dir()] if folder.exists() else []
    parts = [f"{name}/{part}" for name in rounds for part in os.listdir(folder / name) if (folder / name / part).is_dir()]
    return {f"{part}/{file}" for part in parts for file in os.listdir(folder / part) if file.endswith(".json")}


_GROUPS = {  # of what the units of a round are parts, by their names
    "regroup": lambda unit: unit.rsplit("-", 1)[0],
    "read": lambda unit: unit.split(".", 1)[0],
    "tokenize": lambda unit: unit.split(".", 1)[0],
}
_ADDED = ("hash", "mine", "judge", "regroup", "read", "tokenize")  # rounds whose statistics are sums


def _result(name: str, rounds: Mapping[str, Mapping[str, Any]], before: Mapping[str, StageState]) -> dict[str, Any]:
    """As much of a stage's result as its records give; {} where they give nothing that can be shown."""
    if name == "hash" and "hash" in rounds:
        return {"statistics": rounds["hash"][""]}
    if name == "mine" and "mine" in rounds:
        return {"statistics": rounds["mine"][""], "frequent": []}
    if name == "regroup" and "judge" in rounds and "mine" in before and before["mine"].result:
        statistics = rounds["judge"][""]
        funnel = chain(before["mine"].result["statistics"], statistics)
        return {"statistics": statistics, "funnel": funnel, "cutoffs": {}, "buckets": dict(rounds.get("regroup", {}))}
    if name == "sources" and "read" in rounds:
        return {"statistics": dict(rounds["read"])}
    if name == "tokenize" and "tokenize" in rounds:
        sources = dict(rounds["tokenize"])
        return {"sources": sources, **merge(sources.values())}
    return {}


def figures(out: Path, states: Mapping[str, StageState]) -> list[Section]:
    """The sections of a run, those without a figure left out; `states` is what `Run(out).read()` returned.

    Takes whatever there is: a run of some stages, a running one, a training alone.
    """
    results = {name: state.result for name, state in states.items() if state.result}
    metrics = read_metrics(out / FOLDER)
    sections = [
        Section("overview", "At a glance", _overview(results, states, metrics)),
        Section("funnel", "From crawl to tokens", _funnel(results, states)),
        Section("sources", "Other sources", _sources(results)),
        Section("languages", "Languages and buckets", _languages(results)),
        Section("perplexity", "Perplexity", _perplexity(results)),
        Section("quality", "Language scores and lengths", _scores(results, states)),
        Section("references", "Likeness to cited pages", _references(results)),
        Section("duplicates", "Duplicated text", _duplicates(results)),
        Section("domains", "Domains", _domains(results)),
        Section("tokens", "Tokens", _tokens(results)),
        Section("training", "Training", _training(results, metrics, _events(out))),
        Section("input", "Bad input", _bad_input(results)),
        Section("work", "Work", _work(results, states)),
    ]
    return [section for section in sections if section.figures]


def shown(value: Any, kind: Kind) -> str:
    """A value's text for a reader; the empty text for one that is not known."""
    if value is None:
        return ""
    if kind == "share":
        return f"{100 * value:.1f} %"
    if kind == "bytes":
        return human_bytes(value)
    if kind == "seconds":
        return human_seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isfinite(value) and abs(value) >= 100:
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}"
    return f"{value:.4g}"


def columns_of(*named: tuple[str, Kind]) -> tuple[Column, ...]:
    """Columns from their names and kinds."""
    return tuple(Column(name, kind) for name, kind in named)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _overview(
    results: Mapping[str, Any], states: Mapping[str, StageState], metrics: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    rows: list[list[Any]] = []
    if "hash" in results:
        read = results["hash"]["statistics"]
        rows.append(["pages read", read.get("pages_read", 0)])
        rows.append(["text read", human_bytes(read.get("bytes_read", 0))])
    if "regroup" in results:
        funnel = results["regroup"]["funnel"]
        rows.append(["documents kept", funnel["documents"]["kept"]])
        rows.append(["characters kept", shown(_ratio(funnel["chars"]["kept"], funnel["chars"]["in"]), "share")])
        rows.append(["languages kept", len(results["regroup"]["statistics"]["languages"])])
    if "tokenize" in results:
        rows.append(["tokens to train on", results["tokenize"]["train"]["tokens"]])
    if "train" in results:
        rows.append(["parameters", results["train"]["parameters"]])
    if metrics:
        rows.append(["tokens trained on", metrics[-1]["tokens"]])
        rows.append(["last training loss", metrics[-1]["loss"]])
    if "evaluate" in results:
        rows.append(["validation perplexity", results["evaluate"]["after"]["perplexity"]])
    if states:
        rows.append(["work of all stages", human_seconds(sum(_core_seconds(n, s) for n, s in states.items()))])
    running = [name for name, state in states.items() if not state.finished]
    if running:
        rows.append(["not finished", ", ".join(running)])
    old = [
        name
        for name, state in states.items()
        if any(read in states and states[read].digest != digest for read, digest in state.inputs.items())
    ]
    if old:
        rows.append(["out of date", ", ".join(old)])
    columns = columns_of(("", "text"), ("value", "value"))
    return [Figure("overview", "The run in figures", columns, rows)] if rows else []


def _funnel(results: Mapping[str, Any], states: Mapping[str, StageState]) -> list[Figure]:
    if "mine" not in results or "documents" not in results["mine"]["statistics"]:
        return []
    mined = results["mine"]["statistics"]
    first = [mined[measure]["in"] for measure in MEASURES]
    rows: list[list[Any]] = []

    def add(step: str, why: str, documents: int, lines: int | None, chars: int, tokens: int | None = None) -> None:
        rows.append([step, why, documents, lines, chars, _ratio(chars, first[1]), tokens])

    def add_kept(what: str, statistics: Mapping[str, Any]) -> None:
        add("kept", what, statistics["documents"]["kept"], statistics["lines"]["kept"], statistics["chars"]["kept"])

    def add_step(statistics: Mapping[str, Any]) -> None:
        documents, chars, lines = (statistics[measure]["dropped"] for measure in MEASURES)
        for reason in sorted(documents, key=lambda reason: -chars[reason]):
            if documents[reason] or chars[reason]:
                why = f"{reason}: {REASONS[reason]}" if reason in REASONS else reason
                add("dropped", why, documents[reason], lines[reason], chars[reason])

    add("in", "pages of the crawl", first[0], first[2], first[1])
    add_step(mined)
    add_kept("mined documents", mined)
    if "regroup" in results:
        judged = results["regroup"]["statistics"]
        add_step(judged)
        add_kept("the corpus", judged)
    if "regroup" in results and "crawl" in results.get("tokenize", {}).get("sources", {}):
        taken = states["tokenize"].config.get("tokenize.buckets", [])
        for bucket, counts in sorted(_by_bucket(results["regroup"]["buckets"]).items()):
            if bucket not in taken:
                add("dropped", f"{bucket}: {REASONS['bucket']}", counts["documents"], None, counts["chars"])
        splits = results["tokenize"]["sources"]["crawl"]
        for step, why, split in (("dropped", "kept for validation", "validation"), ("kept", "tokens to train on", "train")):
            counts = splits[split]
            add(step, why, counts["documents"], None, counts["chars"], counts["tokens"])
    columns = columns_of(
        ("", "text"),
        ("what, and why", "text"),
        ("documents", "count"),
        ("lines", "count"),
        ("characters", "count"),
        ("share of characters", "share"),
        ("tokens", "count"),
    )
    note = (
        "Documents, lines and characters on their way, with every reason why some are left behind: what comes into a step is"
        " what it keeps and all it drops. Lines of pages that are too short are not counted; only what is tokenized has tokens."
    )
    return [Figure("funnel", "The funnel", columns, rows, note, Chart("bars", 1, (4,)))]


def _by_bucket(languages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    return merge(languages.values())


def _sources(results: Mapping[str, Any]) -> list[Figure]:
    rows: list[list[Any]] = []
    for source, counts in sorted(results.get("sources", {}).get("statistics", {}).items()):
        documents, chars, lines = (counts[measure] for measure in MEASURES)

        def add(step: str, what: str, *sizes: int, name: str = source, whole: int = chars["in"]) -> None:
            rows.append([step, name, what, *sizes, _ratio(sizes[2], whole)])

        add("in", "", documents["in"], lines["in"], chars["in"])
        for reason, n in sorted(documents["dropped"].items(), key=lambda item: -item[1]):
            if n or chars["dropped"][reason]:
                add("dropped", reason, n, lines["dropped"][reason], chars["dropped"][reason])
        add("kept", "", documents["kept"], lines["kept"], chars["kept"])
    columns = columns_of(
        ("", "text"),
        ("source", "text"),
        ("why", "text"),
        ("documents", "count"),
        ("lines", "count"),
        ("characters", "count"),
        ("share of characters", "share"),
    )
    note = "What came out of each of the other sources, and why some of it was left behind."
    return [Figure("sources", "Documents of other sources", columns, rows, note)] if rows else []


def _languages(results: Mapping[str, Any]) -> list[Figure]:
    if "mine" not in results or "languages" not in results["mine"]["statistics"]:
        return []
    mined = results["mine"]["statistics"]["languages"]
    kept = results["regroup"]["statistics"]["languages"] if "regroup" in results else {}
    nothing = {"documents": 0, "chars": 0}
    whole = sum(entry["chars"] for entry in (kept or mined).values())
    rows = []
    for language in sorted(mined, key=lambda name: (-kept.get(name, nothing)["chars"], -mined[name]["chars"], name)):
        here = kept.get(language, nothing)
        share = _ratio((here if kept else mined[language])["chars"], whole)
        rows.append([language, mined[language]["documents"], mined[language]["chars"], here["documents"], here["chars"], share])
    columns = columns_of(
        ("language", "text"),
        ("documents mined", "count"),
        ("characters mined", "count"),
        ("documents kept", "count"),
        ("characters kept", "count"),
        ("share of the corpus", "share"),
    )
    note = "Languages as fastText names them: what deduplication left of each, and what is in the corpus."
    result = [Figure("languages", "Languages", columns, rows, note, Chart("bars", 0, (4 if kept else 2,)))]
    if "regroup" in results and results["regroup"]["buckets"]:
        buckets = results["regroup"]["buckets"]
        order = sorted(buckets, key=lambda name: (-sum(entry["chars"] for entry in buckets[name].values()), name))
        rows = [
            [language, bucket, entry["documents"], entry["chars"], entry["chars"] / max(entry["documents"], 1)]
            for language in order
            for bucket, entry in buckets[language].items()
        ]
        columns = columns_of(
            ("language", "text"),
            ("bucket", "text"),
            ("documents", "count"),
            ("characters", "count"),
            ("characters a document", "number"),
        )
        note = "The corpus by language and perplexity bucket; languages without a language model have the bucket “all”."
        result.append(Figure("buckets", "Buckets", columns, rows, note))
    return result


def _perplexity(results: Mapping[str, Any]) -> list[Figure]:
    return [*_histograms(results), *_language_models(results)]


def _language_models(results: Mapping[str, Any]) -> list[Figure]:
    trained = results.get("lm", {}).get("trained") or {}
    rows = [[language, c["documents"], c["bytes"], c["pieces"]] for language, c in sorted(trained.items())]
    columns = columns_of(("language", "text"), ("documents", "count"), ("text", "bytes"), ("pieces", "count"))
    note = "What the run trained its own language models on, on pages that are not in the corpus, or on the text of lm.text."
    return [Figure("language-models", "Language models", columns, rows, note)] if rows else []


def _histograms(results: Mapping[str, Any]) -> list[Figure]:
    if "regroup" not in results:
        return []
    cutoffs = results["regroup"]["cutoffs"]
    histograms = results["regroup"]["statistics"]["perplexity"]
    result = []
    for language in sorted(histograms, key=lambda name: (-sum(histograms[name].values()), name)):
        bars: dict[int, int] = {}
        for number, count in histograms[language].items():
            bars[int(number) // BINS_OF_A_BAR] = bars.get(int(number) // BINS_OF_A_BAR, 0) + count
        edges = [
            (bin_edges(bar * BINS_OF_A_BAR)[0], bin_edges((bar + 1) * BINS_OF_A_BAR)[0], n) for bar, n in sorted(bars.items())
        ]
        cut = cutoffs.get(language)
        marks = (("head | middle", cut["low"]), ("middle | tail", cut["high"])) if cut else ()
        note = f"Documents of the corpus in {language} by perplexity; low is near to what its language model was trained on."
        if cut:
            note += f" Cut-offs: head below {shown(cut['low'], 'number')}, middle below {shown(cut['high'], 'number')}."
        columns = columns_of(("from", "number"), ("to", "number"), ("documents", "count"))
        chart = Chart("histogram", 0, (2,), logarithmic=True, marks=marks)
        result.append(Figure(f"perplexity-{language}", f"Perplexity, {language}", columns, _lists(edges), note, chart))
    return result


def _lists(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(row) for row in rows]


def _scores(results: Mapping[str, Any], states: Mapping[str, StageState]) -> list[Figure]:
    if "mine" not in results or "language_score" not in results["mine"]["statistics"]:
        return []
    mined = results["mine"]["statistics"]
    threshold = states["regroup"].config.get("language.threshold") if "regroup" in states else None
    marks = (("threshold", float(threshold)),) if threshold else ()
    score_rows = [
        [max(0.0, (score - 0.5) / 100), min(1.0, (score + 0.5) / 100), count]
        for score, count in sorted((int(k), v) for k, v in merge(mined["language_score"].values()).items())
    ]
    note = "Mined documents of all languages by how certain fastText is of their language, in hundredths."
    columns = columns_of(("from", "number"), ("to", "number"), ("documents", "count"))
    chart = Chart("histogram", 0, (2,), marks=marks)
    result = [Figure("language-scores", "Language scores", columns, score_rows, note, chart)]

    by_language = []
    order = sorted(mined["languages"], key=lambda name: (-mined["languages"][name]["documents"], name))
    for language in order[:TOP]:
        scores, lengths = mined["language_score"][language], mined["length"][language]
        by_language.append(
            [
                language,
                mined["languages"][language]["documents"],
                *(_quantile(scores, share) / 100 for share in (0.1, 0.5, 0.9)),
                *(2 ** _quantile(lengths, share) for share in (0.1, 0.5, 0.9)),
            ]
        )
    columns = columns_of(
        ("language", "text"),
        ("documents mined", "count"),
        ("score, lowest tenth below", "number"),
        ("median score", "number"),
        ("highest tenth from", "number"),
        ("length, shortest tenth from", "count"),
        ("median length from", "count"),
        ("longest tenth from", "count"),
    )
    note = (
        f"Of the {min(len(order), TOP)} largest of {len(order)} languages; lengths are the power of two below, in characters."
    )
    kept = results["regroup"]["statistics"]["length"] if "regroup" in results else {}
    all_kept, all_mined = merge(kept.values()), merge(mined["length"].values())
    length_rows = [
        [2 ** int(power), 2 ** (int(power) + 1), all_mined[power], all_kept.get(power, 0)]
        for power in sorted(all_mined, key=int)
    ]
    lengths = Figure(
        "lengths",
        "Lengths",
        columns_of(("characters from", "count"), ("to", "count"), ("documents mined", "count"), ("documents kept", "count")),
        length_rows,
        "Documents after deduplication by their characters; the part in full colour is in the corpus.",
        Chart("histogram", 0, (2, 3) if kept else (2,), logarithmic=True),
    )
    return [*result, lengths, Figure("scores-by-language", "Scores and lengths by language", columns, by_language, note)]


def _references(results: Mapping[str, Any]) -> list[Figure]:
    columns = columns_of(("threshold", "number"), ("precision", "share"), ("recall", "share"), ("others that stay", "share"))
    figures = []
    for language, model in sorted(results.get("references", {}).get("models", {}).items()):
        trained, held_out = model["trained_on"], model["held_out"]
        note = (
            f"How well the classifier of {language} tells pages that Wikipedia cites from others of the same crawl: trained on"
            f" {trained['cited']:,} and {trained['other']:,}, measured on {held_out['cited']:,} and {held_out['other']:,} that"
            f" it has not seen; {model['best']} is the threshold with the highest F1."
        )
        rows = [[point[name] for name in ("threshold", "precision", "recall", "kept")] for point in model["curve"]]
        chart = Chart("lines", 0, (1, 2, 3), marks=(("best", model["best"]),))
        figures.append(Figure(f"references-{language}", f"Pages like cited ones, {language}", columns, rows, note, chart))
    return figures


def _quantile(histogram: Mapping[str, int], share: float) -> int:
    """The bin in which the given share of the counts is reached."""
    whole, seen = sum(histogram.values()), 0
    for number, count in sorted((int(k), v) for k, v in histogram.items()):
        seen += count
        if seen >= share * whole:
            return number
    raise AssertionError("an empty histogram")


def _duplicates(results: Mapping[str, Any]) -> list[Figure]:
    result = []
    rows: list[list[Any]] = []
    if "dedup" in results:
        marks = results["dedup"]["statistics"]
        for name, count in (
            ("paragraphs, each once a page", marks["keys"]),
            ("different ones", marks["distinct"]),
            ("of these in earlier runs", marks["seen"]),
            ("kept", marks["kept"]),
        ):
            rows.append([name, count, _ratio(count, marks["keys"])])
    if "mine" in results and "lines" in results["mine"]["statistics"]:
        for measure, name in (("lines", "lines"), ("chars", "characters")):
            counts = results["mine"]["statistics"][measure]
            gone = counts["dropped"].get("duplicate", 0)
            rows.append([f"duplicated {name} taken out of pages", gone, _ratio(gone, counts["in"])])
    if rows:
        note = "How much of the crawl an earlier page has already."
        result.append(
            Figure(
                "duplicated",
                "Share of duplicated text",
                columns_of(("", "text"), ("count", "count"), ("share", "share")),
                rows,
                note,
            )
        )
    if results.get("near", {}).get("pairs"):
        near = results["near"]["statistics"]
        rows = [
            ["compared", near["documents"]],
            ["clusters of near-duplicates", near["clusters"]],
            ["those of them that go, one of each cluster staying", near["dropped"]],
        ]
        note = "Documents that are nearly the same, over all languages."
        result.append(
            Figure("near-duplicates", "Near-duplicate documents", columns_of(("", "text"), ("documents", "count")), rows, note)
        )
    frequent = [row for row in results.get("mine", {}).get("frequent", []) if row["text"] is not None]
    if frequent:
        rows = [[row["text"] or "(an empty line)", row["documents"]] for row in frequent[:TOP]]
        note = "What most pages have in common: the beginning of each paragraph, and how many pages have it."
        columns = columns_of(("paragraph", "quote"), ("documents", "count"))
        result.append(Figure("frequent-paragraphs", "The most frequent paragraphs", columns, rows, note))
    return result


def _domains(results: Mapping[str, Any]) -> list[Figure]:
    if "mine" not in results or "domains" not in results["mine"]["statistics"]:
        return []
    mined = results["mine"]["statistics"]["domains"]
    judged = results["regroup"]["statistics"]["domains"] if "regroup" in results else None
    kept = (judged or mined)["kept"]
    dropped = merge([mined["dropped"], judged["dropped"]]) if judged else mined["dropped"]
    both = merge([kept["largest"], dropped["largest"]])
    rows = [
        [
            name or "(no domain)",
            kept["largest"].get(name, 0),
            dropped["largest"].get(name, 0),
            kept["largest"].get(name, 0) / both[name],
        ]
        for name in sorted(both, key=lambda name: (-both[name], name))[:TOP]
    ]
    note = "Documents of the largest domains: in the corpus, and dropped on the way."
    if kept["others"] or dropped["others"]:
        note += (
            f" Counts are lower bounds: of each up to {kept['others']:,} kept and {dropped['others']:,} dropped may be missing."
        )
    columns = columns_of(("domain", "quote"), ("kept", "count"), ("dropped", "count"), ("share kept", "share"))
    return [Figure("domains", "Domains, kept against dropped", columns, rows, note, Chart("bars", 0, (1, 2)))] if rows else []


def _tokens(results: Mapping[str, Any]) -> list[Figure]:
    result = []
    if "tokenize" in results:
        rows = [
            [source, split, c["documents"], c["chars"], c["bytes"], c["tokens"], _ratio(c["bytes"], c["tokens"])]
            for source, splits in results["tokenize"]["sources"].items()
            for split, c in splits.items()
            if split in ("train", "validation")
        ]
        columns = columns_of(
            ("source", "text"),
            ("split", "text"),
            ("documents", "count"),
            ("characters", "count"),
            ("text", "bytes"),
            ("tokens", "count"),
            ("bytes a token", "number"),
        )
        result.append(
            Figure("tokens", "Token shards by source", columns, rows, "What was tokenized, to train on and to validate with.")
        )
    fertility = results.get("tokenizer", {}).get("fertility") or []
    if fertility:
        order = sorted(fertility, key=lambda row: (row["source"], row["language"] != "all", -row["chars"], row["language"]))
        rows = [
            [
                f"{row['source']} {row['language']}",
                row["documents"],
                row["chars"],
                row["tokens"],
                row["chars_per_token"],
                row["bytes_per_token"],
            ]
            for row in order
        ]
        columns = columns_of(
            ("source and language", "text"),
            ("documents", "count"),
            ("characters", "count"),
            ("tokens", "count"),
            ("characters a token", "number"),
            ("bytes a token", "number"),
        )
        note = (
            "How much text a token stands for in the tokenizer's sample, eos not counted. The fewer characters a token, the"
            " more a language costs."
        )
        result.append(Figure("fertility", "Tokenizer fertility", columns, rows, note, Chart("bars", 0, (4,))))
    mixture = results.get("train", {}).get("mixture") or {}
    if mixture:
        rows = [
            [source, taken["share"], taken["actual_share"], taken["samples"], taken["tokens"], taken["epochs"], taken["ends"]]
            for source, taken in mixture.items()
        ]
        columns = columns_of(
            ("source", "text"),
            ("planned share", "share"),
            ("actual share", "share"),
            ("samples", "count"),
            ("tokens", "count"),
            ("epochs", "number"),
            ("ended at sample", "count"),
        )
        note = "Shares of the training's samples: as configured, and as they came out after sources ended with their epochs."
        result.append(Figure("mixture", "The mixture, planned and actual", columns, rows, note, Chart("grouped", 0, (1, 2))))
    return result


def _events(out: Path) -> list[dict[str, Any]]:
    """The rows of the training's events; a last line that was cut by a crash is left out."""
    path = out / FOLDER / EVENTS
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


_CURVES: tuple[tuple[str, str, str, Kind], ...] = (
    ("lr", "learning-rate", "Learning rate", "number"),
    ("grad_norm", "gradient-norm", "Gradient norm", "number"),
    ("tokens_per_second", "throughput", "Tokens a second", "number"),
    ("mfu", "mfu", "Model FLOPs utilization", "share"),
    ("memory", "memory", "Memory of the device", "bytes"),
)


_BY_SOURCE: tuple[tuple[str, str, str, Kind, str], ...] = (
    (
        "validation_loss/",
        "validation-by-source",
        "Validation by source",
        "number",
        "Validation loss of each source, in nats a token.",
    ),
    (
        "share/",
        "mixture-so-far",
        "Mixture so far",
        "share",
        "Share of each source in the samples up to a step.",
    ),
)


def _training(
    results: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> list[Figure]:
    result = []
    if metrics:
        last = metrics[-1]
        rows: list[list[Any]] = [["steps", last["step"]], ["tokens", last["tokens"]]]
        if "train" in results:
            rows.insert(0, ["parameters", results["train"]["parameters"]])
        rows += [["first loss", metrics[0]["loss"]], ["last loss", last["loss"]]]
        if rates := sorted(row["tokens_per_second"] for row in metrics if "tokens_per_second" in row):
            rows.append(["tokens a second, median", rates[len(rates) // 2]])
        result.append(Figure("training", "The run", columns_of(("", "text"), ("value", "value")), rows))
        names = [name for name in ("loss", "validation_loss") if any(row.get(name) is not None for row in metrics)]
        columns = (
            Column("step", "count"),
            *(Column({"loss": "training loss"}.get(n, "validation loss"), "number") for n in names),
        )
        note = "Mean loss of a token in nats, by step; the validation is over the same tokens every time."
        values = tuple(range(1, len(columns)))
        result.append(Figure("loss", "Loss", columns, _thinned(metrics, names), note, Chart("lines", 0, values)))
        for prefix, name, title, kind, note in _BY_SOURCE:
            keys = sorted({key for row in metrics for key in row if key.startswith(prefix)})
            there = [row for row in metrics if any(row.get(key) is not None for key in keys)]
            columns = (Column("step", "count"), *(Column(key.removeprefix(prefix), kind) for key in keys))
            if keys:
                chosen = Chart("lines", 0, tuple(range(1, len(columns))))
                result.append(Figure(name, title, columns, _thinned(there, keys), note, chosen))
        for key, name, title, kind in _CURVES:
            if any(row.get(key) is not None for row in metrics):
                columns = columns_of(("step", "count"), (title.lower(), kind))
                result.append(
                    Figure(name, title, columns, _thinned(metrics, [key]), f"{title}, by step.", Chart("lines", 0, (1,)))
                )
    if events:
        named = ("step", "seen", "action", "loss", "grad_norm")
        rows = [
            [*(e.get(name) for name in named), ", ".join(f"{k} {v}" for k, v in e.items() if k not in named)]
            for e in events[-LAST_EVENTS:]
        ]
        columns = columns_of(
            ("step", "count"),
            ("seen", "text"),
            ("action", "text"),
            ("loss", "value"),
            ("gradient norm", "value"),
            ("more", "text"),
        )
        note = f"Steps that the guard found bad, and what it did: {len(events):,} in all"
        note += f", the last {LAST_EVENTS} shown." if len(events) > LAST_EVENTS else "."
        result.append(Figure("events", "Events of the guard", columns, rows, note))
    if "evaluate" in results:
        checked = results["evaluate"]
        rows = []
        for when in ("before", "after"):
            rows.append([f"{when} training", "all", checked[when]["loss"], checked[when]["perplexity"]])
            for source, found in checked[when].get("sources", {}).items():
                rows.append([f"{when} training", source, found["loss"], found["perplexity"]])
        columns = columns_of(("", "text"), ("source", "text"), ("loss", "number"), ("perplexity", "number"))
        result.append(Figure("validation", "Validation", columns, rows, "The model on the validation split, before and after."))
        written = [[checked["text"]]]
        result.append(
            Figure("writes", "What the model writes", columns_of(("text", "quote")), written, "The prompt, and how it goes on.")
        )
    return result


def _thinned(metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[Any]]:
    """[step, mean of each name] of at most POINTS groups of rows; the step is the group's last."""
    rows: list[list[Any]] = []
    groups = min(len(metrics), POINTS)
    for number in range(groups):
        group = metrics[number * len(metrics) // groups : (number + 1) * len(metrics) // groups]
        means: list[Any] = []
        for name in names:
            values = [v for row in group if isinstance(v := row.get(name), int | float) and math.isfinite(v)]
            means.append(sum(values) / len(values) if values else None)
        rows.append([group[-1]["step"], *means])
    return rows


def _bad_input(results: Mapping[str, Any]) -> list[Figure]:
    rows: list[list[Any]] = []
    seen = False
    for stage, kinds in (
        ("hash", (("bad", "bad records"), ("skipped", "passed over: no pages"))),
        ("mine", (("bad", "bad records"),)),
    ):
        if stage not in results or (stage == "mine" and "hash" in results):  # it reads the same again
            continue
        seen = True
        for key, what in kinds:
            counts = results[stage]["statistics"].get(key, {})
            rows += [["crawl", what, reason, n] for reason, n in sorted(counts.items()) if n]
    for reason, n in sorted(results.get("lm", {}).get("bad", {}).items()):
        rows.append(["lm.text", "bad text", reason, n])
    for source, counts in sorted(results.get("sources", {}).get("statistics", {}).items()):
        rows += [[source, "bad records", reason, n] for reason, n in sorted(counts.get("bad", {}).items()) if n]
    if not seen and not rows:
        return []
    note = "Input that could not be read, by reason; each costs itself only." if rows else "All input could be read."
    columns = columns_of(("input", "text"), ("what", "text"), ("reason", "text"), ("records", "count"))
    return [Figure("bad-input", "Bad input by reason", columns, rows or [["crawl", "bad records", "none", 0]], note)]


def _core_seconds(name: str, state: StageState) -> float:
    return state.seconds * (state.config.get("train.processes") or 1 if name == "train" else 1)


def _work(results: Mapping[str, Any], states: Mapping[str, StageState]) -> list[Figure]:
    if not states:
        return []
    whole = sum(_core_seconds(name, state) for name, state in states.items())
    pages = results.get("hash", {}).get("statistics", {}).get("pages_read")
    rows = []
    for name, state in states.items():
        seconds = _core_seconds(name, state)
        what, amount = _amount(name, results)
        rate = f"{human_bytes(amount / seconds)}/s" if amount and seconds and what == "text" else None
        if amount and seconds and what == "tokens":
            rate = f"{amount / seconds:,.0f} tokens/s"
        per_million = _ratio(seconds / 3600 * 1e6, pages)
        shown_name = name if state.finished else f"{name} (running)"
        rows.append([shown_name, state.units, seconds, _ratio(seconds, whole), rate, per_million, state.bytes])
    columns = columns_of(
        ("stage", "text"),
        ("units", "count"),
        ("core time", "seconds"),
        ("share of the work", "share"),
        ("rate of a core", "text"),
        ("core-hours a million pages", "number"),
        ("written", "bytes"),
    )
    note = (
        "Time of all workers of a stage together, one core each: what to multiply by the price of a core-hour, and what a"
        " crawl of another size will cost. The rate is that of the text a stage reads, or of the tokens it trains on."
    )
    return [Figure("work", "Time, rate and cost of each stage", columns, rows, note, Chart("bars", 0, (2,)))]


def _amount(name: str, results: Mapping[str, Any]) -> tuple[str, int | None]:
    """What a stage reads: bytes of text, or tokens."""
    if name in ("hash", "lm", "mine"):
        return "text", results.get("hash", {}).get("statistics", {}).get("bytes_read")
    if name == "tokenize" and name in results:
        return "text", sum(results[name][split]["bytes"] for split in ("train", "validation"))
    if name == "train" and name in results:
        return "tokens", results[name]["tokens"]
    return "text", None
