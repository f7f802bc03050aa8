"""fetch: where the crawl is, as a list of segments in crawl order.

Local files are listed where they lie, large ones in parts. The files of a snapshot are downloaded (`crawl/crawl-data/…`) or
listed as URLs, standard input is written to `crawl/stdin-{digest}`, the demo crawl to `crawl/demo-*.warc.wet.gz`.
"""

import glob
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccnet.crawl import Source, choose, download, list_segments, listing_path
from ccnet.demo_crawl import plan, write_segment
from ccnet.parts import split
from pipeline.config import CrawlConfig
from pipeline.outputs import Outputs, digest_file
from pipeline.stage import Record, Stage, Unit, digest_json, expand_files, fingerprint

STDIN = "-"
COMPRESSED = (".gz", ".zst", ".bz2")
SUFFIXES = (*(kind + c for kind in (".wet", ".warc", ".jsonl", ".ndjson") for c in ("", *COMPRESSED)), ".parquet")
SUFFIXES += tuple(".json" + c for c in COMPRESSED)  # plain .json is seldom lines


def run(stage: Stage) -> None:
    """Standard input, snapshots and the demo crawl have units: what was fetched once stays."""
    crawl = stage.config.crawl
    segments = {"local": _local, "common_crawl": _common_crawl, "demo": _demo}[crawl.kind](stage, crawl)
    stage.finish({"segments": segments})


def source_of(stage: Stage, segment: Mapping[str, Any]) -> Source:
    """Where a segment of this stage's manifest is read from."""
    part = segment.get("part")
    return Source(stage.resolve(segment["source"]), tuple(part) if part else None, segment["text_column"])


def demo_unit(outputs: Outputs, name: str, files: list[str]) -> dict[str, Any]:
    """Work of a unit of the demo crawl: `ccnet.demo_crawl.write_segment`."""
    return write_segment(files, outputs.path(f"crawl/{name}.warc.wet.gz"))


def list_unit(outputs: Outputs, dump: str, root: str, path: str) -> dict[str, Any]:
    """Work of a unit of the lists: downloads that of one snapshot."""
    try:
        return download_unit(outputs, root, path)
    except FileNotFoundError:
        raise ValueError(f"crawl.dump: there is no snapshot {dump} at {root}; https://commoncrawl.org lists them") from None


def download_unit(outputs: Outputs, root: str, path: str) -> dict[str, Any]:
    """Work of a unit of the downloads: `ccnet.crawl.download`."""
    with outputs.path(f"crawl/{path}").open("w+b") as file:
        download(root + path, file)
        return {"bytes": file.seek(0, os.SEEK_END)}


def adopt_unit(outputs: Outputs, path: str) -> dict[str, Any]:
    """Work of the unit of standard input, which is written already, as workers have none."""
    outputs.adopt(path)
    return {}


def _local(stage: Stage, crawl: CrawlConfig) -> list[dict[str, Any]]:
    if not crawl.files:
        raise ValueError("crawl.files is empty: name your files, or choose crawl=common_crawl or crawl=demo")
    spooled = _standard_input(stage) if STDIN in crawl.files else ""
    named = [str(stage.out / spooled) if file == STDIN else file for file in crawl.files]
    files = expand_files([pattern for file in named for pattern in _in_folder(file, stage.out)])
    segments = []
    for name, file in zip(_names(files), files, strict=True):
        size, tag = fingerprint(file)
        source = file if "://" in file else os.path.abspath(file)
        if spooled and file == str(stage.out / spooled):
            source = tag = spooled  # its name has the digest
        segments += _in_parts(stage, crawl, name, source, size, tag)
    return segments


