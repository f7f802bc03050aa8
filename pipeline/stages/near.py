"""near: filtered segments in, the near-duplicate documents among them out (`near/pairs.parquet`).

First every segment's documents are signed (`near/{segment}.signatures`, `.bands`); then every partition of the bands is
linked, over all segments (`near/{partition}.links`); then the links give each document that is dropped the one that is
kept. Without `near.threshold` nothing is done.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ccnet.near_duplicates import banding, link_partition, pair_documents, sign_documents
from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit

PAIRS = "near/pairs.parquet"


def run(stage: Stage) -> None:
    """Three rounds: one unit a segment, one a partition of the bands, one for the pairs."""
    settings, mined = stage.config.near, stage.upstream("mine")
    if settings.threshold is None:
        stage.finish({"pairs": None})
        return
    sources = {Path(path).stem: (path, entry) for path, entry in mined["outputs"].items() if Path(path).parent.name == "mine"}
    shared = {"threshold": settings.threshold, "partitions": settings.partitions}
    units = [
        Unit(name, {"name": name, "source": stage.out / path, **shared}, {"segment": entry["digest"]}, entry["bytes"])
        for name, (path, entry) in sources.items()
    ]
    signed = stage.map("sign", sign_unit, units)
    files = [signature_files(record.unit) for record in signed]
    inputs = {path: entry["digest"] for record in signed for path, entry in record.outputs.items()}
    partition_bands = np.array([r.statistics["partition_bands"] for r in signed], np.int64).reshape(-1, settings.partitions)
    crawl = {
        "signature_files": [stage.out / signatures for signatures, _ in files],
        "documents": np.array([record.statistics["documents"] for record in signed], np.int64),
    }
    bands = {
        "band_files": [stage.out / file for _, file in files],
        "partition_bands": partition_bands,
        "threshold": settings.threshold,
    }
    units = [
        Unit(f"{p:04d}", {"partition": p, **crawl, **bands}, inputs, int(size))
        for p, size in enumerate(12 * partition_bands.sum(axis=0))
    ]
    linked = stage.map("link", link_unit, units)
    inputs = {path: entry["digest"] for record in [*signed, *linked] for path, entry in record.outputs.items()}
    arguments = {
        "link_files": [stage.out / path for record in linked for path in record.outputs],
        "sources": [stage.out / path for path, _ in sources.values()],
        "segments": list(sources),
        **crawl,
    }
    size = sum(entry["bytes"] for record in linked for entry in record.outputs.values())
    [paired] = stage.map("pair", pair_unit, [Unit("pairs", arguments, inputs, size)])
    total = merge([*({k: v for k, v in r.statistics.items() if k != "partition_bands"} for r in signed), paired.statistics])
    b, rows = banding(settings.threshold)
    stage.finish({"pairs": PAIRS, "bands": b, "rows": rows, "statistics": total})


def sign_unit(outputs: Outputs, name: str, source: Path, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.near_duplicates.sign_documents`."""
    return sign_documents(source, *(outputs.path(file) for file in signature_files(name)), **shared)


def link_unit(outputs: Outputs, partition: int, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.near_duplicates.link_partition`."""
    return dict(link_partition(partition=partition, target=outputs.path(f"near/{partition:04d}.links"), **shared))


def pair_unit(outputs: Outputs, **shared: Any) -> dict[str, Any]:
    """Work of the unit of the third round: `ccnet.near_duplicates.pair_documents`."""
    return dict(pair_documents(target=outputs.path(PAIRS), **shared))


def signature_files(segment: str) -> tuple[str, str]:
    """Where a segment's signatures and bands lie below `out`."""
    return f"near/{segment}.signatures", f"near/{segment}.bands"
