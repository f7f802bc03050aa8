"""Helpers of the tests that run the command line: a road small enough to be run many times."""

import os
import subprocess
import sys
import time
from pathlib import Path

from pipeline.outputs import read_json
from pipeline.stages import SPECS

ROOT = Path(__file__).resolve().parents[2]
ROAD = [name for name, spec in SPECS.items() if spec.writes is None]
TINY = [
    "experiment=demo",
    "crawl.demo_share=0.04",
    "crawl.demo_segments=3",
    "dedup.partitions=4",
    "near.threshold=0.8",
    "near.partitions=2",
    "lm.min_bytes=20000",
    "lm.vocab_size=1000",
    "bucket.part_bytes=300000",
    "tokenizer.vocab_size=2000",
    "tokenizer.sample_chars=500000",
    "tokenize.validation=0.05",
    "model.vocab_size=2000",
    "model.dim=32",
    "model.layers=2",
    "model.heads=2",
    "model.kv_heads=1",
    "model.hidden=64",
    "train.sequence=64",
    "train.micro_batch=2",
    "train.batch_tokens=512",
    "train.steps=30",
    "train.warmup_steps=4",
    "train.checkpoint_every=7",
    "train.validate_every=15",
    "train.log_every=1",
]


def command(stage: str, out: Path, *overrides: str) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", "pipeline", stage, *TINY, f"out={out}", *overrides]


def run(stage: str, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs a stage to its end, on a screen wide enough for the paths of tests."""
    wide = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command(stage, out, *overrides), cwd=ROOT, env=wide, capture_output=True, text=True, timeout=900)


def run_good(stage: str, out: Path, *overrides: str) -> str:
    """Runs a stage that must succeed; returns its standard output."""
    done = run(stage, out, *overrides)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_bad(stage: str, out: Path, *overrides: str) -> str:
    """Runs a stage that must fail with one line; returns that line."""
    done = run(stage, out, *overrides)
    assert done.returncode == 1, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in done.stderr, done.stderr[-3000:]
    return last


def run_killed(stage: str, out: Path, seconds: float, *overrides: str) -> bool:
    """Starts a stage and kills it -9 after `seconds`; whether it was still running. Waits until its workers are gone."""
    process = subprocess.Popen(
        command(stage, out, *overrides), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while session := [pid for pid in _processes() if _session(pid) == process.pid]:
        assert time.monotonic() < deadline, f"processes outlived the stage: {session}"
        time.sleep(0.05)
    return True


def digest(stage: str, out: Path) -> str:
    """The digest of what a stage wrote."""
    return str(read_json(out / "records" / f"{stage}.json")["digest"])


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session(pid: int) -> int | None:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state[0] == "Z" else int(state[3])
