"""The file of metrics: whole lines only, each step once."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.training.metrics import FILE, Metrics, read_metrics
from pipeline.training.settings import TrainConfig

pytestmark = pytest.mark.usefixtures("one_rank")


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder)]


def write(folder: Path, start: int, until: int) -> None:
    """Steps start + 1 … until; rows are written after every second of them, as if the others were not logged."""
    metrics = Metrics(folder, start, TrainConfig(steps=100, warmup_steps=1, batch_tokens=64, sequence=8))
    for step in range(start + 1, until + 1):
        metrics.start()
        metrics.add(step, 0.1, torch.tensor(1.0 / step, dtype=torch.float64), torch.tensor(2.0))
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
    assert all(row["tokens_per_second"] > 0 and row["seconds"] > 0 for row in rows)
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
    metrics = Metrics(tmp_path, 0, TrainConfig(steps=10, warmup_steps=1, batch_tokens=64, sequence=8))
    for steps, seconds in (([1], 1.0), ([2, 3, 4, 5], 2.0)):
        for step in steps:
            metrics.start()
            now += seconds / len(steps)
            metrics.add(step, 0.1, torch.tensor(1.0), 2.0)
        rows = metrics.stop()
        now += 1000
        metrics.write(rows)
        now += 1000
    metrics.close()
    assert [row["seconds"] for row in read_metrics(tmp_path)] == [1.0, 0.5, 0.5, 0.5, 0.5]
    assert [row["tokens_per_second"] for row in read_metrics(tmp_path)] == [64.0, 128.0, 128.0, 128.0, 128.0]