def _common_crawl(stage: Stage, crawl: CrawlConfig) -> list[dict[str, Any]]:
    if not crawl.dump:
        raise ValueError("crawl.dump is empty: name one snapshot or several, such as crawl.dump=[CC-MAIN-2024-10]")
    root = crawl.root.rstrip("/") + "/"
    lists = []
    for dump in crawl.dump:
        path = listing_path(dump, crawl.content)
        lists.append(Unit(f"{dump}.{crawl.content}", {"dump": dump, "root": root, "path": path}, {"url": root + path}))
    paths = [
        path
        for record in stage.map("list", list_unit, lists, at_once=crawl.connections)
        for path in choose(list_segments(stage.out / _file(record)), crawl.segments)
    ]
    if not crawl.download:
        sources = [(root + path, 0, root + path) for path in paths]
    else:
        units = [
            Unit(name, {"root": root, "path": path}, {"url": root + path})
            for name, path in zip(_names(paths), paths, strict=True)
        ]
        records = stage.map("download", download_unit, units, at_once=crawl.connections)
        sources = [(_file(r), r.outputs[_file(r)]["bytes"], r.outputs[_file(r)]["digest"]) for r in records]
    return [
        segment
        for name, (source, size, tag) in zip(_names(paths), sources, strict=True)
        for segment in _in_parts(stage, crawl, name, source, size, tag)
    ]


def _demo(stage: Stage, crawl: CrawlConfig) -> list[dict[str, Any]]:
    units = []
    for number, files in enumerate(plan(crawl.demo_segments, crawl.demo_share)):
        sizes = [(file, os.stat(file).st_size) for file in files]
        name, size = f"demo-{number:05d}", sum(size for _, size in sizes)
        units.append(Unit(name, {"name": name, "files": files}, {"files": digest_json(sizes)}, size))
    segments = []
    for record in stage.map("demo", demo_unit, units):
        entry = record.outputs[_file(record)]
        segments += _in_parts(stage, crawl, record.unit, _file(record), entry["bytes"], entry["digest"])
    return segments


def _in_parts(stage: Stage, crawl: CrawlConfig, name: str, source: str, size: int, tag: str) -> list[dict[str, Any]]:
    """The segment of a file, or those of its parts: what `source_of` and the stages' units need to know of them."""
    if crawl.text_column != "text":
        tag = f"{tag} {crawl.text_column}"
    entry = {"name": name, "source": source, "bytes": size, "fingerprint": tag, "text_column": crawl.text_column}
    if "://" in source or size <= crawl.split_bytes or len(parts := split(stage.resolve(source), crawl.split_bytes)) == 1:
        return [entry]
    return [
        entry
        | {"name": f"{name}.{number:04d}", "bytes": end - start, "fingerprint": f"{tag} {start}-{end}", "part": [start, end]}
        for number, (start, end) in enumerate(parts)
    ]


def _in_folder(pattern: str, out: Path) -> list[str]:
    """Patterns for the files in and below a folder, but not below `out`, that have a suffix of crawl files; others as they
    are."""
    if "://" in pattern or not Path(pattern).is_dir():
        return [pattern]
    files = (path for path in Path(pattern).rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file())
    found = sorted(str(path) for path in files if not path.resolve().is_relative_to(out.resolve()))
    if not found:
        raise ValueError(f"{pattern}: no file with a suffix of crawl files is below this folder ({', '.join(SUFFIXES)})")
    return [glob.escape(path) for path in found]


def _standard_input(stage: Stage) -> str:
    """Writes standard input to a file below `out`, so that later stages can read it again; returns its path there.

    Where there is none (a terminal, or nothing comes) it is what was read before.
    """
    folder = stage.out / "crawl"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".stdin.tmp"
    size = 0
    if not sys.stdin.isatty():
        with temporary.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
            size = file.tell()
            os.fsync(file.fileno())
    before = sorted(folder.glob("stdin-*"))
    if size:
        path = folder / f"stdin-{digest_file(temporary)}"
        temporary.replace(path)
    elif len(before) == 1:
        path = before[0]
    else:
        raise ValueError("crawl.files has -, and nothing comes from standard input: pipe a file into this command")
    temporary.unlink(missing_ok=True)
    relative = str(path.relative_to(stage.out))
    stage.map("stdin", adopt_unit, [Unit("stdin", {"path": relative}, {"file": relative})])
    return relative


def _file(record: Record) -> str:
    """The one file of a unit, relative to `out`."""
    [path] = record.outputs
    return path


def _names(sources: Sequence[str]) -> list[str]:
    """A short name for each source, unlike all others and fit for a file name; more sources behind them change none."""
    names: dict[str, None] = {}
    for source in sources:
        name = source.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
        names[f"{name}-{digest_json(source)[:12]}" if name in names else name] = None
    assert len(names) == len(sources)
    return list(names)
