"""Hydra sweeps over trainings: in this process, and as jobs of a real Slurm cluster."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import Cluster

from pipeline.outputs import read_json, write_json
from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard
from pipeline.training.metrics import read_metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "model=debug", "model.vocab_size=100", "model.dim=32", "model.layers=2", "model.heads=2", "model.kv_heads=1",
    "model.hidden=64", "model.max_sequence=32", "train.sequence=32", "train.batch_tokens=128", "train.micro_batch=2",
    "train.steps=3", "train.warmup_steps=0", "train.dtype=fp32", "train.log_every=1", "train.processes=1",
]  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An `out` in which everything before `train` is finished."""
    folder = tmp_path / "out"
    (folder / "tokens").mkdir(parents=True)
    shards = {}
    for name in ("train", "validation"):
        files = ShardFiles.of(folder / "tokens" / name)
        write_shard([np.random.default_rng(0).integers(3, 100, 3000)], files.bin, files.idx, np.dtype("<u2"))
        Vocabulary("a" * 64, 100, 2).write(files.meta)
        shards[name] = {"tokens": 3000, "shards": [f"tokens/{name}"]}
    results = {"tokenizer": {"pieces": 100, "digest": "a" * 64}, "tokenize": {"sources": {"crawl": shards}}}
    for stage, result in results.items():
        manifest = {"stage": stage, "format": 1, "config": {}, "inputs": {}, "outputs": {}, "digest": stage, "result": result}
        write_json(folder / "records" / f"{stage}.json", manifest)
    return folder


def sweep(out: Path, environment: dict[str, str], *settings: str) -> None:
    command = [sys.executable, "-m", "pipeline.sweep", "-m", f"out={out}", *settings]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]


def check(out: Path) -> None:
    runs = [out / "sweep" / number for number in ("0", "1")]
    assert [read_json(path / "train" / "job.json")["train"]["lr"] for path in runs] == [0.001, 0.01]
    assert all((path / "records" / "train.json").exists() for path in runs)
    first, second = ([row["loss"] for row in read_metrics(path / "train")] for path in runs)
    assert first[0] == second[0] and first[-1] != second[-1]


def test_one_after_another(out: Path) -> None:
    sweep(out, dict(os.environ), "train.lr=0.001,0.01", *SETTINGS)
    check(out)


def test_as_jobs_of_slurm(out: Path, slurm: Cluster) -> None:
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=2", "hydra.launcher.timeout_min=10"]
    sweep(out, slurm.environment, "train.lr=0.001,0.01", *SETTINGS, *launcher)
    check(out)
