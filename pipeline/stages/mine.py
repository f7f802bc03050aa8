"""mine: segments, marks and language models in, the corpus out (`corpus/{language}/{bucket}/part-*.parquet`).

First every segment is filtered and scored by itself (`mine/{segment}.parquet`); then the merged perplexities give each
language its cut-offs; then documents are regrouped by language and bucket.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccnet.buckets import NAMES, UNSCORED, cutoffs
from ccnet.corpus import regroup
from ccnet.filter import Rules, filter_segment
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Record, Stage, StageError, Unit
from pipeline.stages.marked import MarkedSegment, language_model, marked_segments


def run(stage: Stage) -> None:
    """Two rounds: one unit a segment, then one unit for each language and group of segments."""
    config = stage.config
    lm = stage.upstream("lm")["result"]
    identifier, identifier_print = language_model(config)
    rules = Rules(
        min_length=config.crawl.min_length,
        min_length_after=config.dedup.min_length,
        threshold=config.language.threshold,
        keep=tuple(config.language.keep),
        held_out=lm["held_out"],
    )
    models = {language: tuple(Path(stage.resolve(path)) for path in paths) for language, paths in lm["models"].items()}
    shared = {"language_model": identifier, "rules": rules, "models": models}
    inputs = {"language.model": identifier_print, "held_out": str(lm["held_out"]), **lm["fingerprints"]}
    units = [
        Unit(s.name, {"segment": s, **shared}, {"segment": s.fingerprint, **inputs}, s.bytes) for s in marked_segments(stage)
    ]
    filtered = stage.map("filter", filter_unit, units)
    total = merge([record.statistics for record in filtered])
    if not total["documents"]["kept"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in total["documents"]["dropped"].items() if n)
        raise StageError(f"mine: no document is left of {total['documents']['in']} ({dropped or 'the crawl is empty'})")

    low, high = config.bucket.percentiles
    cuts = {language: cutoffs(counts, (low, high)) for language, counts in sorted(total["perplexity"].items())}
    units = [
        unit
        for language in sorted(total["languages"])
        for unit in _regroup_units(stage.out, language, cuts.get(language), filtered, config.bucket.part_bytes)
    ]
    records = stage.map("regroup", regroup_unit, units)
    buckets: dict[str, dict[str, Any]] = {}
    parts = []
    for unit, record in zip(units, records, strict=True):
        language = unit.arguments["language"]
        buckets[language] = merge([buckets.get(language, {}), record.statistics])
        for path in sorted(record.outputs):
            parts.append(
                {
                    "path": path,
                    "language": language,
                    "bucket": Path(path).parent.name,
                    "digest": record.outputs[path]["digest"],
                }
            )
    order = (*NAMES, UNSCORED)
    stage.finish(
        {
            "statistics": total,
            "cutoffs": {language: list(cut) for language, cut in cuts.items()},
            "buckets": {k: {b: v[b] for b in order if b in v} for k, v in buckets.items()},
            "parts": parts,
        }
    )


def filter_unit(outputs: Outputs, segment: MarkedSegment, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.filter.filter_segment`."""
    target = outputs.path(f"mine/{segment.name}.parquet")
    return filter_segment(segment.source, target, marks=segment.open_marks(), **shared)


def regroup_unit(
    outputs: Outputs, language: str, number: int, parts: list[Path], cut: tuple[float, float] | None
) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.corpus.regroup`."""
    targets = {b: outputs.path(f"corpus/{language}/{b}/part-{number:05d}.parquet") for b in (*NAMES, UNSCORED)}
    return dict(regroup(parts, language, cut, targets))


def _regroup_units(
    out: Path, language: str, cut: tuple[float, float] | None, filtered: Sequence[Record], part_bytes: int
) -> list[Unit]:
    """Groups of consecutive segments whose text in this language is about `part_bytes`."""
    groups: list[list[Record]] = []
    size = part_bytes
    for record in filtered:
        counts = record.statistics["languages"].get(language)
        if counts is None:
            continue
        if size >= part_bytes:
            groups.append([])
            size = 0
        groups[-1].append(record)
        size += counts["bytes"]
    units = []
    for number, group in enumerate(groups):
        files = {path: entry["digest"] for record in group for path, entry in record.outputs.items()}
        arguments = {"language": language, "number": number, "parts": [out / path for path in files], "cut": cut}
        sizes = sum(record.statistics["languages"][language]["bytes"] for record in group)
        units.append(Unit(f"{language}-{number:05d}", arguments, {**files, "cut-offs": str(cut)}, sizes))
    return units
