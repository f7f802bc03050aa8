"""Checkpoints: fragments put together however they were cut, and what a crash can leave behind."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.outputs import digest_file
from pipeline.training import checkpoint
from pipeline.training.checkpoint import KINDS, Saver, State, _Pieces, latest, load, load_weights
from pipeline.training.metrics import read_metrics

# Fragments


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.data())
def test_fragments_cut_elsewhere_than_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    whole = {kind: torch.randn(size, generator=torch.Generator().manual_seed(i)) for i, kind in enumerate(KINDS)}
    cuts = data.draw(st.lists(st.integers(0, size), max_size=6).map(sorted))
    files: list[dict[str, torch.Tensor]] = [{}, {}, {}]
    for low, high in zip([0, *cuts], [*cuts, size], strict=True):
        if low < high:
            file = data.draw(st.integers(0, 2))
            files[file] |= {f"{kind}|layers.0.w.weight|{low}": whole[kind][low:high].clone() for kind in KINDS}
    for rank, tensors in enumerate(files):
        save_file(tensors, folder / f"rank-{rank:05d}.safetensors")
    pieces = _Pieces(folder)
    for _ in range(5):
        start = data.draw(st.integers(0, size))
        end = data.draw(st.integers(start, size))
        kind = data.draw(st.sampled_from(KINDS))
        assert torch.equal(pieces.read(kind, "layers.0.w.weight", start, end - start), whole[kind][start:end])


@pytest.mark.parametrize(("start", "count", "has"), [(0, 10, 8), (3, 4, 2), (8, 3, 2), (5, 0, 0)])
def test_a_gap_between_fragments(tmp_path: Path, start: int, count: int, has: int) -> None:
    save_file({"weight|w|0": torch.zeros(5), "weight|w|7": torch.zeros(3)}, tmp_path / "rank-00000.safetensors")
    pieces = _Pieces(tmp_path)
    if has == count:
        assert len(pieces.read("weight", "w", start, count)) == count
    else:
        with pytest.raises(ValueError, match=f"^weight of w: the checkpoint has {has} of the elements"):
            pieces.read("weight", "w", start, count)
    with pytest.raises(ValueError, match=r"^exp_avg of w: the checkpoint has 0 of the elements 0 to 2$"):
        pieces.read("exp_avg", "w", 0, 2)


# Whole checkpoints, with an engine of one process without ZeRO


JOB = {"tokens": "the digest of the tokens", "mixture": {"shares": {"crawl": 1.0}}, "train": {"sequence": 8, "seed": 1}}
pytestmark = pytest.mark.usefixtures("one_rank")


def engine(seed: int, width: int = 4) -> Any:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    return SimpleNamespace(module=module, optimizer=torch.optim.AdamW(module.parameters(), lr=0.1))


def step(engine: Any, number: int) -> float:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(number))
    loss = engine.module(x).square().sum()
    engine.optimizer.zero_grad()
    loss.backward()
    engine.optimizer.step()
    return float(loss.detach())


def saved(folder: Path, *steps: int, keep: int = 10, every: int = 0) -> Any:
    trained = engine(0)
    saver = Saver(trained, folder, keep, every)
    for number in range(1, max(steps) + 1):
        step(trained, number)
        if number in steps:
            saver.save(State(number, 10 * number, {"window": [[], []]}), JOB)
    saver.finish()
    return trained


def save(engine: Any, folder: Path, number: int, keep: int = 10) -> None:
    saver = Saver(engine, folder, keep)
    saver.save(State(number, 10 * number), JOB)
    saver.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_going_on_is_bitwise_the_same(tmp_path: Path) -> None:
    trained = saved(tmp_path, 3)
    expected = [step(trained, number) for number in (4, 5, 6)]
    newest = latest(tmp_path)
    assert newest == tmp_path / "step-00000003"
    other = engine(1)
    assert load(other, newest, JOB) == State(3, 30, {"window": [[], []]})
    assert [step(other, number) for number in (4, 5, 6)] == expected


def test_what_is_in_a_checkpoint(tmp_path: Path) -> None:
    trained = saved(tmp_path, 2)
    path = tmp_path / "step-00000002"
    assert names(path) == ["checkpoint.json", "rank-00000.safetensors"]
    manifest = json.loads((path / "checkpoint.json").read_text())
    shapes = {name: list(parameter.shape) for name, parameter in trained.module.named_parameters()}
    assert (manifest["step"], manifest["sample"], manifest["adam_step"]) == (2, 20, 2)
    assert (manifest["parameters"], manifest["job"]) == (shapes, JOB)
    for name, weight in load_weights(path).items():
        assert torch.equal(weight, trained.module.state_dict()[name])


def test_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        saved(tmp_path / name, 2)
    for path in (tmp_path / "a" / "step-00000002").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "step-00000002" / path.name).read_bytes()


def test_only_the_newest_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]


def test_every_nth_stays_for_ever(tmp_path: Path) -> None:
    saved(tmp_path, *range(1, 10), keep=2, every=3)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (3, 6, 8, 9)]


def test_a_broken_checkpoint_of_a_later_step_takes_no_good_ones_place(tmp_path: Path) -> None:
    saved(tmp_path, 2, 3, 4)
    for later in ("step-00000003", "step-00000004"):
        (tmp_path / later / "checkpoint.json").unlink()
    assert latest(tmp_path) == tmp_path / "step-00000002"
    going_on = engine(1)
    load(going_on, tmp_path / "step-00000002", JOB)
    step(going_on, 3)
    save(going_on, tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]
    assert latest(tmp_path) == tmp_path / "step-00000003"


def test_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


RANK, MANIFEST = "rank-00000.safetensors", "checkpoint.json"
BROKEN = {
    "weights missing": lambda path: (path / RANK).unlink(),
    "weights truncated": lambda path: (path / RANK).write_bytes((path / RANK).read_bytes()[:-1]),
    "weights empty": lambda path: (path / RANK).write_bytes(b""),
    "weights with another bit": lambda path: flip(path / RANK),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "manifest truncated": lambda path: (path / MANIFEST).write_bytes((path / MANIFEST).read_bytes()[:-20]),
    "manifest empty": lambda path: (path / MANIFEST).write_bytes(b""),
    "manifest of zeros": lambda path: (path / MANIFEST).write_bytes(bytes(500)),
    "manifest of something else": lambda path: (path / MANIFEST).write_text("null"),
    "an empty folder": lambda path: (shutil.rmtree(path), path.mkdir()),
    "a file in its place": lambda path: (shutil.rmtree(path), path.write_text("")),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_newest_checkpoint_is_passed_over(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 2, 3)
    BROKEN[how](tmp_path / "step-00000003")
    assert latest(tmp_path) == tmp_path / "step-00000002"
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {tmp_path / 'step-00000003'} is broken and passed over: ")


def test_a_half_written_checkpoint_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any point before the rename, a save leaves the former checkpoint the newest, and hinders no later save."""
    trained = saved(tmp_path, 2)
    monkeypatch.setattr(checkpoint, "_fits", lambda _: False)  # saves in the foreground
    for function in ("_write_file", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, function, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save(trained, tmp_path, 3, keep=1)
        assert names(tmp_path) == [".step-00000003.tmp", "step-00000002"]
        assert latest(tmp_path) == tmp_path / "step-00000002"
    (tmp_path / ".step-00000009.tmp").mkdir()
    save(trained, tmp_path, 3, keep=1)
    assert names(tmp_path) == ["step-00000003"]


def test_steps_during_a_save_do_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "expected", 2)
    held, write = threading.Event(), checkpoint._write_file

    def write_later(*arguments: Any) -> str:
        assert held.wait(60)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "_write_file", write_later)
    trained = engine(0)
    saver = Saver(trained, tmp_path / "beside", keep=3)
    for number in (1, 2):
        step(trained, number)
    saver.save(State(2, 20, {"window": [[], []]}), JOB)
    for number in (3, 4, 5):
        step(trained, number)
    assert latest(tmp_path / "beside") is None
    held.set()
    saver.finish()
    for path in (tmp_path / "expected" / "step-00000002").iterdir():
        assert path.read_bytes() == (tmp_path / "beside" / "step-00000002" / path.name).read_bytes()
    saver.save(State(5, 50), JOB)  # into the same memory
    saver.finish()
    for name, weight in load_weights(tmp_path / "beside" / "step-00000005").items():
        assert torch.equal(weight, trained.module.state_dict()[name])


