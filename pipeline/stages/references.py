"""references: mined documents and Wikipedia dumps in, how much every document is like a cited page out (`references/`).

What the dumps cite is looked for in the crawl; in each language with enough of it a classifier is trained on these pages and
as many others, and scores all documents (`references/{segment}.parquet`). `regroup` drops those under the threshold. Without
`references.dumps` nothing is done.
"""

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ccnet.references import FEWEST, cited_pages, find_cited, sample_examples, score_segment, train_classifier
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit, expand_files, fingerprint


def run(stage: Stage) -> None:
    """Five rounds: one unit a dump, one a segment, again one a segment, one a language, and one a segment."""
    settings, mined = stage.config.references, stage.upstream("mine")["result"]
    if not settings.dumps:
        stage.finish({"models": {}})
        return
    units = []
    for number, path in enumerate(expand_files(settings.dumps)):
        size, of = fingerprint(path)
        units.append(Unit(f"{number:05d}", {"source": path, "number": number}, {"dump": of}, size))
    cited = stage.map("cited", cited_unit, units)
    counts = merge(record.statistics["counts"] for record in cited)
    bad = {name.removeprefix("bad_"): n for name, n in counts.items() if name.startswith("bad_")}
    stage.check_bad(bad, counts.get("articles_read", 0) + sum(bad.values()))
    keys: dict[str, list[Path]] = {}
    for record in cited:
        if record.statistics["language"]:
            files = [stage.out / path for path in record.outputs if path.endswith(f".{settings.match}.keys")]
            keys.setdefault(record.statistics["language"], []).extend(files)
    inputs = {path: entry["digest"] for record in cited for path, entry in record.outputs.items()}

    segments = [(s["name"], stage.out / s["path"], {s["path"]: s["digest"]}) for s in mined["segments"]]
    shared: dict[str, Any] = {"keys": keys, "match": settings.match}
    units = [Unit(n, {"source": path, **shared}, of | inputs, path.stat().st_size) for n, path, of in segments]
    found = merge(record.statistics for record in stage.map("find", find_unit, units))
    shares = {
        language: (min(1.0, settings.examples / n["cited"]), min(1.0, min(settings.examples, n["cited"]) / max(n["other"], 1)))
        for language, n in sorted(found.items())
        if n["cited"] >= FEWEST
    }
    units = [
        Unit(
            n,
            {"name": n, "source": path, "shares": shares, **shared},
            of | inputs | {"shares": str(shares)},
            path.stat().st_size,
        )
        for n, path, of in segments
    ]
    sampled = stage.map("sample", sample_unit, units)
    examples = {path: entry["digest"] for record in sampled for path, entry in record.outputs.items()}
    arguments = [stage.out / path for path in examples]
    units = [Unit(language, {"language": language, "examples": arguments}, examples) for language in shares]
    trained = stage.map("train", train_unit, units)
    models = {record.unit: next(iter(record.outputs.items())) for record in trained}
    digests = {path: entry["digest"] for path, entry in models.values()}
    paths = {language: stage.out / path for language, (path, _) in models.items()}
    units = [
        Unit(n, {"name": n, "source": path, "models": paths}, of | digests, path.stat().st_size) for n, path, of in segments
    ]
    scored = stage.map("score", score_unit, units)
    stage.finish(
        {
            "models": {record.unit: record.statistics for record in trained},
            "dumps": counts,
            "found": found,
            "statistics": merge(record.statistics for record in scored),
            "segments": {record.unit: score_file(record.unit) for record in scored},
        }
    )


def cited_unit(outputs: Outputs, source: str, number: int) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.references.cited_pages`, the keys as files of uint64."""
    counts: Counter[str] = Counter()
    language, pages, hosts = cited_pages(source, counts)
    for name, keys in (("page", pages), ("host", hosts)):
        keys.tofile(outputs.path(f"references/{number:05d}.{name}.keys"))
    return {"language": language, "counts": dict(counts)}


def find_unit(outputs: Outputs, source: Path, keys: Mapping[str, list[Path]], match: str) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.references.find_cited`, counted: {language: {cited, other}}."""
    cited, languages = find_cited(source, _read(keys), match)
    of = {language: languages == language for language in keys}
    return {name: {"cited": int((rows & cited).sum()), "other": int((rows & ~cited).sum())} for name, rows in of.items()}


def sample_unit(outputs: Outputs, name: str, source: Path, keys: Mapping[str, list[Path]], **shared: Any) -> dict[str, Any]:
    """Work of a unit of the third round: `ccnet.references.sample_examples`."""
    sample_examples(source, outputs.path(f"references/{name}.examples.parquet"), _read(keys), **shared)
    return {}


def train_unit(outputs: Outputs, language: str, examples: list[Path]) -> dict[str, Any]:
    """Work of a unit of the fourth round: `ccnet.references.train_classifier`."""
    return train_classifier(examples, language, outputs.path(f"references/{language}.bin"))


def score_unit(outputs: Outputs, name: str, source: Path, models: Mapping[str, Path]) -> dict[str, Any]:
    """Work of a unit of the fifth round: `ccnet.references.score_segment`."""
    return score_segment(source, outputs.path(score_file(name)), models)


def score_file(segment: str) -> str:
    """Where the scores of a segment's documents lie below `out`."""
    return f"references/{segment}.parquet"


def _read(keys: Mapping[str, list[Path]]) -> dict[str, np.ndarray]:
    return {language: _distinct(tuple(files)) for language, files in keys.items()}


@functools.cache
def _distinct(files: tuple[Path, ...]) -> np.ndarray:
    """The keys of several dumps, read once in a worker, which has many segments."""
    return np.unique(np.concatenate([np.fromfile(path, np.uint64) for path in files]))
