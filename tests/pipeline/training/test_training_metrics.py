"""The file of metrics: whole lines only, each step once."""

import gzip
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from pipeline.tokens.mixture import Mixture
from pipeline.training.devices import find_gpu, peak_flops, peak_memory
from pipeline.training.job import Job
from pipeline.training.metrics import FILE, Metrics, perplexity, read_metrics
from pipeline.training.settings import MixtureConfig, TrainConfig, ZeroConfig

MakeJob = Callable[..., Path]
RunJob = Callable[..., list[dict[str, Any]]]
pytestmark = pytest.mark.usefixtures("one_rank")


TRAIN = TrainConfig(steps=100, warmup_steps=1, batch_tokens=64, sequence=8, dtype="fp32")
JOB = Job(LlamaConfig(), TRAIN, ZeroConfig(), MixtureConfig({"crawl": 3, "books": 1}), {}, {}, "", "")


def made(folder: Path, start: int) -> Metrics:
    return Metrics(folder, start, start * TRAIN.batch, JOB, Mixture(JOB.mixture.shares, {"books": 5}).counts, "cpu")


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder)]


def write(folder: Path, start: int, until: int) -> None:
    """Steps start + 1 … until; rows are written after every second of them, as if the others were not logged."""
    metrics = made(folder, start)
    for step in range(start + 1, until + 1):
        metrics.start()
        metrics.add(step, step * TRAIN.batch, 0.1, torch.tensor(1.0 / step, dtype=torch.float64), torch.tensor(2.0))
        if step % 2 == 0 or step == until:
            metrics.write(metrics.stop())
    metrics.close()


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0, 3)
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["tokens"], row["loss"], row["lr"], row["grad_norm"]) for row in rows] == [
        (1, 64, 1.0, 0.1, 2.0),
        (2, 128, 0.5, 0.1, 2.0),
        (3, 192, 1 / 3, 0.1, 2.0),
    ]
    assert all(row["tokens_per_second"] > 0 and row["seconds"] > 0 and row["mfu"] > 0 for row in rows)
    assert [row["perplexity"] for row in rows] == [math.exp(row["loss"]) for row in rows]
    assert all(row["seconds_left"] == pytest.approx(row["seconds"] * (100 - row["step"]), abs=0.1) for row in rows)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith("train: step 2/100, loss 0.5, lr 0.1, grad_norm 2, ")
    assert list((tmp_path / "tensorboard").iterdir())


def test_none_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / FILE).write_text("")
    assert read_metrics(tmp_path) == []


def test_a_resume_cuts_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 0, 7)
    before = read_metrics(tmp_path)
    write(tmp_path, 4, 9)
    after = read_metrics(tmp_path)
    assert after[:4] == before[:4]
    assert steps(tmp_path) == list(range(1, 10))
    write(tmp_path, 0, 2)
    assert steps(tmp_path) == [1, 2]


def test_a_cut_last_line(tmp_path: Path) -> None:
    """However much of it was written: it is not there, and a resume leaves no trace of it."""
    write(tmp_path, 0, 3)
    whole = (tmp_path / FILE).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for kept in range(len(last)):
        (tmp_path / FILE).write_bytes(whole[: len(whole) - len(last) + kept])
        assert steps(tmp_path) == [1, 2]
    write(tmp_path, 2, 4)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert all(json.loads(line) for line in (tmp_path / FILE).read_text().splitlines())


def test_a_last_line_cut_within_a_character_or_full_of_zeros(tmp_path: Path) -> None:
    """A power cut can leave either."""
    write(tmp_path, 0, 2)
    whole = (tmp_path / FILE).read_bytes()
    for end in ("é".encode()[:1], bytes(50)):
        (tmp_path / FILE).write_bytes(whole + end)
        assert steps(tmp_path) == [1, 2]


