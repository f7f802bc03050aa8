"""Training over the nodes of a real Slurm cluster: by `jobs submit`, through time limits and lost nodes, as on one machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import Cluster

from pipeline.outputs import read_json, write_json
from pipeline.training.metrics import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = [
    "model=debug", "model.vocab_size=100", "model.dim=64", "model.layers=3", "model.heads=4", "model.kv_heads=2",
    "model.hidden=192", "model.max_sequence=32", "train.sequence=32", "train.batch_tokens=512", "train.micro_batch=2",
    "train.lr=1e-3", "train.warmup_steps=0", "train.min_lr_ratio=1", "train.dtype=fp32", "train.log_every=1",
    "train.validate_every=100000", "train.checkpoint_every=20", "zero=1",
]  # fmt: skip
SUBMIT = ["executor=slurm", "train.processes=1"]


@pytest.fixture(scope="module")
def road(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """`road()` makes a new `out` in which everything before `train` is finished."""

    def make() -> Path:
        out = tmp_path_factory.mktemp("out")
        manifest = {"format": 1, "config": {}, "inputs": {}, "outputs": {}}
        shards = {name: {"tokens": 20_000, "shards": [str(tokens / name)]} for name in ("train", "validation")}
        results = {"tokenizer": {"pieces": 100, "digest": "a" * 64}, "tokenize": {"sources": {"crawl": shards}}}
        for stage, result in results.items():
            write_json(out / "records" / f"{stage}.json", {"stage": stage, "digest": stage, "result": result, **manifest})
        return out

    return make


@pytest.fixture(scope="module")
def reference(road: Callable[[], Path]) -> Callable[[int], dict[int, float]]:
    """`reference(step)`: the losses up to that step, by two ranks of this machine."""
    out = road()

    def losses(last: int) -> dict[int, float]:
        while (reached := losses_of(out)) and max(reached) >= last:
            return {step: loss for step, loss in reached.items() if step <= last}
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "train",
            f"out={out}",
            *SETTINGS,
            "train.steps=1000000",
            "train.processes=2",
        ]
        with subprocess.Popen(command, cwd=ROOT) as run:
            wait_for(lambda: max(losses_of(out), default=0) >= last, 300)
            run.send_signal(signal.SIGUSR1)
        assert run.returncode == 85
        return losses(last)

    return losses


def losses_of(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(out / "train") if "loss" in row}


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


class Submitted:
    """A training that was submitted, and what Slurm says of it."""

    def __init__(self, cluster: Cluster, out: Path, *settings: str) -> None:
        self.cluster, self.out = cluster, out
        self._settings = [f"out={out}", *SETTINGS, *SUBMIT, *settings]
        self.jobs("submit")
        self.job = read_json(out / "jobs" / "submitted.json")["train"]["job"]

    def jobs(self, verb: str) -> str:
        command = [sys.executable, "-m", "jobs", verb, "train", *self._settings]
        done = subprocess.run(command, cwd=ROOT, env=self.cluster.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def says(self, name: str) -> str:
        told = self.cluster.run("scontrol", "show", "job", str(self.job))
        return next(word.partition("=")[2] for word in told.split() if word.startswith(f"{name}="))

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: max(losses_of(self.out), default=0) >= step or self.has_ended())
        assert not self.has_ended() or max(losses_of(self.out), default=0) >= step, self.log()

    def has_ended(self) -> bool:
        return self.says("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def wait_for_requeue(self) -> None:
        wait_for(lambda: (self.says("Restarts"), self.says("JobState")) == ("1", "PENDING") or self.has_ended())
        assert self.says("Restarts") == "1", self.log()
        wait_for(lambda: self.says("Reason") == "BeginTime")
        # Slurm may tell it of its end a minute too early, which of two minutes leaves nothing; so it gets ten.
        self.cluster.release(self.job, "TimeLimit=10")

    def log(self) -> str:
        """What is telling of both logs."""
        texts = [
            path.read_text() for path in (self.out / "jobs" / "train.log", self.out / "train" / "log.txt") if path.exists()
        ]
        return "".join(line for line in "".join(texts).splitlines(keepends=True) if "train: step" not in line)


def test_a_job_over_its_time_limit_goes_on_over_both_nodes(
    slurm: Cluster, road: Callable[[], Path], reference: Callable[[int], dict[int, float]]
) -> None:
    needs = "{train:{nodes:2,minutes:2,warning:60,memory:1500M}}"
    run = Submitted(slurm, road(), "train.steps=1000000", f"executor.stages={needs}")
    run.wait_for_requeue()
    saved = max(losses_of(run.out))
    assert f"stopped: saved at step {saved} of 1000000" in run.log()
    run.wait_for_step(saved + 1)
    assert "running" in run.jobs("status")
    run.jobs("cancel")
    wait_for(run.has_ended)
    assert run.says("JobState") == "CANCELLED"
    wait_for(lambda: processes_of(run.out) == [])
    assert {f"rank-0000{rank}.txt" for rank in (0, 1)} == {path.name for path in (run.out / "train" / "logs").iterdir()}
    nodes = {(run.out / "train" / "logs" / f"rank-0000{rank}.txt").read_text().split()[3] for rank in (0, 1)}
    assert nodes == {"n1", "n2"}
    reached = losses_of(run.out)
    assert sorted(reached) == list(range(1, max(reached) + 1)), "a step is missing or was done twice"
    assert reached == pytest.approx(reference(max(reached)), rel=1e-6)


def test_a_lost_node_does_not_end_a_training(
    slurm: Cluster, road: Callable[[], Path], reference: Callable[[int], dict[int, float]]
) -> None:
    needs = "{train:{nodes:2,min_nodes:1,minutes:10,memory:1500M}}"
    run = Submitted(slurm, road(), "train.steps=100", f"executor.stages={needs}")
    run.wait_for_step(25)
    slurm.kill_node("n2")
    try:
        run.wait_for_requeue()
        wait_for(run.has_ended)
        assert run.says("JobState") == "COMPLETED", run.log()
        assert run.says("NodeList") == "n1"
    finally:
        slurm.start_node("n2")
    reached = losses_of(run.out)
    assert sorted(reached) == list(range(1, 101))
    assert reached == pytest.approx(reference(100), rel=1e-4)
    assert "nothing to do" in run.jobs("submit")


def processes_of(out: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
        except (OSError, NotADirectoryError):
            continue
        if str(out).encode() in command and int(entry.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found
