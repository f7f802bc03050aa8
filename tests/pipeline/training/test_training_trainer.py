"""Runs with real processes (torchrun, gloo, DeepSpeed): against a plain PyTorch loop, through kills, over all of ZeRO."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import LlamaConfig
from model.llama import Llama
from pipeline.outputs import write_json
from pipeline.tokens.loader import Loader
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard
from pipeline.training.checkpoint import latest, load_weights
from pipeline.training.engine import deepspeed_config
from pipeline.training.evaluate import ValidationSplits
from pipeline.training.job import Job
from pipeline.training.launch import STOPPED, launch
from pipeline.training.metrics import read_metrics
from pipeline.training.schedule import learning_rate
from pipeline.training.settings import MixtureConfig, TrainConfig, ZeroConfig

ROOT = Path(__file__).resolve().parents[3]
MODEL = LlamaConfig(dim=32, layers=2, heads=4, kv_heads=2, hidden=64, vocab_size=512, max_sequence=32)
TRAIN = TrainConfig(
    sequence=32, batch_tokens=32 * 8, micro_batch=2, steps=12, lr=5e-3, warmup_steps=3, adam_eps=1e-5,
    clip=0.8, dtype="fp32", processes=2, checkpoint_every=2, keep_checkpoints=3, validate_every=5, log_every=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # ranks import the project from there


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of random tokens, some much more frequent than others, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("tokens")
    numbers = np.random.default_rng(0)
    for name, count in (("train", 300), ("validation", 9)):
        documents = [np.minimum(numbers.zipf(1.4, numbers.integers(5, 60)) + 2, 511) for _ in range(count)]
        files = ShardFiles.of(folder / name)
        write_shard((np.append(ids, 2) for ids in documents), files.bin, files.idx, dtype_for(512))
        Vocabulary("abc", 512, 2).write(files.meta)
    return folder


def prepare(out: Path, tokens: Path, zero: int = 1, **changes: Any) -> Path:
    """A run's folder with its job; returns the job's path."""
    if not out.exists():
        out.mkdir()
        (out / "tokens").symlink_to(tokens)
    train = dataclasses.replace(TRAIN, **changes)
    shards = {"crawl": ["tokens/train"]}, {"crawl": ["tokens/validation"]}
    job = Job(MODEL, train, ZeroConfig(zero), MixtureConfig({"crawl": 1.0}), *shards, "abc", "the digest of the tokens")
    write_json(out / "train" / "job.json", job.json())
    return out / "train" / "job.json"


def run(out: Path, tokens: Path, zero: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """The metrics of a run to its end."""
    job = prepare(out, tokens, zero, **changes)
    launch(job, changes.get("processes", TRAIN.processes), job.parent / "log.txt")
    return read_metrics(job.parent)


def column(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in rows if name in row}


def final_weights(out: Path) -> dict[str, Tensor]:
    newest = latest(out / "train" / "checkpoints")
    assert newest is not None
    return load_weights(newest)


def plain(tokens: Path, train: TrainConfig) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The same training in one process with nothing but PyTorch, the batch taken at once."""
    loader = Loader({"crawl": [tokens / "train"]}, {"crawl": 1}, {}, train.sequence, train.seed)
    validation = ValidationSplits({"crawl": ["validation"]}, tokens, train.sequence, 100)
    model = Llama(MODEL)
    model.init_weights(train.seed)
    decayed = [weight for name, weight in model.named_parameters() if "norm" not in name]
    norms = [weight for name, weight in model.named_parameters() if "norm" in name]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": train.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(train.beta1, train.beta2),
        eps=train.adam_eps,
    )
    rows = []
    for step in range(1, train.steps + 1):
        batch = torch.from_numpy(loader.batch(train.samples(step - 1), train.batch_at(step)))
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, train)
        adam.step()
        row = {"step": step, "loss": loss.item(), "grad_norm": norm.item(), "lr": learning_rate(step, train)}
        if step % train.validate_every == 0 or step == train.steps:
            row["validation_loss"] = validation.result(validation.sums(model, "cpu"))["loss"]
        rows.append(row)
    return rows, {name: weight.detach() for name, weight in model.named_parameters()}


# Processes of a run

COMMAND = """
import pathlib, sys
from pipeline.training.launch import launch

job = pathlib.Path(sys.argv[1])
launch(job, int(sys.argv[2]), job.with_name("log.txt"))
"""


