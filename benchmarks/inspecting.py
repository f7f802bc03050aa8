"""Inspecting a large run: the report of 90,000 units' records, and questions about 10 M documents' metadata.

Records are made up from those of a finished run (`out=`: the demo's): each gets as many domains as a record may have, of a
million that are as frequent each, so that as many have to be held as may be. They are read as those of stages that have not
finished, whose records are added, and again with manifests, which say all themselves. Peak memory is VmHWM of a process of
its own. Beside the questions of DuckDB stands the obvious way: pyarrow over the same columns, whole.

    python benchmarks/inspecting.py out=out/demo [units=90000] [documents=10000000] [folder=/tmp]
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from machine import machine

from ccnet.schema import DOCUMENT
from ccnet.stats import TOP_DOMAINS
from pipeline.stage import unit_file
from pipeline.tables import opened

FILES, GROUP = 100, 20_000
DOMAINS = 1_000_000  # of the whole crawl, as often each: the most that may have to be held
STAGES = (("mine", "mine"), ("regroup", "judge"))
QUERIES = (
    "select language, bucket, count(*), median(perplexity) from corpus group by all",
    "select source_domain, count(*) as n, sum(length) from corpus group by all order by n desc limit 30",
    "select count(*) from corpus where language_score < 0.6 and length > 1000",
    "select url from corpus limit 100",
)


def make_records(real: Path, out: Path, units: int) -> None:
    """Records of mine and of regroup's first round for so many units, each with as many domains as a record may have."""
    draw, rng = random.Random(0), np.random.default_rng(0)
    for stage, round_name in STAGES:
        samples = [json.loads(path.read_text()) for path in sorted((real / "records" / stage / round_name).glob("*/*.json"))]
        folder = out / "records" / stage / round_name
        for unit in range(units):
            record = draw.choice(samples)
            record["unit"] = f"{unit:06d}"
            for counts in record["statistics"]["domains"].values():
                sites = rng.integers(DOMAINS, size=TOP_DOMAINS).tolist()
                counts["largest"] = {f"site{site}.example": TOP_DOMAINS - n for n, site in enumerate(sites)}
                counts["others"] = 1
            path = unit_file(folder, record["unit"], ".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, separators=(",\n      ", ": ")))


def make_manifests(real: Path, out: Path, units: int) -> None:
    """Finishes the stages: manifests with the outputs of so many units."""
    for stage, _ in STAGES:
        manifest = json.loads((real / "records" / f"{stage}.json").read_text())
        entry = {"bytes": 123_456_789, "digest": "0" * 32}
        names = [f"{stage}/CC-MAIN-20240220211055-20240221001055-{unit:05d}" for unit in range(units)]
        manifest["units"] = units
        manifest["outputs"] = {f"{name}.{end}": entry for name in names for end in ("parquet", "metadata.parquet")}
        if "segments" in manifest["result"]:
            manifest["result"]["segments"] = [{"name": name, "path": f"{name}.parquet", "digest": "0" * 32} for name in names]
        (out / "records" / f"{stage}.json").write_text(json.dumps(manifest))


def make_documents(out: Path, documents: int) -> None:
    """A corpus of one language's and bucket's files each, metadata without texts."""
    rng = np.random.default_rng(0)
    size = documents // FILES
    for number in range(FILES):
        language, bucket = ("en", "de", "fr", "ru", "zh")[number % 5], ("head", "middle", "tail")[number % 3]
        folder = out / "corpus" / language / bucket
        folder.mkdir(parents=True, exist_ok=True)
        domain = np.char.add("site", rng.zipf(1.3, size).clip(max=2_000_000).astype(str))
        text = pa.array(np.char.add("page ", rng.integers(1 << 40, size=size).astype(str)))
        columns = {
            "url": pa.array(np.char.add(np.char.add("https://", domain), np.arange(size).astype(str))),
            "date_download": pa.array(["2024-01-01T00:00:00Z"] * size),
            "digest": text,
            "length": pa.array(rng.lognormal(7, 1, size).astype(np.int32)),
            "nlines": pa.array(rng.integers(1, 100, size, np.int32)),
            "source_domain": pa.array(domain),
            "title": text,
            "raw_content": text,
            "cc_segment": pa.array([f"segment-{number}"] * size),
            "original_nlines": pa.array(rng.integers(1, 200, size, np.int32)),
            "original_length": pa.array(rng.lognormal(8, 1, size).astype(np.int64)),
            "line_ids": pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32), rng.integers(0, 100, size, np.int32)),
            "language": pa.array([language] * size),
            "language_score": pa.array(rng.random(size)),
            "perplexity": pa.array(rng.lognormal(6, 0.5, size)),
            "bucket": pa.array([bucket] * size),
        }
        table = pa.table([columns[name] for name in DOCUMENT.names], schema=DOCUMENT)
        pq.write_table(table, folder / f"part-{number:05d}.parquet", compression="zstd", row_group_size=GROUP)