def test_without_memory_for_a_copy_it_saves_in_the_foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "beside", 2)
    monkeypatch.setattr(checkpoint, "_available_memory", lambda: 100)
    monkeypatch.setattr(checkpoint.Saver, "_copy", None)
    saved(tmp_path / "foreground", 2)
    for path in (tmp_path / "beside" / "step-00000002").iterdir():
        assert path.read_bytes() == (tmp_path / "foreground" / "step-00000002" / path.name).read_bytes()


def test_the_available_memory_is_the_machine_s_or_less() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < checkpoint._available_memory() <= total


def test_files_have_the_umask_s_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved(tmp_path / "out", 1)
    finally:
        os.umask(before)
    path = tmp_path / "out" / "step-00000001"
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == {RANK: 0o640, MANIFEST: 0o640}


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """Any error of the file system is as a full disk here: a file may not grow beyond a limit."""
    trained = saved(tmp_path, 2)
    saver = Saver(trained, tmp_path, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        saver.save(State(3, 30), JOB)
        with pytest.raises(
            ValueError, match=r"step-00000003 could not be saved: File too large \(rank 0\). Make room there .*$"
        ):
            saver.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000002"]
    assert latest(tmp_path) == tmp_path / "step-00000002"
    with pytest.raises(ValueError, match="could not be saved"):
        saver.check()


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.integers(1, 50), max_size=5))
def test_what_is_written_is_read_by_the_library(tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {name: torch.randn(size) for name, size in sizes.items() if name != "__metadata__"}
    assert checkpoint._write_file(path, tensors) == digest_file(path)
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_going_back(tmp_path: Path) -> None:
    saver = Saver(saved(tmp_path, 10, 20, 30, 40), tmp_path, keep=9)
    assert saver.go_back(40, margin=5) == tmp_path / "step-00000030"
    assert names(tmp_path) == ["step-00000010", "step-00000020", "step-00000030"]
    assert saver.go_back(35, margin=100) == tmp_path / "step-00000030", "there is none 100 steps before"
    BROKEN["weights truncated"](tmp_path / "step-00000030")
    assert saver.go_back(31, margin=1) == tmp_path / "step-00000020"
    assert names(tmp_path) == ["step-00000010", "step-00000020"]
    assert saver.go_back(30, margin=20) == tmp_path / "step-00000010"
    with pytest.raises(ValueError, match=r"no good checkpoint before step 10 to go back to$"):
        saver.go_back(10, margin=1)


def test_another_model(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=r"made for another model: 0.weight and 2 more parameters differ$"):
        load(engine(0, width=5), tmp_path / "step-00000001", JOB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixture": {"shares": {"crawl": 0.5, "books": 0.5}}}, "mixture is .*books.* now and was .*crawl.*"),
        ({"tokens": "others"}, "tokens is others now and was the digest of the tokens"),
        ({"train": {"sequence": 16, "seed": 1}}, "train.sequence is 16 now and was 8"),
        ({"train": {"sequence": 8, "seed": 2}}, "train.seed is 2 now and was 1"),
    ],
)
def test_another_order_of_the_samples(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=f"step-00000001: {said}: the data has another order$"):
        load(engine(0), tmp_path / "step-00000001", JOB | change)


