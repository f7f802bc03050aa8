"""dedup: the keys of all segments in, one keep mark a paragraph out (`dedup/{partition}.marks`, a bit each).

Keys of earlier runs (`dedup.seen`) are read where these wrote them. The manifest's result lists the paragraphs that
most documents have.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ccnet.dedup import KeyFiles, mark_partition, most_frequent
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit
from pipeline.stages.hash import keys_file


def run(stage: Stage) -> None:
    """One unit a hash partition, over all segments in crawl order."""
    hashed = stage.upstream("hash")
    earlier = {out: stage.earlier(out, "hash") for out in stage.config.dedup.seen}
    own = _key_files(stage.out, hashed)
    shared = {
        "key_files": own.paths,
        "partition_keys": own.partition_keys,
        "keep": stage.config.dedup.keep,
        "seen": [_key_files(Path(out), manifest) for out, manifest in earlier.items()],
    }
    inputs = {"hash": hashed["digest"], **{f"seen {out}": manifest["digest"] for out, manifest in earlier.items()}}
    sizes = 8 * own.partition_keys.sum(axis=0)
    units = [Unit(f"{p:04d}", {"partition": p, **shared}, inputs, int(size)) for p, size in enumerate(sizes)]
    statistics = [record.statistics for record in stage.map("dedup", dedup_unit, units)]
    stage.finish(
        {
            "statistics": merge([{k: v for k, v in unit.items() if k != "frequent"} for unit in statistics]),
            "frequent": most_frequent(unit["frequent"] for unit in statistics),
        }
    )


def dedup_unit(outputs: Outputs, partition: int, **shared: Any) -> dict[str, Any]:
    """Work of one unit: `ccnet.dedup.mark_partition`."""
    marks, digests = (outputs.path(file) for file in marks_files(partition))
    return mark_partition(partition=partition, marks=marks, digests=digests, **shared)


def marks_files(partition: int) -> tuple[str, str]:
    """Where a partition's marks, and their digests by segment, lie below `out`."""
    return str(Path("dedup") / f"{partition:04d}.marks"), str(Path("dedup") / f"{partition:04d}.digests")


def _key_files(out: Path, hashed: dict[str, Any]) -> KeyFiles:
    segments = hashed["result"]["segments"]
    paths = [out / keys_file(segment["name"]) for segment in segments]
    return KeyFiles(paths, np.array([segment["partition_keys"] for segment in segments], np.int64))