def test_time_that_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only from the start of a step to the end of the last one counts; validation and saving come between."""
    now = 0.0
    monkeypatch.setattr("pipeline.training.metrics.time.monotonic", lambda: now)
    metrics = made(tmp_path, 0)
    for steps, seconds in (([1], 1.0), ([2, 3, 4, 5], 2.0)):
        for step in steps:
            metrics.start()
            now += seconds / len(steps)
            metrics.add(step, step * TRAIN.batch, 0.1, torch.tensor(1.0), 2.0)
        rows = metrics.stop()
        now += 1000
        metrics.write(rows)
        now += 1000
    metrics.close()
    assert [row["seconds"] for row in read_metrics(tmp_path)] == [1.0, 0.5, 0.5, 0.5, 0.5]
    assert [row["tokens_per_second"] for row in read_metrics(tmp_path)] == [64.0, 128.0, 128.0, 128.0, 128.0]


def test_shares_are_those_of_the_samples_so_far(tmp_path: Path) -> None:
    """A quarter comes from books, until their five samples are used up."""
    write(tmp_path, 0, 5)
    mixture = Mixture(JOB.mixture.shares, {"books": 5})
    for row in read_metrics(tmp_path):
        source, _ = mixture.locate(torch.arange(row["step"] * TRAIN.batch).numpy())
        books = (source == mixture.sources.index("books")).sum()
        assert row["share/books"] == pytest.approx(books / len(source), abs=1e-6)
        assert row["share/books"] + row["share/crawl"] == pytest.approx(1, abs=2e-6)
    assert row["share/books"] == 5 / 40


def test_mfu_is_that_of_the_formula_and_the_measured_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.metrics.peak_flops", lambda device, dtype: 312e12)
    write(tmp_path, 0, 1)
    [row] = read_metrics(tmp_path)
    multiplied = 6_738_415_616 - 32000 * 4096  # LLaMA-7B without its embedding
    flops = 6 * multiplied + 6 * 32 * 4096 * TRAIN.sequence
    assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 312e12, rel=1e-3, abs=1e-4)


def test_a_device_whose_peak_is_not_known_has_no_mfu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.training.metrics.peak_flops", lambda device, dtype: None)
    write(tmp_path, 0, 1)
    assert "mfu" not in read_metrics(tmp_path)[0]
    assert capsys.readouterr().out.startswith("warning: the peak of this device in fp32 is not known")


def test_peaks_are_dense() -> None:
    """By the data sheets; the names are those that drivers give."""
    peaks = {
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100-PCIE-40GB": 312e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA L4": 121e12,
        "NVIDIA L40S": 362e12,
        "AMD Instinct MI300X": 1307e12,
    }
    for name, peak in peaks.items():
        gpu = find_gpu(name)
        assert gpu is not None and gpu.peak == peak, name
    for name in ("NVIDIA GeForce GT 710", "NVIDIA A1000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "Tesla K80"):
        assert find_gpu(name) is None, name


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = peak_flops("cpu", "fp32")
    assert peak is not None and 1e9 < peak < 1e15


def test_peak_memory_is_that_of_the_process() -> None:
    before = peak_memory("cpu")
    kept = torch.ones(before // 4 + (50 << 18))  # of 4 bytes: all of it, and 50 MiB
    assert kept.nbytes < peak_memory("cpu") < 1.02 * (before + kept.nbytes)


def test_the_perplexity_of_any_loss() -> None:
    assert perplexity(0) == 1
    assert perplexity(1e4) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_a_profile_of_steps(
    make_job: Callable[..., Path], run_job: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """The losses are those of a run without."""
    job = make_job(tmp_path / "a", steps=6, profile=[3, 4])
    rows = run_job(job)
    assert [row["loss"] for row in rows] == [row["loss"] for row in run_job(make_job(tmp_path / "b", steps=6))]
    profiled = tmp_path / "a" / "profile"
    assert "aten::mm" in (profiled / "steps-3-4.rank-0.txt").read_text()
    trace = json.loads(gzip.decompress((profiled / "steps-3-4.rank-0.json.gz").read_bytes()))
    micro_batches = sum(event.get("name") == "aten::embedding" for event in trace["traceEvents"])
    assert micro_batches == 2 * 512 // 32 // 2
    assert not (tmp_path / "b" / "profile").exists()


def test_weights_and_biases_gets_the_same_numbers(tmp_path: Path) -> None:
    """Without a network, in a process of its own, as it leaves threads."""
    pytest.importorskip("wandb")
    code = """
import sys, dataclasses, pathlib, torch
sys.path.insert(0, "tests/pipeline/training")
import torch.distributed as dist
import test_training_metrics as t
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
t.JOB = dataclasses.replace(t.JOB, train=dataclasses.replace(t.TRAIN, wandb="a-project"))
for start in (0, 3):
    t.write(pathlib.Path(sys.argv[1]), start, start + 3)
"""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2, "one for each start"
    assert len({path.name.rsplit("-", 1)[1] for path in runs}) == 1, "of one run"
    [stored] = runs[0].glob("*.wandb")
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in log_records(stored.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append(items)
    rows = read_metrics(tmp_path)
    assert [item["_step"] for item in found] == [1, 2, 3]
    for item, row in zip(found, rows[:3], strict=True):
        assert {name: item[name] for name in row if name != "step"} == {k: v for k, v in row.items() if k != "step"}


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind the seven bytes that wandb puts before it."""
    place, record = 7, b""
    while place + 7 <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, place)
        if not kind:  # the rest of a block of 32 KiB
            place += 32768 - place % 32768
            continue
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""
