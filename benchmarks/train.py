"""Training beside Hugging Face's Trainer with LlamaForCausalLM, and beside a bare loop, in one run: speed and peak memory.

`python -m benchmarks.train` prints two tables. The first has both trainers under DeepSpeed with the same shapes, batches,
ZeRO stage and fused AdamW, two processes on a CPU, started in turns. The second has this project's loop, with everything that
it does in a step, beside forward, backward, clipping and AdamW alone, step by step in turns in one process; what is added is
the median of its steps, each over the bare ones before and after it. Other figures are the median of all steps but the first
of each start. On a GPU the shapes are 1.1B and 1.3B in bf16.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from model.config import LlamaConfig
from model.convert.hugging_face import hugging_face_config
from pipeline.training.devices import peak_flops, peak_memory

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = "bf16" if GPU else "fp32"
PROCESSES = 1 if GPU else 2
ROUNDS = 2
STEPS = 30 if GPU else 8
TURNS = 30 if GPU else 12  # steps of the second table
BILLION = {
    "1.1B": LlamaConfig(dim=2048, layers=22, heads=32, kv_heads=4, hidden=5632, max_sequence=4096),
    "1.3B": LlamaConfig(dim=2048, layers=24, heads=16, kv_heads=16, hidden=5504, max_sequence=4096),
}
SHAPES = (  # model, samples a micro-batch, sequence, micro-batches of a process in a step
    {
        f"{name}, {sequence}": (config, 16384 // sequence, sequence, 4)
        for name, config in BILLION.items()
        for sequence in (2048, 4096)
    }
    if GPU
    else {
        "dim 256": (LlamaConfig(dim=256, layers=8, heads=4, kv_heads=4, hidden=704), 8, 256, 2),
        "dim 1024": (LlamaConfig(dim=1024, layers=2, heads=16, kv_heads=16, hidden=2816), 1, 512, 2),
    }
)


class Steps(threading.Event):
    """Notes the time whenever a loop comes by, as it does by asking whether it shall stop."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def is_set(self) -> bool:
        self.note()
        return False

    def note(self) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every step but the first and, for loops that ask at a step's start, the last."""
        return [after - before for before, after in zip(self.times[1:-1], self.times[2:], strict=True)]


class Turns(Steps):
    """Lets another loop go one step further whenever a loop comes by."""

    def __init__(self, other: Iterator[None]) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        self.note()
        next(self._other)
        self.note()
        return False


def job_of(shape: str, folder: Path, processes: int, accumulation: int, steps: int) -> Path:
    """A job of random tokens, written below `folder`, with `accumulation` micro-batches of a process a step."""
    from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard
    from pipeline.training.job import Job
    from pipeline.training.settings import MixtureConfig, TrainConfig, ZeroConfig

    config, samples, sequence, _ = SHAPES[shape]
    files = ShardFiles.of(folder / "tokens")
    ids = np.random.default_rng(0).integers(3, config.vocab_size, samples * sequence * accumulation * processes * (steps + 2))
    write_shard([ids], files.bin, files.idx, np.dtype("<u2"))
    Vocabulary("tokens", config.vocab_size, 2).write(files.meta)
    train = TrainConfig(
        sequence=sequence,
        micro_batch=samples,
        batch_tokens=samples * sequence * accumulation * processes,
        steps=steps,
        warmup_steps=1,
        dtype=DTYPE,
        processes=processes,
        checkpoint_every=steps,
        validate_every=10 * steps,
        log_every=10 if GPU else 1,
    )
    shards = {"crawl": ["tokens"]}
    job = Job(config, train, ZeroConfig(1), MixtureConfig({"crawl": 1.0}), shards, shards, "tokens", "")
    path = folder / "train" / "job.json"
    path.parent.mkdir()
    path.write_text(json.dumps(job.json()))
    return path


def ours(path: Path, steps: Steps) -> list[float]:
    """Seconds of the steps of a job that is trained by this project in this rank."""
    from pipeline.training.job import Job
    from pipeline.training.trainer import train

    train(Job.read(path), path.parent, steps)
    return steps.seconds()


def theirs(path: Path, steps: Steps) -> list[float]:
    """The same job by Hugging Face's Trainer, with the DeepSpeed configuration that ours has."""
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from pipeline.tokens.shards import Shard
    from pipeline.training.engine import deepspeed_config
    from pipeline.training.job import Job

    job = Job.read(path)
    config, train = job.model, job.train
    tokens = Shard(path.parent.parent / "tokens").tokens.astype(np.int64)
    rows = [torch.from_numpy(tokens[at : at + train.sequence]) for at in range(0, len(tokens) - train.sequence, train.sequence)]
    deepspeed = deepspeed_config(train, job.zero, train.processes, config.parameter_count())
    deepspeed["zero_allow_untested_optimizer"] = True
    arguments = TrainingArguments(
        output_dir=str(path.parent / "theirs"),
        max_steps=train.steps,
        per_device_train_batch_size=train.micro_batch,
        gradient_accumulation_steps=train.accumulation(train.processes),
        deepspeed=deepspeed,
        learning_rate=train.lr,
        weight_decay=train.weight_decay,
        adam_beta1=train.beta1,
        adam_beta2=train.beta2,
        adam_epsilon=train.adam_eps,
        max_grad_norm=train.clip,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=train.dtype == "bf16",
        use_cpu=not GPU,
        ddp_backend="nccl" if GPU else "gloo",
        logging_steps=train.log_every,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
    )

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.note()

    their_config = TheirConfig.from_dict(hugging_face_config(config, None, 2), attn_implementation="sdpa", use_cache=False)
    model = LlamaForCausalLM(their_config)
    Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows], callbacks=[Clock()]).train()
    return steps.seconds()


