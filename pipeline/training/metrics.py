"""Metrics of a run: numbers of a step, still on the device, in; a line in `metrics.jsonl`, TensorBoard and the log out.

A line a step: `step`, `tokens` so far, `loss` (mean over the labels of the global batch), `lr`, `grad_norm` (before it is
clipped), `seconds` (of a step) and `tokens_per_second`, both means since the last lines were written and without validation
and saving, and in some `validation_loss`. After a resume, lines of steps behind the checkpoint are cut, so that the file
has each step once.
"""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import human_seconds
from pipeline.training.settings import TrainConfig

if TYPE_CHECKING:  # readers of the file don't need it
    from torch import Tensor

FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`; a last line that was cut by a crash is left out."""
    path = folder / FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


class Metrics:
    """Gathers the metrics of a run that goes on after step `start`; every rank has one, rank 0's writes to `folder`."""

    def __init__(self, folder: Path, start: int, config: TrainConfig) -> None:
        import torch.distributed as dist

        self._config = config
        self._added: list[tuple[int, float, Tensor, Tensor | float]] = []
        self._since: float | None = None
        self._writes = dist.get_rank() == 0
        if self._writes:
            from torch.utils.tensorboard import SummaryWriter

            rows = [row for row in read_metrics(folder) if row["step"] <= start]
            temporary = folder / f".{FILE}.tmp"
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            temporary.replace(folder / FILE)
            self._file = (folder / FILE).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def start(self) -> None:
        """Lets the clock run, from the start of a step."""
        if self._since is None:
            self._since = time.monotonic()

    def add(self, step: int, lr: float, loss: "Tensor", grad_norm: "Tensor | float") -> None:
        """Keeps a step's numbers where they are. `loss` is this rank's part; the sum over the ranks is the loss."""
        self._added.append((step, lr, loss, grad_norm))

    def stop(self) -> list[dict[str, Any]]:
        """Stops the clock; the rows of the steps that were added since. All ranks call this together."""
        import torch
        import torch.distributed as dist

        losses = torch.stack([loss for _, _, loss, _ in self._added])
        dist.all_reduce(losses)
        norms = [float(norm) for *_, norm in self._added]
        values = losses.tolist()  # waits for the device
        assert self._since is not None
        seconds = (time.monotonic() - self._since) / len(self._added)
        tokens = self._config.tokens(self._added[-1][0]) - self._config.tokens(self._added[0][0] - 1)
        rows: list[dict[str, Any]] = [
            {
                "step": step,
                "tokens": self._config.tokens(step),
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "seconds": round(seconds, 6),
                "tokens_per_second": round(tokens / len(self._added) / seconds, 1),
            }
            for (step, lr, _, _), loss, norm in zip(self._added, values, norms, strict=True)
        ]
        self._added, self._since = [], None
        return rows

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes the rows, and a line of progress for the last of them."""
        if not self._writes:
            return
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint that is saved next must not know more steps than this file
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, row["step"])
        last = rows[-1]
        step, steps = last["step"], self._config.steps
        shown = ", ".join(f"{k} {last[k]:.4g}" for k in ("loss", "validation_loss", "lr", "grad_norm") if k in last)
        left = human_seconds(last["seconds"] * (steps - step))
        print(f"train: step {step}/{steps}, {shown}, {last['tokens_per_second']:,.0f} tokens/s, {left} left", flush=True)

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()
