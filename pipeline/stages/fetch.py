"""fetch: where the crawl is, as a list of segments in crawl order; the demo crawl is written here (`crawl/*.warc.wet.gz`)."""

import os
from collections import Counter
from typing import Any

from ccnet.demo_crawl import plan, write_segment
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit, digest_json, expand_files, fingerprint


def run(stage: Stage) -> None:
    """Local files are listed where they lie; the demo crawl has one unit a segment."""
    crawl = stage.config.crawl
    if crawl.kind == "local":
        if not crawl.files:
            raise ValueError("crawl.files is empty: name your WET files, or choose crawl=demo")
        sources = expand_files(crawl.files)
        prints = [fingerprint(source) for source in sources]
        segments = [
            {"name": name, "source": _absolute(source), "bytes": size, "fingerprint": tag}
            for name, source, (size, tag) in zip(_names(sources), sources, prints, strict=True)
        ]
        stage.finish({"segments": segments})
        return
    units = []
    for number, files in enumerate(plan(crawl.demo_segments, crawl.demo_share)):
        sizes = [(file, os.stat(file).st_size) for file in files]
        name, size = f"demo-{number:05d}", sum(size for _, size in sizes)
        units.append(Unit(name, {"name": name, "files": files}, {"files": digest_json(sizes)}, size))
    records = stage.map("demo", demo_unit, units)
    segments = []
    for record in records:
        [(path, entry)] = record.outputs.items()
        segments.append({"name": record.unit, "source": path, "bytes": entry["bytes"], "fingerprint": entry["digest"]})
    stage.finish({"segments": segments})


def demo_unit(outputs: Outputs, name: str, files: list[str]) -> dict[str, Any]:
    """Work of one unit: `ccnet.demo_crawl.write_segment`."""
    return write_segment(files, outputs.path(f"crawl/{name}.warc.wet.gz"))


def _names(sources: list[str]) -> list[str]:
    """A short name for each source, unlike all others and fit for a file name."""
    short = [source.rstrip("/").rsplit("/", 1)[-1].split(".")[0] for source in sources]
    seen = Counter(short)
    return [name if seen[name] == 1 else f"{number:05d}-{name}" for number, name in enumerate(short)]


def _absolute(source: str) -> str:
    return source if "://" in source else os.path.abspath(source)