def bare(path: Path) -> Iterator[None]:
    """The same job with nothing but forward, backward, clipping and AdamW; stands still after every step."""
    from model.llama import Llama
    from pipeline.tokens.loader import Loader
    from pipeline.training.job import Job

    job = Job.read(path)
    train = job.train
    model = Llama(job.model, train.activations).to(DEVICE, torch.bfloat16 if GPU else torch.float32)
    model.init_weights(train.seed)
    adam = torch.optim.AdamW(model.parameters(), lr=train.lr, betas=(train.beta1, train.beta2), fused=True)
    loader = Loader({"crawl": [path.parent.parent / "tokens"]}, {"crawl": 1}, {}, train.sequence, train.seed)
    for step in range(train.steps):
        rows = torch.from_numpy(loader.batch(step * train.batch, train.batch)).to(DEVICE)
        for micro in rows.split(train.micro_batch):
            loss, _ = model(micro[:, :-1], micro[:, 1:])
            (loss / rows[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        adam.step()
        adam.zero_grad()
        yield


SIDES: dict[str, Callable[[Path, Steps], list[float]]] = {"this project": ours, "Trainer": theirs}


def rank(side: str, path: Path) -> None:
    """What one process of a start does: its seconds a step and its peak memory go to a file of its own."""
    torch.set_num_threads(1)
    if side == "this project":
        from pipeline.training.engine import join_ranks

        join_ranks()
    seconds = SIDES[side](path, Steps())
    told = {"seconds": seconds, "memory": peak_memory(DEVICE)}
    (path.parent / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo are still there


def start(side: str, shape: str) -> tuple[list[float], int]:
    """Seconds of the steps, the mean over the ranks, and the largest peak memory of a start under torchrun."""
    with tempfile.TemporaryDirectory() as name:
        path = job_of(shape, Path(name), PROCESSES, SHAPES[shape][3], STEPS)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_SIZE": str(PROCESSES), "TRANSFORMERS_VERBOSITY": "error"}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        if not GPU:
            environment["DS_ACCELERATOR"] = "cpu"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
        command = [*torchrun, "-m", "benchmarks.train", side, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(done.stdout[-4000:] + done.stderr[-4000:])
        ranks = [json.loads(file.read_text()) for file in sorted(path.parent.glob("rank-*.json"))]
    means = [sum(seconds) / len(ranks) for seconds in zip(*(told["seconds"] for told in ranks), strict=True)]
    return means, max(told["memory"] for told in ranks)


def trainers() -> None:
    """This project and the Trainer in turns."""
    print(f"\n{PROCESSES} process(es), ZeRO-1, {DTYPE}            tokens/s  to Trainer     mfu  peak MB of a rank")
    peak = peak_flops(DEVICE, DTYPE)
    for shape, (config, samples, sequence, accumulation) in SHAPES.items():
        seconds: dict[str, list[float]] = {"this project": [], "Trainer": []}
        memory = dict.fromkeys(seconds, 0)
        for _ in range(ROUNDS):
            for side in seconds:
                took, most = start(side, shape)
                seconds[side] += took
                memory[side] = max(memory[side], most)
        tokens = samples * sequence * accumulation  # of a process
        rates = {side: tokens / statistics.median(times) for side, times in seconds.items()}
        for side, rate in rates.items():
            mfu = f"{rate * config.flops_per_token(sequence) / peak:.1%}" if peak else ""
            ratio = rate / rates["Trainer"]
            print(
                f"{shape:12} {side:14} {rate * PROCESSES:16,.0f} {ratio:11.3f} {mfu:>7} {memory[side] / 1e6:18,.0f}", flush=True
            )


def overhead() -> None:
    """This project's loop and the bare one in turns, in one process."""
    os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "localhost"})
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if GPU else "cpu")
    os.environ.setdefault("MASTER_PORT", "29511")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    torch.set_num_threads(1)
    from pipeline.training.engine import join_ranks

    join_ranks()
    results = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as name:
            path = job_of(shape, Path(name), 1, 1, TURNS)
            seconds = ours(path, Turns(bare(path)))
        least, here = seconds[1::2], seconds[2::2]  # the first of the seconds is a first step
        around = [(before + after) / 2 for before, after in itertools.pairwise(least)]
        added = statistics.median(own / other for own, other in zip(here, around, strict=False)) - 1
        results.append(f"{shape:12} {statistics.median(least):22.3f} {statistics.median(here):17.3f} {added:11.1%}")
    print("\nOne process             bare loop, s a step      this project       added")
    print(*results, sep="\n", flush=True)
    os._exit(0)


def main() -> None:
    """Prints the tables."""
    print(f"torch {torch.__version__}, {machine()}" + (f", {torch.cuda.get_device_name()}" if GPU else ""))
    trainers()
    sys.stdout.flush()
    overhead()


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case [side, path]:
            rank(side, Path(path))
