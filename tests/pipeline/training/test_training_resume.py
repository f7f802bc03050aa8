"""Stop and go on: bit by bit the same in the same place, and from any ZeRO stage and world size to any other."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.job import Job
from pipeline.training.metrics import read_metrics

Rows = list[dict[str, Any]]
MakeJob = Callable[..., Path]
RunJob = Callable[..., Rows]
RunRanks = Callable[[int, list[Path]], list[Rows]]
BF16 = [pytest.param(stage, "bf16", marks=pytest.mark.slow) for stage in (1, 2, 3, "3_offload")]


def losses(rows: Rows) -> list[float]:
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def digests(job: Path) -> dict[str, dict[str, str]]:
    """The digests of the files of all checkpoints of a job."""
    folder = job.parent / "checkpoints"
    return {path.name: json.loads((path / "checkpoint.json").read_text())["files"] for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("stage", "dtype"), [*((stage, "fp32") for stage in (0, 1, 2, 3, "3_offload")), *BF16])
def test_a_stopped_run_goes_on_bitwise(
    stage: int | str, dtype: str, make_job: MakeJob, run_job: RunJob, tmp_path: Path
) -> None:
    train = {"dtype": dtype, "steps": 12, "micro_batch": 4}
    whole, stopped = make_job(tmp_path / "whole", stage, **train), make_job(tmp_path / "stopped", stage, **train)
    expected = run_job(whole)
    assert len(run_job(stopped, stop_after=5)) == 5
    rows = run_job(stopped)
    assert losses(rows) == losses(expected) and len(rows) == 12
    assert rows[-1]["validation_loss"] == expected[-1]["validation_loss"]
    assert digests(stopped)["step-00000012"] == digests(whole)["step-00000012"]


@pytest.mark.parametrize("stops", [(2,), (3, 2), (5,), (7, 1)])
def test_stops_while_the_batch_grows(stops: tuple[int, ...], make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    train = {"steps": 12, "batch_warmup": [[3, 128], [4, 256]], "schedule": "wsd", "decay_ratio": 0.3}
    whole, stopped = make_job(tmp_path / "whole", **train), make_job(tmp_path / "stopped", **train)
    expected = run_job(whole)
    for steps in stops:
        run_job(stopped, stop_after=steps)
    manifest = json.loads((checkpoint.latest(stopped.parent / "checkpoints") / "checkpoint.json").read_text())
    assert manifest["sample"] == sum([4, 4, 4, 8, 8, 8, 8, 16][: sum(stops)])
    rows = run_job(stopped)
    assert losses(rows) == losses(expected) and len(rows) == 12
    for name in ("tokens", "lr", "grad_norm"):
        assert [row[name] for row in rows] == [row[name] for row in expected], name
    assert digests(stopped)["step-00000012"] == digests(whole)["step-00000012"]


def test_there_is_no_randomness_but_the_seeds(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    """A run neither draws from the random states of the process nor depends on them, so none has to be stored."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        job = make_job(tmp_path / f"{seed}", steps=6)
        run_job(job)
        assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        runs.append(digests(job))
    assert runs[0] == runs[1]


