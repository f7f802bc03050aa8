"""The same losses from every ZeRO stage, accumulation and number of ranks, from a plain PyTorch loop and from transformers."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from model.config import ACTIVATIONS
from model.convert.hugging_face import to_hugging_face
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
RunRanks = Callable[[int, list[Path]], list[list[dict[str, Any]]]]
GOLDEN = Path(__file__).with_name("golden_losses.json")


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


@pytest.mark.parametrize("stage", STAGES)
def test_smaller_batches_first_and_wsd(
    stage: int | str, make_job: MakeJob, run_job: RunJob, tokens: Path, tmp_path: Path
) -> None:
    """Steps of 2, 4 and 8 micro-batches."""
    job = make_job(tmp_path, stage, **SMALLER_FIRST)
    rows = run_job(job)
    expected, _ = plain_losses(Job.read(job), tokens)
    assert len(rows) == 20 and close(rows, expected)
    assert [row["tokens"] for row in rows] == [128, 256, 384, 640, 896, 1152, 1408, *range(1920, 8065, 512)]


def test_one_rank_is_transformers(make_job: MakeJob, run_job: RunJob, tokens: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    told = Job.read(job)
    first = Llama(told.model)
    first.init_weights(told.train.seed)
    to_hugging_face(first.state_dict(), told.model, tmp_path / "model", bos=None, eos=EOS)
    expected, _ = plain_losses(told, tokens, LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32))
    assert close(run_job(job), expected)


# Golden curves: what parity in one run cannot see, a change of them all


@pytest.mark.parametrize(
    ("name", "changes"),
    [("plain", {}), ("smaller batches first, wsd", SMALLER_FIRST), ("documents told apart", {"document_mask": True})],
)
def test_golden_curves(name: str, changes: dict[str, Any], make_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    """Losses are those of the day on which they were last written: `RENEW_GOLDEN=1 pytest -k golden_curves` writes them.

    Kernels of another machine sum in another order: without AVX, and with AVX2 for AVX-512, the losses move by up to 5e-7.
    """
    losses = [row["loss"] for row in run_job(make_job(tmp_path, **changes))]
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("RENEW_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: losses}, indent=1) + "\n")
    else:
        assert losses == pytest.approx(golden[name], abs=5e-6)


# Ranks: real processes; one start of torchrun trains many jobs, one after another


@pytest.mark.slow
def test_two_ranks(two_ranks: dict[tuple[int | str, str], Path], tokens: Path) -> None:
    """2 ranks = 1 rank = plain PyTorch, in every stage of ZeRO, with accumulation 1 = 4, also where ranks have other counts of
    labels, and where the batch grows."""
    names = {name for _, name in two_ranks}
    expected = {name: plain_losses(Job.read(two_ranks[0, name]), tokens)[0] for name in names}
    assert expected["micro 2"] == expected["micro 8"]
    for (stage, name), job in two_ranks.items():
        rows = read_metrics(job.parent)
        assert len(rows) == 20 and close(rows, expected[name]), (stage, name)


@pytest.mark.slow
def test_activations_under_zero(make_job: MakeJob, run_ranks: RunRanks, tokens: Path, tmp_path: Path) -> None:
    """What is kept for the backward changes nothing, in any stage; the matrices are so large that ZeRO-3 shares them out."""
    wide = {"dim": 320, "kv_heads": 2, "hidden": 330}
    assert 320 * 320 > 100_000  # what DeepSpeed's stage 3 leaves whole everywhere
    jobs = {}
    for stage in STAGES:
        for activations in ACTIVATIONS:
            path = make_job(tmp_path / f"{stage}-{activations}", stage, activations=activations, lr=1e-3)
            job = json.loads(path.read_text())
            path.write_text(json.dumps(job | {"model": job["model"] | wide}))
            jobs[stage, activations] = path
    curves = run_ranks(2, list(jobs.values()))
    expected, _ = plain_losses(Job.read(jobs[0, "autograd"]), tokens)
    assert expected[-1] < expected[0] - 0.5, "nothing was learnt, so nothing was compared"
    for kind, rows in zip(jobs, curves, strict=True):
        assert len(rows) == 20 and close(rows, expected), kind
