"""Metrics of a run: numbers of a step in, a line in `metrics.jsonl`, TensorBoard and the log out.

After a resume, lines of steps behind the checkpoint are cut, so that the file has each step once.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.progress import human_seconds

FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`; a last line that was cut by a crash is left out."""
    path = folder / FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


class Metrics:
    """Writes the metrics of a run of `steps` steps that goes on after step `start`."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports torch, which readers of the file don't need

        rows = [row for row in read_metrics(folder) if row["step"] <= start]
        temporary = folder / f".{FILE}.tmp"
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(folder / FILE)
        self._file = (folder / FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._steps = steps
        self._last = (start, time.monotonic())

    def log(self, step: int, tokens_per_step: int, **values: float) -> None:
        """One row, durable: `values`, the tokens so far and the tokens a second since the last row."""
        last_step, last_time = self._last
        now = time.monotonic()
        self._last = (step, now)
        seconds = (now - last_time) / (step - last_step)
        row = {"step": step, "tokens": step * tokens_per_step, "tokens_per_second": tokens_per_step / seconds, **values}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, step)
        left = human_seconds(seconds * (self._steps - step))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(
            f"train: step {step}/{self._steps}, {shown}, {row['tokens_per_second']:,.0f} tokens/s, {left} left",
            flush=True,
        )

    def skip_time(self, seconds: float) -> None:
        """Leaves time out of the rate: of validation and of saving."""
        self._last = (self._last[0], self._last[1] + seconds)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._board.close()
        sys.stdout.flush()
