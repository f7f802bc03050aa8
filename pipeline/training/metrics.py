"""Metrics of a run: numbers of a step, still on the device, in; a line in `metrics.jsonl`, TensorBoard, the log and, where
`train.wandb` names a project, Weights & Biases out.

A line a step:

- `step`, `tokens` so far, `loss` (mean over the labels of the global batch), `perplexity`, `lr`, `grad_norm` (before clipping);
- `seconds` (of a step), `tokens_per_second`, both means since the last lines were written, without validation and saving;
  `seconds_left`, the steps that are left at that rate;
- `mfu`: model FLOPs (`LlamaConfig.flops_per_token`: 6 x parameters without the embedding + 6 x layers x dim x sequence, so
  neither masked attention scores nor recomputed activations count) a second, to the peak of all devices
  (`pipeline.training.devices`: dense, without sparsity; on CPUs a matrix product measured at the start). Not there for a device
  whose peak is not known;
- `memory`: bytes that the rank with the most of it has had at most;
- `share/{source}`: share of the samples so far that came from the source, by arithmetic on the sample index;
- in some `validation_loss`, over all sources, and `validation_loss/{source}`.

What is not finite is null. After a resume, lines of steps behind the checkpoint are cut, so that the file has each step once.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress import human_bytes, human_seconds
from pipeline.training.devices import peak_flops, peak_memory
from pipeline.training.job import Job

if TYPE_CHECKING:  # readers of the file don't need it
    from torch import Tensor

FILE = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of `folder/metrics.jsonl`; a last line that was cut by a crash is left out."""
    path = folder / FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


class Metrics:
    """Gathers the metrics of a run that goes on after step `start` and `sample` samples; every rank has one, rank 0's writes to
    `folder`. `counts` says how many of the first so many samples come from each source, `device` is cpu or cuda. All ranks make
    it together.
    """

    def __init__(
        self, folder: Path, start: int, sample: int, job: Job, counts: Callable[[int], dict[str, int]], device: str
    ) -> None:
        import torch
        import torch.distributed as dist

        self._config, self._counts, self._device = job.train, counts, device
        self._flops_per_token = job.model.flops_per_token(job.train.sequence)
        self._added: list[tuple[int, int, float, Tensor, Tensor | float]] = []
        self._before = sample  # samples of the steps whose rows were told
        self._since: float | None = None
        self._writes = dist.get_rank() == 0
        dist.barrier()  # ranks that share a machine measure what they have while the others work too
        peak = torch.tensor(peak_flops(device, job.train.dtype) or math.nan, dtype=torch.float64, device=device)
        dist.all_reduce(peak)
        self._peak = float(peak)
        self._wandb: Any = None
        if self._writes:
            from torch.utils.tensorboard import SummaryWriter

            if math.isnan(self._peak):
                print(f"warning: the peak of this device in {job.train.dtype} is not known: no mfu in the metrics", flush=True)
            rows = [row for row in read_metrics(folder) if row["step"] <= start]
            temporary = folder / f".{FILE}.tmp"
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            temporary.replace(folder / FILE)
            self._file = (folder / FILE).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
            if job.train.wandb:
                self._wandb = _start_wandb(folder, job)

    def start(self) -> None:
        """Lets the clock run, from the start of a step."""
        if self._since is None:
            self._since = time.monotonic()

    def add(self, step: int, sample: int, lr: float, loss: "Tensor", grad_norm: "Tensor | float") -> None:
        """Keeps a step's numbers where they are. `sample` counts the samples so far, this step's included; `loss` is this
        rank's part: the sum over the ranks is the loss."""
        self._added.append((step, sample, lr, loss, grad_norm))

    def stop(self) -> list[dict[str, Any]]:
        """Stops the clock; the rows of the steps that were added since. All ranks call this together."""
        import torch
        import torch.distributed as dist

        losses = torch.stack([loss for *_, loss, _ in self._added])
        dist.all_reduce(losses)
        norms = [float(norm) for *_, norm in self._added]
        values = losses.tolist()  # waits for the device
        assert self._since is not None
        seconds = (time.monotonic() - self._since) / len(self._added)
        memory = torch.tensor(peak_memory(self._device), device=losses.device)
        dist.all_reduce(memory, dist.ReduceOp.MAX)
        rate = (self._added[-1][1] - self._before) * self._config.sequence / len(self._added) / seconds
        rows = []
        for (step, sample, lr, _, _), loss, norm in zip(self._added, values, norms, strict=True):
            row: dict[str, Any] = {
                "step": step,
                "tokens": sample * self._config.sequence,
                "loss": loss,
                "perplexity": perplexity(loss),
                "lr": lr,
                "grad_norm": norm,
                "seconds": round(seconds, 6),
                "seconds_left": round(seconds * (self._config.steps - step), 1),
                "tokens_per_second": round(rate, 1),
                "memory": int(memory),
            }
            if not math.isnan(self._peak):
                row["mfu"] = round(rate * self._flops_per_token / self._peak, 4)
            for source, count in self._counts(sample).items():
                row[f"share/{source}"] = round(count / sample, 6)
            rows.append(row)
        self._before = self._added[-1][1]
        self._added, self._since = [], None
        return rows

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes the rows, and a line of progress for the last of them."""
        if not self._writes:
            return
        self._file.write("".join(json.dumps(_as_json(row)) + "\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint that is saved next must not know more steps than this file
        for row in rows:
            values = {name: value for name, value in row.items() if name != "step"}
            for name, value in values.items():
                self._board.add_scalar(name, value, row["step"])
            if self._wandb:
                self._wandb.log(values, step=row["step"])
        last = rows[-1]
        shown = ", ".join(f"{k} {last[k]:.4g}" for k in ("loss", "validation_loss", "lr", "grad_norm") if k in last)
        rate = f"{last['tokens_per_second']:,.0f} tokens/s" + (f", mfu {last['mfu']:.1%}" if "mfu" in last else "")
        left = f"{human_bytes(last['memory'])}, {human_seconds(last['seconds_left'])} left"
        print(f"train: step {last['step']}/{self._config.steps}, {shown}, {rate}, {left}", flush=True)

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self._file.close()
            self._board.close()
            if self._wandb:
                self._wandb.finish()


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    return math.inf if loss > 700 else math.exp(loss)


def _start_wandb(folder: Path, job: Job) -> Any:
    """A run of Weights & Biases, the same one after a resume; WANDB_MODE=offline keeps it in the folder."""
    try:
        import wandb
    except ImportError:
        raise ValueError(f"train.wandb={job.train.wandb}: pip install 'llama-pretrain[wandb]'") from None
    told = folder / "wandb" / "run-id"
    if not told.exists():
        told.parent.mkdir(exist_ok=True)
        told.write_text(uuid.uuid4().hex, encoding="ascii")
    run_id = told.read_text(encoding="ascii")
    return wandb.init(project=job.train.wandb, dir=str(folder), id=run_id, resume="allow", config=job.json())


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: null for what is not finite."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
