"""mine: segments, marks and language models in, every document with its scores out (`mine/{segment}.parquet`).

Beside them lie their metadata (`mine/metadata/{segment}.parquet`), from which `regenerate` makes the same documents again.

What the scores decide is left to `regroup`, so that other thresholds need neither the crawl nor a model again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccnet.filter import Rules, filter_segment
from ccnet.stats import total
from pipeline.outputs import Outputs
from pipeline.stage import Record, Stage, Unit
from pipeline.stages.marked import MarkedSegment, language_model, marked_segments


def run(stage: Stage) -> None:
    """One unit a segment."""
    config = stage.config
    lm = stage.upstream("lm")["result"]
    identifier, identifier_print = language_model(config)
    rules = Rules(min_length=config.crawl.min_length, languages=tuple(config.language.mine), held_out=lm["held_out"])
    models = {language: tuple(Path(stage.resolve(path)) for path in paths) for language, paths in lm["models"].items()}
    shared = {"language_model": identifier, "rules": rules, "models": models, "keep_dropped": config.keep_dropped}
    inputs = {"language.model": identifier_print, "held_out": str(lm["held_out"]), **lm["fingerprints"]}
    units = [
        Unit(s.name, {"segment": s, **shared}, {"segment": s.fingerprint, **inputs}, s.bytes) for s in marked_segments(stage)
    ]
    records = stage.map("mine", mine_unit, units)
    statistics = total(record.statistics for record in records)
    stage.check_removed(statistics, chosen=("short", "held_out", "language_not_mined"))
    stage.finish({"statistics": statistics, "segments": mined_segments(records)})


def mine_unit(outputs: Outputs, segment: MarkedSegment, keep_dropped: bool, **shared: Any) -> dict[str, Any]:
    """Work of a unit: `ccnet.filter.filter_segment`."""
    target, minified = (outputs.path(file) for file in (mined_file(segment.name), metadata_file(segment.name)))
    dropped = outputs.path(f"dropped/mine/{segment.name}.parquet") if keep_dropped else None
    return filter_segment(segment.source, target, minified, marks=segment.open_marks(), dropped=dropped, **shared)


def mined_segments(records: Sequence[Record]) -> list[dict[str, str]]:
    """Name, file and its digest of every segment, for the manifest."""
    paths = [mined_file(record.unit) for record in records]
    return [
        {"name": record.unit, "path": path, "digest": record.outputs[path]["digest"]}
        for record, path in zip(records, paths, strict=True)
    ]


def mined_file(segment: str) -> str:
    """Where a segment's documents lie below `out`."""
    return f"mine/{segment}.parquet"


def metadata_file(segment: str) -> str:
    """Where the documents' minified metadata lie below `out`."""
    return f"mine/metadata/{segment}.parquet"
