"""The whole data stage: hash, dedup, mine and regroup on real pages, in MB of raw WET a second and core.

In: the four real segments in `../shared/data` (or the folder that SHARED_DATA names), repeated until there are 200 MB. To
keep the share of duplicates that one copy of them has, every repetition ends each line with a word of its own. Out: CPU
seconds and MB/s by stage for the default rules and for `corpus=ccnet`, the memory of the largest process, one worker
against two, and the obvious version in plain Python (`benchmarks.obvious`) on the first segments.
`python -m benchmarks.data_stage [MB]`
"""

import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.obvious import Models, corpus
from ccnet.language import default_model
from ccnet.perplexity import find_models
from ccnet.wet import read_pages

STAGES = ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup")
SHOWN = ("hash", "dedup", "mine", "regroup")  # what the others take is in the sum
WORDS = [
    "house",
    "river",
    "garden",
    "letter",
    "village",
    "winter",
    "morning",
    "kitchen",
    "bridge",
    "island",
    "mountain",
    "teacher",
    "farmer",
    "window",
    "forest",
]


def main(size: float) -> None:
    """Prints the table; `size` is in MB."""
    data = Path(os.environ.get("SHARED_DATA", "../shared/data"))
    sources = sorted((data / "crawl" / "segments").glob("*.warc.wet.gz"))
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("warm", "crawl"):
            (folder / part).mkdir()
        written, copies = 0.0, 0
        while written < size:
            written += sum(repeat(s, folder / "crawl" / f"{copies:03d}-{s.name}", copies) for s in sources) / 1e6
            copies += 1
        print(f"{written:.0f} MB of raw WET in {copies * len(sources)} segments")
        repeat(sources[0], folder / "warm" / "one.warc.wet.gz", 0)
        lm = data / "lm"
        run(folder / "out-warm", folder / "warm", lm, "corpus=parquet")  # compiles the kernels
        for rules in ("corpus=parquet", "corpus=ccnet"):
            measured = run(folder / rules.replace("=", "-"), folder / "crawl", lm, rules)
            for stage in SHOWN:
                cpu, _, memory = measured[stage]
                print(f"{rules:15} {stage:8}{cpu:8.1f} CPU s{written / cpu:8.1f} MB/s, largest process {memory:.0f} MB")
            cpu = sum(cpu for cpu, _, _ in measured.values())
            print(f"{rules:15} {'all':8}{cpu:8.1f} CPU s{written / cpu:8.1f} MB/s")
            one = sum(wall for _, wall, _ in measured.values())
        both = sum(wall for _, wall, _ in run(folder / "out-two", folder / "crawl", lm, rules, 2).values())
        print(f"{rules:15} wall clock with one worker {one:.1f} s, with two {both:.1f} s: {one / both:.2f} times as fast")
        obvious(sources[:2], find_models(lm))


def repeat(source: Path, target: Path, number: int) -> int:
    """Writes the segment with a word at the end of each line that has text, and returns its bytes, uncompressed.

    Repetition 0 is the segment as it is; the lengths in the headers follow the text.
    """
    if number == 0:
        target.write_bytes(source.read_bytes())
        return len(gzip.decompress(source.read_bytes()))
    word = f" {WORDS[number % len(WORDS)]}{WORDS[number // len(WORDS)]}".encode()
    size = 0
    with target.open("wb") as file:
        for record in gzip.decompress(source.read_bytes()).split(b"WARC/1.0\r\n")[1:]:
            head, _, body = record.partition(b"\r\n\r\n")
            body = body.removesuffix(b"\r\n\r\n")
            if b"WARC-Type: conversion" in head:
                body = b"\n".join(line + word if line.strip() else line for line in body.split(b"\n"))
                fields = [f for f in head.split(b"\r\n") if not f.lower().startswith((b"content-length", b"warc-block-digest"))]
                head = b"\r\n".join([*fields, b"Content-Length: %d" % len(body)])
            record = b"WARC/1.0\r\n" + head + b"\r\n\r\n" + body + b"\r\n\r\n"
            size += len(record)
            file.write(gzip.compress(record, 6, mtime=0))
    return size


def run(out: Path, crawl: Path, lm: Path, rules: str, workers: int = 1) -> dict[str, tuple[float, float, float]]:
    """{stage: (CPU seconds, seconds, MB of the largest process so far)} of a run."""
    settings = [f"out={out}", rules, f"crawl.files=['{crawl}/*.gz']", f"lm.dir={lm}", f"executor.workers={workers}"]
    measured = {}
    for stage in STAGES:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", stage, *settings], check=True, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        measured[stage] = (cpu, time.perf_counter() - start, after.ru_maxrss / 1e3)
    return measured


def obvious(sources: list[Path], models: dict[str, tuple[Path, Path]]) -> None:
    """The same rules in plain Python."""
    start = time.process_time()
    segments = []
    size = 0
    for source in sources:
        counts: Counter[str] = Counter()
        pages = [page for batch in read_pages(str(source), counts) for page in batch.to_pylist()]
        segments.append([(page["url"], page["raw_content"]) for page in pages])
        size += len(gzip.decompress(source.read_bytes()))
    oracle = Models(str(default_model()), {name: (str(sp), str(arpa)) for name, (sp, arpa) in models.items()})
    corpus(segments, oracle)
    cpu = time.process_time() - start
    print(f"{'plain Python':15} {'all':8}{cpu:8.1f} CPU s{size / 1e6 / cpu:8.1f} MB/s, on {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 200)
