"""Fixtures of the tests of training: tiny jobs, and a process group of one in this process."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard

VOCABULARY = 100
TOKENIZER = "a" * 64
MODEL = {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 64, "vocab_size": VOCABULARY, "max_sequence": 32}
TRAIN: dict[str, Any] = {
    "sequence": 32,
    "batch_tokens": 512,
    "micro_batch": 2,
    "steps": 20,
    "lr": 1e-2,
    "warmup_steps": 4,
    "dtype": "fp32",
    "processes": 2,
    "checkpoint_every": 8,
    "keep_checkpoints": 3,
    "validate_every": 10,
    "log_every": 3,
}


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


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, list[Path]], list[list[dict[str, Any]]]]:
    """`run_ranks(n, jobs)` trains many jobs one after another in n processes, and returns the rows of each one's metrics."""
    from pipeline.training.metrics import read_metrics

    root = Path(__file__).resolve().parents[3]
    script = tmp_path_factory.mktemp("ranks") / "many.py"
    script.write_text(MANY)

    def run(ranks: int, jobs: list[Path]) -> list[list[dict[str, Any]]]:
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "LOCAL_SIZE": str(ranks)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        if not Path("/dev/nvidiactl").exists():
            environment["DS_ACCELERATOR"] = "cpu"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", script, *jobs]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return [read_metrics(job.parent) for job in jobs]

    return run


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with token shards `train` and `validation` of a skewed distribution: there is something to learn."""
    folder = tmp_path_factory.mktemp("tokens")
    random = np.random.default_rng(0)
    for name, count in (("train", 20_000), ("validation", 1_500)):
        files = ShardFiles.of(folder / name)
        ids = np.minimum(random.zipf(1.3, count), VOCABULARY - 1)
        write_shard([ids.astype(np.int64)], files.bin, files.idx, np.dtype("<u2"))
        Vocabulary(TOKENIZER, VOCABULARY, 2).write(files.meta)
    return folder


@pytest.fixture(scope="session")
def make_job(tokens: Path) -> Callable[..., Path]:
    """`make_job(folder, zero=1, **train)` writes `folder/job.json` and returns its path; `zero` as in `zero=3_offload`."""

    def write(folder: Path, zero: int | str = 1, **train: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        job = {
            "model": MODEL,
            "train": TRAIN | train,
            "zero": {"stage": int(str(zero)[0]), "offload": zero == "3_offload"},
            "mixture": {"shares": {"crawl": 1.0}, "epochs": {}},
            "train_shards": {"crawl": [str(tokens / "train")]},
            "validation_shards": {"crawl": [str(tokens / "validation")]},
            "tokenizer": TOKENIZER,
            "tokens": "digest of the tokens",
        }
        (folder / "job.json").write_text(json.dumps(job))
        return folder / "job.json"

    return write


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """A process group of one, in this process."""
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        from pipeline.training.engine import join_ranks

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        join_ranks()
        yield
        dist.destroy_process_group()


STAGES = (0, 1, 2, 3, "3_offload")
SMALLER_FIRST = {"batch_warmup": [[3, 128], [4, 256]], "schedule": "wsd", "decay_ratio": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "micro 2": {},
    "micro 8": {"micro_batch": 8},
    "documents": {"document_mask": True},
    "smaller": SMALLER_FIRST,
}


@pytest.fixture(scope="session")
def two_ranks(make_job: Any, run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int | str, str], Path]:
    """Finished jobs of two ranks, {(ZeRO stage, one of SETTINGS): job}."""
    folder = tmp_path_factory.mktemp("two-ranks")
    kinds = [(stage, name) for stage in STAGES for name in SETTINGS]
    jobs = {kind: make_job(folder / f"{kind[0]}-{kind[1]}", kind[0], **SETTINGS[kind[1]]) for kind in kinds}
    run_ranks(2, list(jobs.values()))
    return jobs


@pytest.fixture
def run_job(one_rank: None) -> Callable[..., list[dict[str, Any]]]:
    """`run_job(path, stop_after=n)` trains a job in this process and returns the rows of its metrics."""
    from pipeline.training.job import Job
    from pipeline.training.metrics import read_metrics
    from pipeline.training.trainer import train

    class StopAfter(threading.Event):
        """Is set from the step after `steps` others on, which the run then does, saves and leaves."""

        def __init__(self, steps: int) -> None:
            super().__init__()
            self.steps = steps

        def is_set(self) -> bool:
            self.steps -= 1
            return self.steps <= 0

    def run(path: Path, stop_after: int | None = None) -> list[dict[str, Any]]:
        train(Job.read(path), path.parent, threading.Event() if stop_after is None else StopAfter(stop_after))
        return read_metrics(path.parent)

    return run
