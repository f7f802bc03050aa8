"""The same losses from every ZeRO stage, accumulation and number of ranks, and from a plain PyTorch loop."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from model.config import ACTIVATIONS
from model.llama import Llama
from pipeline.tokens.loader import Loader
from pipeline.training import checkpoint
from pipeline.training.job import Job
from pipeline.training.metrics import read_metrics
from pipeline.training.settings import TrainConfig

EOS = 2
STAGES = (0, 1, 2, 3, "3_offload")
SMALLER_FIRST = {"batch_warmup": [[3, 128], [4, 256]], "schedule": "wsd", "decay_ratio": 0.3}
MakeJob = Callable[..., Path]
RunJob = Callable[..., list[dict[str, Any]]]


def plain_losses(job: Job, tokens: Path, model: nn.Module | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and last weights of a training with nothing but PyTorch: whole batches, whole logits, the formulas by hand.

    `model`: transformers', with its own loss, in place of ours.
    """
    train = job.train
    theirs = model is not None
    if model is None:
        model = Llama(job.model)
        model.init_weights(train.seed)
    norms = [p for n, p in model.named_parameters() if n.endswith("norm.weight")]
    matrices = [p for n, p in model.named_parameters() if not n.endswith("norm.weight")]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(train.beta1, train.beta2), eps=train.adam_eps)
    loader = Loader({"crawl": [tokens / "train"]}, {"crawl": 1}, {}, train.sequence, train.seed)
    sizes = [size for steps, size in train.batch_warmup for _ in range(steps)]
    sizes += [train.batch_tokens] * (train.steps - len(sizes))
    losses, sample = [], 0
    for step, size in enumerate(sizes):
        batch = size // train.sequence
        samples = torch.from_numpy(loader.batch(sample, batch))
        sample += batch
        if theirs:
            loss = model(input_ids=samples, labels=samples).loss
        else:
            documents = alone(samples) if train.document_mask else [samples]
            pairs = [(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()) for tokens in documents]
            loss = cross_entropy(torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        for group in adam.param_groups:
            group["lr"] = plain_rate(step + 1, train)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


def plain_rate(step: int, train: TrainConfig) -> float:
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
        return train.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
    left = (train.steps - step) / round(train.decay_ratio * train.steps)
    return train.lr if left >= 1 else train.lr * (0.1 + 0.9 * (1 - math.sqrt(1 - left)))


def alone(samples: torch.Tensor) -> list[torch.Tensor]:
    """Every document of the samples in a batch of its own, up to its eos; those of one token have nothing to predict."""
    documents = []
    for row in samples.tolist():
        start = 0
        for place, token in enumerate(row, 1):
            if token == EOS or place == len(row):
                if place - start > 1:
                    documents.append(torch.tensor([row[start:place]]))
                start = place
    return documents


def close(rows: list[dict[str, Any]], expected: list[float]) -> bool:
    return [row["loss"] for row in rows] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("micro_batch", [2, 16])
@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_is_plain_pytorch(
    stage: int | str, micro_batch: int, make_job: MakeJob, run_job: RunJob, tokens: Path, tmp_path: Path
) -> None:
    job = make_job(tmp_path, stage, micro_batch=micro_batch)
    rows = run_job(job)
    expected, weights = plain_losses(Job.read(job), tokens)
    assert len(rows) == len(expected) == 20 and close(rows, expected)
    assert expected[-1] < expected[0] - 1.5, "nothing was learnt, so nothing was compared"
    assert any(row["grad_norm"] > 1 for row in rows), "nothing was clipped, so clipping was not compared"
    saved = checkpoint.load_weights(tmp_path / "checkpoints" / "step-00000020")
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_documents_that_are_told_apart_train_as_if_alone(
    activations: str, make_job: MakeJob, run_job: RunJob, tokens: Path, tmp_path: Path
) -> None:
    job = make_job(tmp_path, activations=activations, document_mask=True, steps=6)
    rows = run_job(job)
    expected, _ = plain_losses(Job.read(job), tokens)
    assert close(rows, expected)
    assert not close(run_job(make_job(tmp_path / "on", steps=6)), expected)


@pytest.mark.slow
def test_bf16_is_near_fp32(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    expected = [row["loss"] for row in run_job(make_job(tmp_path / "fp32"))]
    for stage in (1, 2, 3):
        rows = run_job(make_job(tmp_path / f"bf16-{stage}", stage, dtype="bf16"))
        assert [row["loss"] for row in rows] == pytest.approx(expected, abs=5e-3)


def test_bf16_without_zero_is_refused(make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^zero.stage=0: train.dtype=bf16 needs"):
        run_job(make_job(tmp_path, 0, dtype="bf16"))


# Ranks: real processes; one start of torchrun trains many jobs, one after another

MANY = """
import sys, threading
from pathlib import Path
import torch.distributed as dist
from pipeline.training.engine import join_ranks
from pipeline.training.job import Job
from pipeline.training.trainer import train

join_ranks()
for path in map(Path, sys.argv[1:]):
    train(Job.read(path), path.parent, threading.Event())
dist.destroy_process_group()
"""


def run_ranks(ranks: int, jobs: list[Path], folder: Path) -> None:
    script = folder / "many.py"
    script.write_text(MANY)
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "LOCAL_SIZE": str(ranks)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", script, *jobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_ranks_stages_and_accumulation(make_job: MakeJob, tokens: Path, tmp_path: Path) -> None:
    """2 ranks = 1 rank, ZeRO 0 = 1 = 2 = 3, accumulation 1 = 4; then from one checkpoint on, any to any."""
    kinds = [(stage, micro) for stage in STAGES for micro in (2, 8)]
    jobs = {kind: make_job(tmp_path / f"first-{kind[0]}-{kind[1]}", kind[0], micro_batch=kind[1]) for kind in kinds}
    run_ranks(2, list(jobs.values()), tmp_path)
    expected, _ = plain_losses(Job.read(jobs[0, 2]), tokens)
    for kind, job in jobs.items():
        assert close(read_metrics(job.parent), expected), kind

    for ranks in (1, 2):
        others = []
        for before in STAGES:
            for after in STAGES:
                folder = tmp_path / f"ranks-{ranks}-from-{before}-to-{after}"
                others.append(make_job(folder, after))
                source = jobs[before, 2].parent
                shutil.copytree(source / "checkpoints" / "step-00000008", folder / "checkpoints" / "step-00000008")
                shutil.copy(source / "metrics.jsonl", folder)
        run_ranks(ranks, others, tmp_path)
        for job in others:
            rows = read_metrics(job.parent)
            assert len(rows) == 20 and close(rows, expected), job

    last = tmp_path / "ranks-1-from-3-to-3"
    again = make_job(tmp_path / "from-1-to-2", 2)  # written by one rank, read by two
    shutil.copytree(last / "checkpoints" / "step-00000016", again.parent / "checkpoints" / "step-00000016")
    shutil.copy(last / "metrics.jsonl", again.parent)
    run_ranks(2, [again], tmp_path)
    assert close(read_metrics(again.parent), expected)


@pytest.mark.slow
def test_activations_under_zero(make_job: MakeJob, tokens: Path, tmp_path: Path) -> None:
    """What is kept for the backward changes nothing, in any stage; the matrices are so large that ZeRO-3 shares them out."""
    wide = {"dim": 320, "kv_heads": 2, "hidden": 330}
    assert 320 * 320 > 100_000  # what DeepSpeed's stage 3 leaves whole everywhere
    jobs = {}
    for stage in STAGES:
        for activations in ACTIVATIONS:
            path = make_job(tmp_path / f"{stage}-{activations}", stage, activations=activations, steps=5, lr=1e-3)
            job = json.loads(path.read_text())
            path.write_text(json.dumps(job | {"model": job["model"] | wide}))
            jobs[stage, activations] = path
    run_ranks(2, list(jobs.values()), tmp_path)
    expected, _ = plain_losses(Job.read(jobs[0, "autograd"]), tokens)
    assert expected[-1] < expected[0] - 0.5, "nothing was learnt, so nothing was compared"
    for kind, path in jobs.items():
        assert close(read_metrics(path.parent), expected), kind
