"""dedup: the keys of all segments in, one keep mark a paragraph out (`dedup/{partition}.marks`, a bit each)."""

from pathlib import Path
from typing import Any

import numpy as np

from ccnet.dedup import mark_partition
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit
from pipeline.stages.hash import keys_file


def run(stage: Stage) -> None:
    """One unit a hash partition, over all segments in crawl order."""
    hashed = stage.upstream("hash")
    segments = hashed["result"]["segments"]
    partition_keys = np.array([s["partition_keys"] for s in segments], np.int64)
    shared = {
        "key_files": [stage.out / keys_file(s["name"]) for s in segments],
        "partition_keys": partition_keys,
        "keep": stage.config.dedup.keep,
    }
    inputs = {"hash": hashed["digest"]}
    sizes = 8 * partition_keys.sum(axis=0)
    units = [Unit(f"{p:04d}", {"partition": p, **shared}, inputs, int(sizes[p])) for p in range(partition_keys.shape[1])]
    records = stage.map("dedup", dedup_unit, units)
    stage.finish({"statistics": merge([record.statistics for record in records])})


def dedup_unit(outputs: Outputs, partition: int, **shared: Any) -> dict[str, Any]:
    """Work of one unit: `ccnet.dedup.mark_partition`."""
    marks, digests = (outputs.path(file) for file in marks_files(partition))
    return dict(mark_partition(partition=partition, marks=marks, digests=digests, **shared))


def marks_files(partition: int) -> tuple[str, str]:
    """Where a partition's marks, and their digests by segment, lie below `out`."""
    return str(Path("dedup") / f"{partition:04d}.marks"), str(Path("dedup") / f"{partition:04d}.digests")
