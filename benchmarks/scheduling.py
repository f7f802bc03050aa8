"""The bookkeeping of a stage with as many units as a snapshot of Common Crawl has segments, each of which does nothing.

In: the number of units. Out: CPU and wall seconds and memory of the stage's own process for the first run (on two workers of
this machine), the status, the same command again when all is done, and again when the manifest and every hundredth unit are
missing; bytes and largest folder of the records. A unit leaves one small file, and statistics as large as those of `mine`
for a segment of Common Crawl. `python -m benchmarks.scheduling [UNITS]`
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from ccnet.stats import total
from pipeline.config import Config, load
from pipeline.outputs import Outputs
from pipeline.stage import Spec, Stage, Unit

SPEC = Spec("nothing", "does nothing", (), ("dedup",))
DOMAINS = 200


def nothing(outputs: Outputs, number: int) -> dict[str, Any]:
    """Work of a unit."""
    outputs.path(f"nothing/{number % 256:02x}/{number:05d}").write_bytes(b"x")
    top = {f"domain-{number * 7919 + n}.example.org": n for n in range(DOMAINS)}
    counts = {"in": number, "kept": number, "dropped": {"short": 1, "duplicate": 2}}
    histograms = {language: {str(bin): bin for bin in range(100)} for language in ("de", "en", "fr", "ru", "zh")}
    domains = {name: {"largest": top, "others": 1} for name in ("kept", "dropped")}
    return {"documents": counts, "chars": counts, "lines": counts, "domains": domains, "bad": {}, "perplexity": histograms}


def run(config: Config, units: int) -> None:
    """The stage from its plan to its manifest, as `pipeline.__main__` runs it."""
    stage = Stage(SPEC, config)
    with stage.opened():
        if not stage.is_finished():
            planned = [Unit(f"segment-{n:05d}", {"number": n}, {"segment": f"203000000-{n}"}) for n in range(units)]
            records = stage.map("nothing", nothing, planned)
            stage.finish({"statistics": total(record.statistics for record in records), "units": len(records)})


def status(config: Config, units: int) -> None:
    """What `python -m jobs status` asks for."""
    rounds = Stage(SPEC, config).progress()["rounds"]
    assert rounds[0]["done"] == units


def measured(label: str, step: Callable[[Config, int], None], config: Config, units: int) -> None:
    """Runs one step in a process of its own, so that memory is that step's, and prints its row."""
    sys.stdout.flush()
    if process := os.fork():
        assert os.waitpid(process, 0)[1] == 0, label
        return
    wall, cpu = time.monotonic(), time.process_time()
    step(config, units)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    took = time.process_time() - cpu, time.monotonic() - wall
    print(f"{label:<44}{took[0]:>9.1f}{took[1]:>9.1f}{peak:>9.0f}", flush=True)
    os._exit(0)


def main(units: int) -> None:
    """Prints the table."""
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        config = load([f"out={out}", "executor.workers=2"])
        print(f"{units:,} units{'':<36}CPU s   wall s   MB")
        measured("first run (2 workers on this machine)", run, config, units)
        measured("status", status, config, units)
        measured("again, all is done", run, config, units)
        records = sorted((out / "records" / "nothing").rglob("segment-*.json"))
        for path in [*records[::100], out / "records" / "nothing.json"]:
            path.unlink()
        measured(f"again, {len(records[::100]):,} units are missing", run, config, units)
        sizes = {path: len(files) for path, _, files in os.walk(out)}
        kept = subprocess.run(["du", "-sm", str(out / "records")], capture_output=True, text=True, check=True).stdout.split()[0]
        print(f"records: {kept} MB; {max(sizes.values()):,} files in the largest folder")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 90_000)