def ranks(job: Path) -> list[int]:
    """Process numbers of the run's ranks, by what they were started with."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        starter = b"torch.distributed.run" in command or b"pipeline.training.node" in command or b"-c" in command
        if str(job).encode() in command and not starter:
            found.append(int(entry.name))
    return sorted(found)


def start(job: Path, processes: int) -> "subprocess.Popen[str]":
    """`launch` in a process of its own."""
    command = [sys.executable, "-c", COMMAND, str(job), str(processes)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_step(job: Path, launcher: "subprocess.Popen[str]", step: int) -> None:
    until = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(job.parent)):
        assert launcher.poll() is None, "the run ended"
        assert time.monotonic() < until, "the run does not start"
        time.sleep(0.002)


def wait_until_gone(job: Path) -> None:
    until = time.monotonic() + 30
    while left := ranks(job):
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.02)


# The fast set: one run against plain PyTorch, and the same run killed and launched again

LONG = 60  # steps; long enough to be killed in the middle


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with ZeRO-1 that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        out = tmp_path_factory.mktemp("whole") / "out"
        run(out, tokens, steps=LONG)
    return out


def test_losses_are_those_of_a_plain_loop(whole: Path, tokens: Path) -> None:
    rows = read_metrics(whole / "train")
    expected, weights = plain(tokens, dataclasses.replace(TRAIN, steps=LONG))
    for name, tolerance in (("loss", 1e-6), ("validation_loss", 1e-6), ("grad_norm", 1e-5), ("lr", 0)):
        assert column(rows[:12], name) == pytest.approx(column(expected[:12], name), rel=tolerance), name
    assert column(rows, "loss") == pytest.approx(column(expected, "loss"), rel=5e-6)  # rounding, which grows with the steps
    assert expected[-1]["loss"] < expected[0]["loss"] - 1, "it learns"
    assert sum(row["grad_norm"] > TRAIN.clip for row in expected) > 5, "some gradients are clipped"
    for name, weight in final_weights(whole).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=2e-5)  # the same rounding; 40 steps move by up to 0.1


def test_a_run_stopped_and_killed_goes_on_as_if_nothing_had_been(whole: Path, tokens: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = prepare(out, tokens, steps=LONG)
    with start(job, 2) as launcher:
        wait_for_step(job, launcher, 3)
        launcher.terminate()
        _, told = launcher.communicate(timeout=60)
    assert launcher.returncode == STOPPED
    wait_until_gone(job)
    saved = read_metrics(job.parent)[-1]["step"]
    assert 3 < saved < LONG - 5
    assert latest(job.parent / "checkpoints") == job.parent / "checkpoints" / f"step-{saved:08d}"
    assert told.endswith(f"stopped: saved at step {saved} of {LONG}; the same command goes on from there\n")

    with start(job, 2) as launcher:
        wait_for_step(job, launcher, saved + 5)  # the second save since has begun by then, which waits for the first
        assert len(ranks(job)) == 2
        launcher.kill()
    wait_until_gone(job)
    reached = read_metrics(job.parent)[-1]["step"]
    assert reached < LONG, "the run was over before it was killed"
    newest = latest(job.parent / "checkpoints")
    assert newest is not None
    assert newest.name >= f"step-{saved + 1:08d}"
    launch(job, 2, job.parent / "log.txt")
    rows, expected = read_metrics(job.parent), read_metrics(whole / "train")
    assert [row["step"] for row in rows] == list(range(1, LONG + 1))
    for name in ("loss", "validation_loss", "grad_norm", "lr", "tokens"):
        assert column(rows, name) == column(expected, name), name
    weights = final_weights(whole)
    for name, weight in final_weights(out).items():
        assert torch.equal(weight, weights[name]), name
    kept = sorted(path.name for path in (job.parent / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (LONG - 4, LONG - 2, LONG)]


# The slow set


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_goes_on_exactly(tokens: Path, tmp_path: Path, zero: int) -> None:
    out = tmp_path / "out"
    twelve, _ = plain(tokens, TRAIN)
    rows = run(out, tokens, zero, dtype="bf16", checkpoint_every=6)
    weights = final_weights(out)
    assert column(rows, "loss") == pytest.approx(column(twelve, "loss"), rel=0.01)
    (out / "train" / "checkpoints" / "step-00000012" / "checkpoint.json").unlink()
    again = run(out, tokens, zero, dtype="bf16", checkpoint_every=6)
    assert column(again, "loss") == column(rows, "loss")
    assert column(again, "validation_loss") == column(rows, "validation_loss")
    for name, weight in final_weights(out).items():
        assert torch.equal(weight, weights[name]), name


def test_bf16_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^zero.stage=0: train.dtype=bf16 .*choose zero.stage 1, 2 or 3$"):
        deepspeed_config(dataclasses.replace(TRAIN, dtype="bf16"), ZeroConfig(0), 2, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("zero", range(4))
def test_killed_at_random_moments(tokens: Path, tmp_path: Path, zero: int) -> None:
    """Kills fall on anything: imports, the first step, a step, saving (which every second step does), the end."""
    begin = time.monotonic()
    expected = run(tmp_path / "whole", tokens, zero, steps=150)
    lasted = time.monotonic() - begin
    job = prepare(tmp_path / "out", tokens, zero, steps=150)
    moments = random.Random()
    for _ in range(4):
        with start(job, 2) as launcher:
            with contextlib.suppress(subprocess.TimeoutExpired):
                launcher.wait(moments.uniform(0.3 * lasted, lasted))
            launcher.kill()
        wait_until_gone(job)
    rows = run(tmp_path / "out", tokens, zero, steps=150)
    assert [row["step"] for row in rows] == list(range(1, 151))
    assert column(rows, "loss") == column(expected, "loss")
    weights = final_weights(tmp_path / "whole")
    for name, weight in final_weights(tmp_path / "out").items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.slow
def test_told_to_stop_before_it_trains(tokens: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path / "out", tokens, steps=1_000_000)
    begun_log, begun_ranks = (lambda: (job.parent / "log.txt").exists()), (lambda: len(ranks(job)) == 2)
    for begun, told_by in ((begun_log, signal.SIGTERM), (begun_ranks, signal.SIGUSR1)):
        with start(job, 2) as launcher:
            until = time.monotonic() + 60
            while not begun():
                assert time.monotonic() < until
                time.sleep(0.01)
            launcher.send_signal(told_by)
            _, told = launcher.communicate(timeout=60)
        assert launcher.returncode == STOPPED, told
        assert "stopped: " in told
        wait_until_gone(job)


@pytest.mark.slow
def test_a_rank_that_raises_is_named(tokens: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path / "out", tokens)
    (job.parent / "checkpoints").write_text("a file where a folder is needed")
    with pytest.raises(RuntimeError, match=r"^a rank failed: rank 0: (FileExists|NotADirectory)Error: .* \(see .*log.txt\)$"):
        launch(job, 2, job.parent / "log.txt")
    wait_until_gone(job)


@pytest.mark.slow
def test_a_rank_that_is_killed_alone_ends_the_run(tokens: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path / "out", tokens, steps=1_000_000)
    with start(job, 2) as launcher:
        wait_for_step(job, launcher, 3)
        os.kill(ranks(job)[1], signal.SIGKILL)
        _, error = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith(
        "RuntimeError: a rank failed: rank 1 was ended by SIGKILL; the system may have been out of memory (see "
    )
    assert last.endswith("log.txt)")
    merged = (job.parent / "log.txt").read_text()
    for rank in (0, 1):
        own = (job.parent / "logs" / f"rank-{rank:05d}.txt").read_text().splitlines()
        assert own[0].startswith("started: ") and all(f"rank {rank}: {line}\n" in merged for line in own)
    wait_until_gone(job)


@pytest.mark.slow
def test_a_launcher_killed_before_its_ranks_have_begun(tokens: Path, tmp_path: Path) -> None:
    job = prepare(tmp_path / "out", tokens)
    with start(job, 2) as launcher:
        until = time.monotonic() + 60
        while len(ranks(job)) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        launcher.kill()
    wait_until_gone(job)
    assert read_metrics(job.parent) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_tokens": 32 * 9}, "train.batch_tokens=288 is no multiple of sequence 32 x micro_batch 2 x 2 processes = 128"),
        ({"sequence": 2**20, "batch_tokens": 2**22}, "fewer than one sample of sequence=1048576"),
    ],
)
def test_a_mistake_is_one_line(tokens: Path, tmp_path: Path, changes: dict[str, int], said: str) -> None:
    job = prepare(tmp_path / "out", tokens, **changes)
    with pytest.raises(ValueError) as error:
        launch(job, 2, job.parent / "log.txt")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    wait_until_gone(job)
