"""The plan beside what real engines take, and beside LLaMA's published hours."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.config import ACTIVATIONS, LlamaConfig
from model.llama import Llama
from pipeline.__main__ import main
from pipeline.training.devices import GPUS
from pipeline.training.plan import (
    LLAMA_HOURS,
    Memory,
    implied_mfu,
    is_out_of_memory,
    largest_micro_batch,
    memory,
    out_of_memory,
)
from pipeline.training.plan import seconds as seconds_of
from pipeline.training.settings import TrainConfig

ROOT = Path(__file__).resolve().parents[3]
SMALL = LlamaConfig(dim=512, layers=4, heads=8, kv_heads=8, hidden=1408, vocab_size=4096, max_sequence=2048)
WIDE = LlamaConfig(dim=512, layers=2, heads=8, kv_heads=8, hidden=1408, vocab_size=16384, max_sequence=2048)
SEVEN_BILLION = LlamaConfig()

# Every engine is tried on a tiny model first, so that what is loaded along the way does not count; then the kernel forgets the
# peak so far. malloc is told to give memory back at once, so that what is resident is what is in use.
MEASURE = """
import gc, json, os, sys
import torch
torch.set_num_threads(1)
import torch.distributed as dist
from model.config import LlamaConfig
from model.llama import Llama
from pipeline.training.engine import build_engine, join_ranks
from pipeline.training.settings import TrainConfig, ZeroConfig

