"""Stop and go on, with every ZeRO stage in this process: bit by bit the same, and from any stage to any other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training import checkpoint
from pipeline.training.job import Job

Rows = list[dict[str, Any]]
MakeJob = Callable[..., Path]
RunJob = Callable[..., Rows]
BF16 = [pytest.param(stage, "bf16", marks=pytest.mark.slow) for stage in (1, 2, 3)]


def losses(rows: Rows) -> list[float]:
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def digests(job: Path) -> dict[str, dict[str, str]]:
    """The digests of the files of all checkpoints of a job."""
    folder = job.parent / "checkpoints"
    return {path.name: json.loads((path / "checkpoint.json").read_text())["files"] for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("stage", "dtype"), [*((stage, "fp32") for stage in range(4)), *BF16])
def test_a_stopped_run_goes_on_bitwise(stage: int, dtype: str, make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    train = {"dtype": dtype, "steps": 12, "micro_batch": 4}
    whole, stopped = make_job(tmp_path / "whole", stage, **train), make_job(tmp_path / "stopped", stage, **train)
    expected = run_job(whole)
    assert len(run_job(stopped, stop_after=5)) == 5
    rows = run_job(stopped)
    assert losses(rows) == losses(expected) and len(rows) == 12
    assert rows[-1]["validation_loss"] == expected[-1]["validation_loss"]
    assert digests(stopped)["step-00000012"] == digests(whole)["step-00000012"]


def test_another_stage_at_every_stop(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    expected = losses(run_job(make_job(tmp_path / "whole", 1)))
    for stage in (0, 3, 2, 1, 3, 0, 2, 0):
        job = make_job(tmp_path / "stages", stage)
        rows = run_job(job, stop_after=2)
    rows = run_job(make_job(tmp_path / "stages", 1))
    assert losses(rows) == pytest.approx(expected, abs=1e-6)


def test_every_stage_takes_bf16_s_masters(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    """fp32 weights and moments pass from stage to stage without a bit of difference, and Adam's step count with them."""
    states = []
    run_job(make_job(tmp_path / "1", 1, dtype="bf16"), stop_after=4)
    for number, stage in enumerate((2, 3, 1)):
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
        if stage < 3:
            for name, parameter in engine.module.named_parameters():
                assert torch.equal(parameter, masters[name].bfloat16()), name
    first = read_all(tmp_path / "1" / "checkpoints" / "step-00000004")
    for state in states:
        assert state.keys() == first.keys() and all(torch.equal(state[key], first[key]) for key in first)
    manifest = json.loads((job.parent / "checkpoints" / "step-00000005" / "checkpoint.json").read_text())
    assert (manifest["adam_step"], manifest["sample"]) == (4, 80)


def engine_of(path: Path) -> tuple[Any, Job]:
    """A fresh engine for a job."""
    from model.llama import Llama
    from pipeline.training.engine import build_engine

    job = Job.read(path)
    model = Llama(job.model)
    model.init_weights(7)
    return build_engine(model, job.train, job.zero, 1), job


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
