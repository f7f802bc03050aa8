"""hash: segments in, their paragraph keys out (`hash/{segment}.keys`, grouped by hash partition)."""

from pathlib import Path
from typing import Any

from ccnet.crawl import Source
from ccnet.dedup import hash_segment
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit
from pipeline.stages.fetch import source_of


def run(stage: Stage) -> None:
    """One unit a segment. Fails when too many records are bad, or no page is left."""
    config = stage.config
    shared = {"partitions": config.dedup.partitions, "min_length": config.crawl.min_length}
    segments = stage.upstream("fetch")["result"]["segments"]
    units = [
        Unit(
            s["name"],
            {"name": s["name"], "source": source_of(stage, s), **shared},
            {"segment": s["fingerprint"]},
            s["bytes"],
        )
        for s in segments
    ]
    records = stage.map("hash", hash_unit, units)
    total = merge([{k: v for k, v in record.statistics.items() if k != "partition_keys"} for record in records])
    stage.check_bad(total["bad"], total.get("pages_read", 0) + sum(total["bad"].values()))
    if not total["keys"]:
        passed_over = {f"skipped {reason}": n for reason, n in total["skipped"].items()} | total["bad"]
        reasons = "".join(f", {reason} {n}" for reason, n in sorted(passed_over.items()))
        raise StageError(
            f"hash: no page of {config.crawl.min_length} characters or more in {len(segments)} segments"
            f" ({total.get('pages_read', 0)} pages{reasons}): is crawl.files what you meant?"
        )
    stage.finish(
        {
            "segments": [
                {"name": s["name"], "partition_keys": record.statistics["partition_keys"]}
                for s, record in zip(segments, records, strict=True)
            ],
            "statistics": total,
        }
    )


def hash_unit(outputs: Outputs, name: str, source: Source, **shared: Any) -> dict[str, Any]:
    """Work of one unit: `ccnet.dedup.hash_segment`."""
    return hash_segment(source, outputs.path(keys_file(name)), **shared)


def keys_file(segment: str) -> str:
    """Where a segment's keys lie below `out`."""
    return str(Path("hash") / f"{segment}.keys")
