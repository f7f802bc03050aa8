"""What one unit of full size takes in each data stage: the figures behind `conf/executor/stages.yaml`.

In: the real segments in `../shared/data` (or the folder that SHARED_DATA names), repeated (`benchmarks.data_stage.repeat`)
until one file has as much text as a WET file of Common Crawl. Out: units, CPU seconds a unit and memory of the largest
process by stage, starts of processes included. `python -m benchmarks.units [MB]`
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.data_stage import repeat
from benchmarks.machine import machine
from pipeline.outputs import read_json

STAGES = ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup", "tokenizer", "tokenize")


def main(size: float) -> None:
    """Prints the table; `size` is in MB."""
    data = Path(os.environ.get("SHARED_DATA", "../shared/data"))
    sources = sorted((data / "crawl" / "segments").glob("*.warc.wet.gz"))
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        segment, piece = folder / "segment.warc.wet.gz", folder / "piece"
        written = copies = 0
        with segment.open("wb") as file:
            while written < size * 1e6:
                for source in sources:
                    written += repeat(source, piece, copies)
                    file.write(piece.read_bytes())
                copies += 1
        print(f"one segment of {written / 1e6:.0f} MB of raw WET")
        settings = [f"out={folder / 'out'}", f"crawl.files=[{segment}]", "executor.workers=1", "near.threshold=0.8"]
        for lm in ("trained", "given"):
            if lm == "given":
                settings += [f"lm.dir={data / 'lm'}", "overwrite=true"]
            for stage in STAGES[STAGES.index("lm") if lm == "given" else 0 :]:
                process = subprocess.Popen([sys.executable, "-m", "pipeline", stage, *settings], stderr=subprocess.DEVNULL)
                _, status, used = os.wait4(process.pid, 0)
                assert status == 0, stage
                units = read_json(folder / "out" / "records" / f"{stage}.json")["units"]
                cpu = (used.ru_utime + used.ru_stime) / max(units, 1)
                print(f"lm {lm:8} {stage:10}{units:6} units{cpu:8.1f} CPU s each, {used.ru_maxrss / 1e3:.0f} MB", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 200)
