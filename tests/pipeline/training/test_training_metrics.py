"""The file of metrics: whole lines only, each step once."""

import json
from pathlib import Path

import pytest

from pipeline.training.metrics import FILE, Metrics, read_metrics


def steps(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder)]


def write(folder: Path, start: int, until: int) -> None:
    metrics = Metrics(folder, start, 100)
    for step in range(start + 1, until + 1):
        metrics.log(step, 64, loss=1.0 / step, lr=0.1)
    metrics.close()


def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 0, 3)
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["tokens"], row["loss"], row["lr"]) for row in rows] == [
        (1, 64, 1.0, 0.1),
        (2, 128, 0.5, 0.1),
        (3, 192, 1 / 3, 0.1),
    ]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert shown[0].startswith("train: step 1/100, loss 1, lr 0.1, ")
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


def test_time_that_is_left_out(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0, 10)
    metrics.skip_time(-1000.0)  # as if the last row were 1,000 seconds older
    metrics.log(1, 64, loss=1.0)
    metrics.skip_time(-1000.0)
    metrics.log(11, 64, loss=1.0)
    metrics.close()
    slow, fast = (row["tokens_per_second"] for row in read_metrics(tmp_path))
    assert slow == pytest.approx(0.064, rel=0.01)
    assert fast == pytest.approx(0.64, rel=0.01)  # ten steps in that time