def resident(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

def steps(model_config, train, zero):
    model = Llama(model_config, train.activations)
    model.init_weights(0)
    engine = build_engine(model, train, zero, world)
    for _ in range(2):
        for _ in range(train.accumulation(world)):
            tokens = torch.randint(model_config.vocab_size, (train.micro_batch, train.sequence + 1))
            loss, count = engine(tokens[:, :-1], tokens[:, 1:])
            engine.backward(loss / count)
            engine.step()
    engine.destroy()

join_ranks()
rank, world = dist.get_rank(), dist.get_world_size()
for model, train, stage in json.loads(sys.argv[1]):
    tiny = LlamaConfig(**{**model, "dim": 64, "layers": 1, "heads": 1, "kv_heads": 1, "hidden": 128})
    short = {**train, "sequence": 32, "micro_batch": 1}
    short["batch_tokens"] = train["batch_tokens"] // (train["sequence"] * train["micro_batch"]) * 32
    steps(tiny, TrainConfig(**short), ZeroConfig(stage))
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before = resident("VmRSS")
    steps(LlamaConfig(**model), TrainConfig(**train), ZeroConfig(stage))
    if rank == 0:
        print("took", resident("VmHWM") - before, flush=True)
    gc.collect()
dist.barrier()
os._exit(0)
"""


def train_config(world: int, accumulation: int = 1, **changes: object) -> TrainConfig:
    """One sample of 32 tokens a micro-batch, so that weights, gradients and optimizer are nearly all there is."""
    values = {"sequence": 32, "micro_batch": 1, "dtype": "fp32", "steps": 10, "warmup_steps": 1} | changes
    values["batch_tokens"] = values["sequence"] * values["micro_batch"] * world * accumulation  # type: ignore[operator]
    return TrainConfig(**values)  # type: ignore[arg-type]


def measured(world: int, jobs: list[tuple[LlamaConfig, TrainConfig, int]]) -> list[int]:
    """Bytes that the first of `world` ranks took for each job, at most."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_SIZE": str(world), "DS_ACCELERATOR": "cpu"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    told = json.dumps([(vars(model), vars(train), stage) for model, train, stage in jobs])
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", "--no-python"]
    command = [sys.executable, *torchrun, sys.executable, "-c", MEASURE, told]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took")]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="measures processes on CPUs")
@pytest.mark.parametrize("world", [1, 2])
def test_memory_is_that_of_real_engines(world: int) -> None:
    """Each ZeRO stage, with many parameters in one bucket and with embeddings larger than a bucket, one micro-batch a step and
    two. gloo's all-gather, with which ZeRO-3 gathers on CPUs, makes a copy."""
    jobs = [
        (model, train_config(world, accumulation, dtype=dtype), stage)
        for model, accumulation in ((SMALL, world), (WIDE, 3 - world))
        for dtype in ("fp32", "bf16")
        for stage in range(dtype == "bf16", 4)
    ]
    found = measured(world, jobs)
    assert len(found) == len(jobs)
    wrong = []
    for (model, train, stage), took in zip(jobs, found, strict=True):
        planned = memory(model, train, stage=stage, world=world, activations=train.activations).total
        if stage == 3 and world > 1:
            planned += model.parameter_bytes(2 if train.dtype == "bf16" else 4)
        case = (model.vocab_size, train.dtype, stage, train.activations, train.micro_batch, train.accumulation(world))
        print(*case, f"planned {planned / 1e6:.1f} MB, took {took / 1e6:.1f}: {planned / took - 1:+.1%}")
        if abs(planned / took - 1) > 0.1:
            wrong.append((*case, planned, took))
    assert not wrong


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_activations_are_those_that_torch_allocates(activations: str, itemsize: int, tmp_path: Path) -> None:
    """The peak of a forward and backward beside weights and gradients, as torch's allocator counts it."""
    model_config = LlamaConfig(dim=256, layers=3, heads=4, kv_heads=2, hidden=704, vocab_size=256, max_sequence=256)
    model = Llama(model_config, activations).to(torch.bfloat16 if itemsize == 2 else torch.float32)
    model.init_weights(0)
    tokens = torch.randint(256, (8, 257))

    def step() -> None:
        loss, count = model(tokens[:, :-1], tokens[:, 1:])
        (loss / count).backward()

    step()  # the gradients are there from now on
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    took = max(itertools.accumulate(size for _, size in sorted(changes)))
    train = train_config(1, 2, dtype="bf16" if itemsize == 2 else "fp32", sequence=256, micro_batch=8)
    planned = memory(model_config, train, stage=1, world=1, activations=activations).activations
    assert planned == pytest.approx(took, rel=0.1)


def test_llamas_hours_mean_what_its_paper_says() -> None:
    """380 tokens a second on each A100 for 65B (section 2.4)."""
    implied = {name: implied_mfu(run) for name, run in LLAMA_HOURS.items()}
    assert implied == {
        "LLaMA 7B": pytest.approx(0.45, abs=0.02),
        "LLaMA 13B": pytest.approx(0.53, abs=0.02),
        "LLaMA 33B": pytest.approx(0.47, abs=0.02),
        "LLaMA 65B": pytest.approx(0.485, abs=0.01),
    }
    model, tokens, hours = LLAMA_HOURS["LLaMA 65B"]
    assert tokens / hours / 3600 == pytest.approx(380, rel=0.01)
    days = seconds_of(model, 2048, tokens, 2048, GPUS["A100"].peak, implied["LLaMA 65B"]) / 86400
    assert days == pytest.approx(21, abs=0.5)


def test_zero_is_that_of_its_paper() -> None:
    """Of 7.5 billion parameters over 64 GPUs, states alone take 120, 31.4, 16.6 and 1.9 GB (arXiv 1910.02054, figure 1), with
    2-byte gradients; here they are summed in fp32."""
    train = TrainConfig(micro_batch=1, batch_tokens=2048 * 64 * 2)
    count = SEVEN_BILLION.parameter_count()
    for stage, expected in ((1, 2 + 6 + 12 / 64), (2, 2 + 16 / 64), (3, 18 / 64)):
        need = memory(SEVEN_BILLION, train, stage=stage, world=64, activations="manual")
        states = need.weights + need.optimizer + (need.gradients if stage > 1 else 6 * count)
        assert states == pytest.approx(expected * count, rel=0.001), stage


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_largest_micro_batch_fits_and_the_next_does_not(stage: int, activations: str) -> None:
    train = TrainConfig()
    limit = 72 * 10**9
    place = {"stage": stage, "world": 8, "activations": activations}
    largest = largest_micro_batch(SEVEN_BILLION, train, limit, **place)
    if largest:
        assert memory(SEVEN_BILLION, train, micro_batch=largest, **place).total <= limit
    assert memory(SEVEN_BILLION, train, micro_batch=largest + 1, **place).total > limit
    assert largest_micro_batch(SEVEN_BILLION, train, 10**9, **place) == 0


def test_offload_leaves_activations_on_the_device() -> None:
    place = {"stage": 3, "world": 8, "activations": "manual"}
    here, there = (memory(SEVEN_BILLION, TrainConfig(), offload=offload, **place) for offload in (False, True))
    assert isinstance(there, Memory)
    assert (there.weights, there.gradients, there.optimizer) == (0, 0, 0)
    assert there.host >= here.weights + here.optimizer
    assert there.total < here.total


def test_what_would_save_memory_is_told() -> None:
    train = TrainConfig(micro_batch=8, sequence=2048, activations="autograd")
    line = out_of_memory(SEVEN_BILLION, train, 1, 8)
    assert line.startswith("a rank needs about ") and "\n" not in line
    for change in ("train.micro_batch=4", "zero=2", "zero=3", "zero=3_offload", "train.activations=recompute"):
        assert change in line, change


def test_exceptions_that_mean_too_little_memory() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("something else"))


@pytest.mark.parametrize("model", ["llama_7b", "llama_65b", "llama2_70b", "llama_15m"])
def test_the_command_needs_neither_gpu_nor_outputs(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["mixture=llama", "train.steps=333000", "train.batch_tokens=4194304", "train.micro_batch=1", "train.sequence=1024"]
    keys += [f"model={model}", f"out={tmp_path}", "train.dtype=bf16", "plan.gpus=64", "plan.tokens={crawl: 900000000000}"]
    if model == "llama_15m":
        keys += ["train.sequence=256", "plan.gpu=H100", "plan.memory=70"]
    assert main(["plan", *keys]) == 0
    told = capsys.readouterr().out
    for word in ("parameters", "days at an MFU", "3_offload", "recompute", "stackexchange", "epochs", "1.04"):
        assert word in told, word
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "plan.gpu=Voodoo2"]) == 1
    assert "plan.gpu=Voodoo2: choose from" in capsys.readouterr().err
