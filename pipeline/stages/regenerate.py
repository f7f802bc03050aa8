"""regenerate: segments and the metadata of an earlier run in, what `mine` wrote there out (`mine/{segment}.parquet`).

Neither paragraph keys nor models are needed; `regroup` and what follows go on from here as they do after `mine`.
"""

from pathlib import Path
from typing import Any

from ccnet.crawl import Source
from ccnet.regenerate import regenerate_segment
from ccnet.stats import total
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit, fingerprint
from pipeline.stages.fetch import source_of
from pipeline.stages.mine import mined_file, mined_segments


def run(stage: Stage) -> None:
    """One unit a segment. Fails where too many documents are not in the crawl any more."""
    if stage.config.regenerate.metadata is None:
        raise ValueError("regenerate.metadata is not given: name the folder mine/metadata of the run that had the documents")
    folder = Path(stage.config.regenerate.metadata)
    segments = stage.upstream("fetch")["result"]["segments"]
    files = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    names = [s["name"] for s in segments]
    if missing := [name for name in names if name not in files]:
        raise ValueError(f"{folder}: no metadata of the segment {missing[0]} ({len(missing)} of {len(names)} are missing)")
    if others := [name for name in files if name not in names]:
        raise ValueError(f"{folder} has metadata of {others[0]} ({len(others)} segments in all), which crawl.files lacks")
    units = [
        Unit(
            s["name"],
            {"name": s["name"], "source": source_of(stage, s), "minified": files[s["name"]].absolute()},
            {"segment": s["fingerprint"], "metadata": fingerprint(str(files[s["name"]]))[1]},
            s["bytes"],
        )
        for s in segments
    ]
    records = stage.map("mine", regenerate_unit, units)
    statistics = total(record.statistics for record in records)
    stage.check_bad(statistics["bad"], statistics["documents"]["in"] + sum(statistics["bad"].values()))
    stage.finish({"statistics": statistics, "segments": mined_segments(records), "models": {}, "trained": [], "frequent": []})


def regenerate_unit(outputs: Outputs, name: str, source: Source, minified: Path) -> dict[str, Any]:
    """Work of a unit: `ccnet.regenerate.regenerate_segment`."""
    return regenerate_segment(source, minified, outputs.path(mined_file(name)))