def test_another_stage_at_every_stop(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    expected = losses(run_job(make_job(tmp_path / "whole", 1)))
    for stage in (0, 3, 2, 1, 3, 0, "3_offload", 2, "3_offload", 0):
        job = make_job(tmp_path / "stages", stage)
        rows = run_job(job, stop_after=2)
    rows = run_job(make_job(tmp_path / "stages", 1))
    assert losses(rows) == pytest.approx(expected, abs=1e-6)


def test_every_stage_takes_bf16_s_masters(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    """fp32 weights and moments pass from stage to stage without a bit of difference, and Adam's step count with them."""
    states = []
    run_job(make_job(tmp_path / "1", 1, dtype="bf16"), stop_after=4)
    for number, stage in enumerate((2, 3, "3_offload", 1)):
        job = make_job(tmp_path / f"{number + 2}", stage, dtype="bf16")
        shutil.copytree(tmp_path / "1" / "checkpoints", job.parent / "checkpoints")
        engine, told = engine_of(job)
        state = checkpoint.load(engine, job.parent / "checkpoints" / "step-00000004", told.json())
        assert (state.step, state.sample) == (4, 4 * 16)
        saver = checkpoint.Saver(engine, job.parent / "checkpoints", keep=3)
        saver.save(checkpoint.State(5, 80), told.json())
        saver.finish()
        states.append(read_all(job.parent / "checkpoints" / "step-00000005"))
        masters = checkpoint.load_weights(job.parent / "checkpoints" / "step-00000005")
        if stage in (1, 2):
            for name, parameter in engine.module.named_parameters():
                assert torch.equal(parameter, masters[name].bfloat16()), name
    first = read_all(tmp_path / "1" / "checkpoints" / "step-00000004")
    for state in states:
        assert state.keys() == first.keys() and all(torch.equal(state[key], first[key]) for key in first)
    manifest = json.loads((job.parent / "checkpoints" / "step-00000005" / "checkpoint.json").read_text())
    assert (manifest["adam_step"], manifest["sample"]) == (4, 80)


def engine_of(path: Path) -> tuple[Any, Job]:
    """A fresh engine for a job."""
    from pipeline.training.engine import build_engine, build_model

    job = Job.read(path)
    other = dataclasses.replace(job.train, seed=7)
    return build_engine(build_model(job.model, other, job.zero, 1), job.train, job.zero, 1), job


def read_all(path: Path) -> dict[str, torch.Tensor]:
    """All whole tensors of a checkpoint, by kind and name."""
    shapes = json.loads((path / "checkpoint.json").read_text())["parameters"]
    pieces = checkpoint._Pieces(path)
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    return {f"{k} {n}": pieces.read(k, n, 0, torch.Size(s).numel()) for n, s in shapes.items() for k in kinds}


def test_a_broken_newest_costs_its_steps(
    make_job: MakeJob, run_job: RunJob, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, job = (
        make_job(tmp_path / "whole", steps=10, checkpoint_every=4),
        make_job(tmp_path / "job", steps=10, checkpoint_every=4),
    )
    expected = losses(run_job(whole))
    run_job(job, stop_after=9)
    path = job.parent / "checkpoints" / "step-00000009" / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert losses(run_job(job)) == expected
    assert "warning: " in capfd.readouterr().err
    assert digests(job)["step-00000010"] == digests(whole)["step-00000010"]


# World sizes: real processes


@pytest.mark.slow
def test_another_world_and_another_stage(
    two_ranks: dict[tuple[int | str, str], Path], make_job: MakeJob, run_ranks: RunRanks, tmp_path: Path
) -> None:
    """1, 2 and 4 ranks go on with each other's checkpoints, of any stage in any stage, as if nobody had stopped."""
    stages = [stage for stage, name in two_ranks if name == "micro 2"]
    expected = losses(read_metrics(two_ranks[0, "micro 2"].parent))

    def going_on(source: Path, step: int, name: str, stage: int | str) -> Path:
        job = make_job(tmp_path / name, stage)
        saved = f"step-{step:08d}"
        shutil.copytree(source.parent / "checkpoints" / saved, job.parent / "checkpoints" / saved)
        shutil.copy(source.parent / "metrics.jsonl", job.parent)
        return job

    def run(ranks: int, jobs: list[Path]) -> None:
        for job, rows in zip(jobs, run_ranks(ranks, jobs), strict=True):
            assert len(rows) == 20 and losses(rows) == pytest.approx(expected, abs=1e-6), job

    next_one = dict(zip(stages, stages[1:] + stages[:1], strict=True))
    first = {stage: two_ranks[stage, "micro 2"] for stage in stages}
    one = {(a, b): going_on(first[a], 8, f"2-to-1-{a}-{b}", b) for a in stages for b in stages}
    run(1, list(one.values()))
    four = {a: going_on(first[a], 8, f"2-to-4-{a}", b) for a, b in next_one.items()}
    four |= {f"from 1, {a}": going_on(one[a, a], 16, f"1-to-4-{a}", b) for a, b in next_one.items()}
    run(4, list(four.values()))
    two = [going_on(one[a, a], 16, f"1-to-2-{a}", b) for a, b in next_one.items()]
    two += [going_on(four[a], 16, f"4-to-2-{a}", b) for a, b in next_one.items()]
    run(2, two)
    run(1, [going_on(four[a], 16, f"4-to-1-{a}", b) for a, b in next_one.items()])