# Real runs, of two ranks and a model that takes a while to write

ROOT = Path(__file__).resolve().parents[3]
LARGER = {"dim": 128, "layers": 4, "heads": 4, "kv_heads": 4, "hidden": 512, "vocab_size": 2000, "max_sequence": 32}  # 18 MB
COMMAND = """
import pathlib, sys
from pipeline.training.launch import launch

job = pathlib.Path(sys.argv[1])
launch(job, 2, job.with_name("log.txt"))
"""


def larger(make_job: Any, folder: Path, **train: Any) -> Path:
    path: Path = make_job(folder, 1, **{"checkpoint_every": 2, "keep_checkpoints": 3, "log_every": 1, "steps": 12} | train)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": LARGER}))
    return path


def launched(job: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", COMMAND, str(job)], stderr=subprocess.PIPE, text=True, cwd=ROOT)


def ranks_of(job: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"pipeline.training.rank" in command and str(job).encode() in command and b"--standalone" not in command:
                found.append(int(entry.name))
    return found


def wait_for(what: Any) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.0005)


@pytest.mark.slow
def test_killed_at_random_moments_and_while_it_saves(make_job: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed} kills at the same moments")
    moments = random.Random(seed)
    whole, job = larger(make_job, tmp_path / "whole"), larger(make_job, tmp_path / "killed")
    _, told = launched(whole).communicate(timeout=300)
    assert read_metrics(whole.parent)[-1]["step"] == 12, told
    folder, before = job.parent / "checkpoints", -1
    for number in range(4):
        run = launched(job)
        if number % 2:  # from the first step after a start on
            reached = len(read_metrics(job.parent))
            wait_for(lambda reached=reached: len(read_metrics(job.parent)) > reached)
            time.sleep(moments.uniform(0, 0.1))
        else:
            wait_for(lambda: list(folder.glob(".step-*.tmp")) if folder.exists() else [])
            time.sleep(moments.uniform(0, 0.03))
        os.kill(moments.choice([run.pid, *ranks_of(job)]), signal.SIGKILL)
        _, told = run.communicate(timeout=120)
        wait_for(lambda: not ranks_of(job))
        if number == 3:
            assert "is broken and passed over: rank-00001.safetensors has another digest" in told
        newest = latest(folder)
        reached = int(newest.name[5:]) if newest else 0
        print(f"kill {number}: step {reached}, {[path.name for path in folder.iterdir()]}")
        assert reached >= before, "a checkpoint that was there is there"
        if newest:
            assert load_weights(newest).keys() == load_weights(latest(whole.parent / "checkpoints")).keys()
        before = reached
        if number == 2:
            assert newest is not None
            flip(newest / "rank-00001.safetensors")
            before = 0
    _, told = launched(job).communicate(timeout=300)
    expected, rows = read_metrics(whole.parent), read_metrics(job.parent)
    assert [row["step"] for row in rows] == list(range(1, 13)), told
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    files = [
        json.loads((path.parent / "checkpoints" / "step-00000012" / MANIFEST).read_text())["files"] for path in (job, whole)
    ]
    assert files[0] == files[1]
    assert names(folder) == ["step-00000008", "step-00000010", "step-00000012"]


@pytest.mark.slow
def test_a_full_disk(make_job: Any, tmp_path: Path) -> None:
    job = larger(make_job, tmp_path, steps=8)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=45m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        run = launched(job)
        _, told = run.communicate(timeout=120)
        last = told.strip().splitlines()[-1]
        assert last.startswith(f"ValueError: {folder}/step-00000006 could not be saved: No space left on device (rank "), told
        assert last.endswith(
            "Make room there (a checkpoint takes 18.7 MB); the same command goes on from the checkpoint before it"
        )
        wait_for(lambda: not ranks_of(job))
        assert names(folder) == ["step-00000002", "step-00000004"]
        assert latest(folder) == folder / "step-00000004"
        subprocess.run(["mount", "-o", "remount,size=90m", folder], check=True)
        run = launched(job)
        _, told = run.communicate(timeout=120)
        assert run.returncode == 0, told
        assert names(folder) == ["step-00000004", "step-00000006", "step-00000008"]
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))
    finally:
        subprocess.run(["umount", folder], check=True)
