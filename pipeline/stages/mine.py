"""mine: segments, marks and language models in, every document with its scores out (`mine/{segment}.parquet`).

Beside them lie their metadata (`mine/metadata/{segment}.parquet`), from which `regenerate` makes the same documents again.

What the scores decide is left to `regroup`, so that other thresholds need neither the crawl nor a model again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccnet.crawl import Source
from ccnet.filter import Rules, filter_segment, paragraph_texts
from ccnet.stats import total
from pipeline.outputs import Outputs
from pipeline.stage import Record, Stage, Unit
from pipeline.stages.chosen_rules import quality_prints, quality_rules
from pipeline.stages.marked import MarkedSegment, language_model, marked_segments

LOOKED_UP = 16  # segments, evenly over the crawl, in which the text of the most frequent paragraphs is looked for


def run(stage: Stage) -> None:
    """One unit a segment, and one for the text of the most frequent paragraphs."""
    config = stage.config
    lm = stage.upstream("lm")["result"]
    language_file, language_print = language_model(config)
    rules = Rules(
        min_length=config.crawl.min_length,
        languages=tuple(config.language.mine),
        held_out=lm["held_out"],
        quality=quality_rules(config.quality, config.quality.rules),
        quality_languages=tuple(config.quality.languages),
    )
    models = {language: tuple(Path(stage.resolve(path)) for path in paths) for language, paths in lm["models"].items()}
    shared = {
        "language_model": language_file,
        "whole": config.language.whole,
        "rules": rules,
        "models": models,
        "keep_dropped": config.keep_dropped,
    }
    inputs = {"language.model": language_print, "held_out": str(lm["held_out"])}
    inputs |= {**quality_prints(config.quality), **lm["fingerprints"]}
    segments = marked_segments(stage)
    units = [Unit(s.name, {"segment": s, **shared}, {"segment": s.fingerprint, **inputs}, s.bytes) for s in segments]
    records = stage.map("mine", mine_unit, units)
    statistics = total(record.statistics for record in records)
    stage.check_removed(statistics, chosen=("short", "held_out", "language_not_mined"))
    frequent = _frequent(stage, segments)
    stage.finish(
        {
            "statistics": statistics,
            "segments": mined_segments(records),
            "models": lm["fingerprints"],
            "trained": sorted(lm["trained"]),
            "frequent": frequent,
        }
    )


def mine_unit(outputs: Outputs, segment: MarkedSegment, keep_dropped: bool, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.filter.filter_segment`."""
    target, minified = (outputs.path(file) for file in (mined_file(segment.name), metadata_file(segment.name)))
    dropped = outputs.path(f"dropped/{segment.name}.mine.parquet") if keep_dropped else None
    return filter_segment(segment.source, target, minified, marks=segment.open_marks(), dropped=dropped, **shared)


def mined_segments(records: Sequence[Record]) -> list[dict[str, str]]:
    """Name, file and its digest of every segment, for the manifest."""
    paths = [mined_file(record.unit) for record in records]
    return [
        {"name": record.unit, "path": path, "digest": record.outputs[path]["digest"]}
        for record, path in zip(records, paths, strict=True)
    ]


def frequent_unit(outputs: Outputs, sources: list[Source], keys: list[str], min_length: int) -> dict[str, Any]:
    """Work of the unit of the second round: `ccnet.filter.paragraph_texts`."""
    texts = paragraph_texts(sources, np.array(keys, np.uint64), min_length=min_length)
    return {str(key): text for key, text in texts.items()}


def mined_file(segment: str) -> str:
    """Where a segment's documents lie below `out`."""
    return f"mine/{segment}.parquet"


def metadata_file(segment: str) -> str:
    """Where the documents' minified metadata lie below `out`."""
    return f"mine/metadata/{segment}.parquet"


def _frequent(stage: Stage, segments: Sequence[MarkedSegment]) -> list[dict[str, Any]]:
    """The most frequent paragraphs, with their text (null where it was not come upon) and the documents that have them.

    Not looked up while segments are mined: a segment's record would depend on all the others then.
    """
    counts = stage.upstream("dedup")["result"]["frequent"]
    chosen = segments[:: -(-len(segments) // LOOKED_UP)] if segments and counts else []
    keys = [key for key, _ in counts]
    arguments = {"sources": [s.source for s in chosen], "keys": keys, "min_length": stage.config.crawl.min_length}
    inputs = {"keys": " ".join(keys)} | {s.name: s.fingerprint for s in chosen}
    records = stage.map("frequent", frequent_unit, [Unit("paragraphs", arguments, inputs)] if chosen else [])
    texts = records[0].statistics if records else {}
    return [{"text": texts.get(key), "documents": documents} for key, documents in counts]
