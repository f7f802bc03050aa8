"""The stage `train`: what a run may go on with, and what makes it another one."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load
from pipeline.outputs import read_json, write_json
from pipeline.stages.train import mixed, too_few
from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard
from pipeline.training.job import Job
from pipeline.training.launch import STOPPED
from pipeline.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[3]
PIECES, STEPS = 100, 40
SETTINGS = [
    *("model.dim=32", "model.layers=2", "model.heads=2", "model.kv_heads=1", "model.hidden=64", f"model.vocab_size={PIECES}"),
    *("train.sequence=32", "train.batch_tokens=512", "train.micro_batch=2", f"train.steps={STEPS}", "train.lr=1e-2"),
    *("train.warmup_steps=4", "train.checkpoint_every=1000", "train.validate_every=20", "train.log_every=1"),
]


def make_tokens(out: Path) -> None:
    """What `tokenizer` and `tokenize` leave, with random tokens."""
    random = np.random.default_rng(0)
    splits: dict[str, Any] = {}
    for split, count in (("train", 30_000), ("validation", 1_500)):
        prefix = f"tokens/{split}/crawl/0"
        files = ShardFiles.of(out / prefix)
        files.bin.parent.mkdir(parents=True)
        write_shard([np.minimum(random.zipf(1.3, count), PIECES - 1).astype(np.int64)], files.bin, files.idx, np.dtype("<u2"))
        Vocabulary("a" * 64, PIECES, 2).write(files.meta)
        splits[split] = {"tokens": count, "shards": [prefix]}
    results = {"tokenizer": {"digest": "a" * 64, "pieces": PIECES}, "tokenize": {"sources": {"crawl": splits}}}
    for stage, result in results.items():
        inputs = {"tokenizer": "tokenizer"} if stage == "tokenize" else {}
        manifest = {"stage": stage, "format": 1, "inputs": inputs, "outputs": {}, "digest": stage, "result": result}
        write_json(out / "records" / f"{stage}.json", manifest)


def command(out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", "train", f"out={out}", *SETTINGS, *overrides]


def run(out: Path, *overrides: str, code: int = 0) -> str:
    """Runs the stage to its end; returns what it says."""
    done = subprocess.run(command(out, *overrides), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def run_until(step: int, out: Path, *overrides: str) -> None:
    """Tells the stage to stop when a step was done."""
    with subprocess.Popen(command(out, *overrides), cwd=ROOT, stderr=subprocess.PIPE, text=True) as training:
        assert training.stderr is not None
        told: list[str] = []
        for line in training.stderr:
            told.append(line)
            if line.startswith(f"train: step {step}/"):
                training.terminate()
    assert training.returncode == STOPPED, "".join(told)


def test_the_plan_counts_the_smaller_batches_too() -> None:
    warmup = ["train.batch_warmup=[[10,128],[10,256]]", "mixture.epochs={crawl:1}"]
    config = load([*SETTINGS, *warmup])
    samples = 10 * 4 + 10 * 8 + (STEPS - 20) * 16
    [crawl] = mixed(config, {"crawl": samples * 32}).values()
    assert (crawl["samples"], crawl["tokens"], crawl["epochs"]) == (samples, samples * 32, 1)
    with pytest.raises(
        ValueError, match=f"^train.steps={STEPS}: the run takes {samples} samples, the mixture has {samples - 1} "
    ):
        mixed(config, {"crawl": (samples - 1) * 32})


def test_what_the_result_of_a_job_is_a_function_of() -> None:
    def job(*overrides: str) -> Job:
        config = load([*SETTINGS, *overrides])
        return Job(config.model, config.train, config.zero, config.mixture, {}, {}, "a" * 64, "tokens")

    others = ["zero=3_offload", "train.processes=4", "train.micro_batch=1", "train.activations=autograd", "train.log_every=9"]
    for other in others:
        assert job(other).result() == job().result() and job(other) != job(), other
    for other in ("train.seed=2", "train.steps=50", "train.dtype=bf16", "model.dim=64", "train.batch_warmup=[[1,128]]"):
        assert job(other).result() != job().result(), other


@pytest.mark.slow
def test_how_it_is_computed_may_change_on_the_way_but_not_what(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        make_tokens(folder)
    run(whole, "zero=1", "train.processes=1")
    expected = [row["loss"] for row in read_metrics(whole / "train")]

    run_until(3, out, "zero=1", "train.processes=1")
    wrong = run(out, f"train.steps={STEPS + 10}", code=1)
    assert wrong.startswith(
        f"error: train: train.steps is {STEPS + 10} now and was {STEPS} when {out} was made; overwrite=true"
    )
    how = ["zero=3", "train.processes=2", "train.micro_batch=4", "train.activations=recompute", "train.checkpoint_every=10"]
    how += ["train.keep_checkpoints=2", "train.validate_every=7", "train.log_every=3"]
    run(out, *how)
    rows = read_metrics(out / "train")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in rows] == pytest.approx(expected, abs=2e-6)
    assert [row["step"] for row in rows if "validation_loss" in row][-2:] == [35, STEPS]
    assert rows[-1]["validation_loss"] == pytest.approx(read_metrics(whole / "train")[-1]["validation_loss"], abs=2e-6)
    job = read_json(out / "train" / "job.json")
    assert (job["zero"]["stage"], job["train"]["processes"], job["train"]["micro_batch"]) == (3, 2, 4)

    record, before = out / "records" / "train.json", (out / "records" / "train.json").read_bytes()
    assert run(out, "zero=2", "train.processes=1", "train.log_every=5") == ""  # it is finished
    assert record.read_bytes() == before
    assert read_json(record)["result"]["tokens"] == STEPS * 512
    assert "train.lr is 0.02 now and was 0.01" in run(out, "train.lr=2e-2", code=1)


def test_a_source_with_too_few_tokens_is_named_with_what_it_lacks() -> None:
    overrides = ["experiment=demo", "mixture.shares={crawl: 0.7, books: 0.3}", "mixture.epochs={books: 2}", "train.steps=100"]
    config = load([*overrides, "train.warmup_steps=10", "train.sequence=32", "train.batch_tokens=512", "train.micro_batch=1"])
    tokens = {"crawl": 10_000_000, "books": 5_000}
    [line] = too_few(config, mixed(config, tokens), tokens)
    assert line.startswith(
        "source books has 5,000 tokens, too few for 30.0% of 51,200 in mixture.epochs.books=2: it ends at sample "
    )
    assert line.endswith("it would take 7,680 tokens, or 3.07 epochs")
    assert too_few(config, mixed(config, tokens | {"books": 8_000}), tokens) == []
