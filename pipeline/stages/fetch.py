"""fetch: where the crawl is, as a list of segments in crawl order; the demo crawl is written here (`crawl/*.warc.wet.gz`)."""

import os
from collections import Counter
from typing import Any

from ccnet.demo_crawl import Source, plan, write_segment
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
    every = round(1 / crawl.demo_share)
    units = []
    for number, sources in enumerate(plan(segments=crawl.demo_segments)):
        sizes = [(str(source.path), os.stat(source.path).st_size) for source in sources[::every]]
        unit = Unit(
            f"demo-{number:05d}",
            {"number": number, "sources": sources[::every]},
            {"sources": digest_json(sizes)},
            sum(size for _, size in sizes),
        )
        units.append(unit)
    records = stage.map("demo", demo_unit, units)
    segments = []
    for record in records:
        [(path, entry)] = record.outputs.items()
        segments.append({"name": record.unit, "source": path, "bytes": entry["bytes"], "fingerprint": entry["digest"]})
    stage.finish({"segments": segments})


def demo_unit(outputs: Outputs, number: int, sources: list[Source]) -> dict[str, Any]:
    """Work of one unit: `ccnet.demo_crawl.write_segment`."""
    return write_segment(number, sources, outputs.path(f"crawl/demo-{number:05d}.warc.wet.gz"))


def _names(sources: list[str]) -> list[str]:
    """A short name for each source, unlike all others and fit for a file name."""
    short = [source.rstrip("/").rsplit("/", 1)[-1].split(".")[0] for source in sources]
    seen = Counter(short)
    return [name if seen[name] == 1 else f"{number:05d}-{name}" for number, name in enumerate(short)]


def _absolute(source: str) -> str:
    return source if "://" in source else os.path.abspath(source)