CHILD = """
import sys, time
from pathlib import Path
from pipeline.figures import Run, figures
from pipeline.stages.report import render
start, cpu = time.monotonic(), time.process_time()
run = Run(Path(sys.argv[1]))
states = run.read()
read = time.monotonic() - start, time.process_time() - cpu
text = render("run", figures(Path(sys.argv[1]), states))
written = time.monotonic() - start, time.process_time() - cpu
run.read()
again = time.monotonic() - start - written[0], time.process_time() - cpu - written[1]
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(f"records read and added      {read[0]:6.1f} s, {read[1]:6.1f} CPU s")
print(f"page of {len(text.encode()) / 1e6:.2f} MB written    {written[0]:6.1f} s, {written[1]:6.1f} CPU s, from the beginning")
print(f"read again, nothing new     {again[0]:6.1f} s, {again[1]:6.1f} CPU s")
print(f"peak memory                 {peak / 2**20:6.2f} GiB")
"""


def read_and_write(what: str, out: str, units: int) -> None:
    """Measures a reading of all there is, and the page, in a process of its own."""
    print(f"\n{units:,} units of mine and as many of regroup/judge: {what}", flush=True)
    print(subprocess.run([sys.executable, "-c", CHILD, out], check=True, capture_output=True, text=True).stdout, flush=True)


def main(arguments: list[str]) -> None:
    """Makes, measures, prints, removes."""
    given = dict(argument.split("=", 1) for argument in arguments)
    units, documents = int(given.get("units", 90_000)), int(given.get("documents", 10_000_000))
    print(machine())
    with tempfile.TemporaryDirectory(dir=given.get("folder")) as name:
        out = Path(name)
        if units:
            make_records(Path(given["out"]), out, units)
            read_and_write("both unfinished, their records read", name, units)
            for stage, _ in STAGES[1:]:
                (out / "records" / stage).rename(out / stage)
            read_and_write("mine unfinished, its records read", name, units)
            for stage, _ in STAGES[1:]:
                (out / stage).rename(out / "records" / stage)
            make_manifests(Path(given["out"]), out, units)
            read_and_write("both finished, their manifests read", name, units)
        if documents:
            make_documents(out, documents)
            print(f"{documents:,} documents in {FILES} files, row groups of {GROUP:,}")
            start = time.monotonic()
            with opened(out, "4GB") as tables:
                print(f"{time.monotonic() - start:6.2f} s  tables opened")
                for query in QUERIES:
                    start, cpu = time.monotonic(), time.process_time()
                    columns, rows = tables.ask(query)
                    found = len(list(rows))
                    took = f"{time.monotonic() - start:6.2f} s, {time.process_time() - cpu:5.2f} CPU s"
                    print(f"{took}  {found:,} rows of {len(columns)}: {query}")
            start, cpu = time.monotonic(), time.process_time()
            table = pq.read_table(out / "corpus", columns=["language", "bucket", "perplexity"], partitioning=None)
            table.group_by(["language", "bucket"]).aggregate([([], "count_all"), ("perplexity", "approximate_median")])
            took = f"{time.monotonic() - start:6.2f} s, {time.process_time() - cpu:5.2f} CPU s"
            print(f"{took}  pyarrow: the first of them, its median an estimate; {pc.sum(table['perplexity']).as_py():.3g}")


if __name__ == "__main__":
    main(sys.argv[1:])
