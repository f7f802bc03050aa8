"""The guard: the loss and gradient norm of each step in, only good updates to the weights out; every bad step goes on record.

A step is bad if its loss or the norm of its gradient is not finite, or if one of them spikes. With `train.guard=skip` (the
default) a bad step updates nothing: weights, moments and Adam's step count stay as they are, its samples count as consumed, and
the run goes on. It is the default because one non-finite gradient destroys the weights for good, and because a batch left out
costs nothing that could be measured; OLMo 2 was trained so. `stop` ends the run there. `rollback` goes back to a checkpoint
from before the step and leaves its samples out from then on, as PaLM was trained (arXiv 2204.02311, section 5.1).

What is a spike (`judge`): OLMo-core's rule (`SkipStepOptimizer`: 6 standard deviations above the mean of the last 128 steps,
one-sided, from half a window on) with the robust z-score of Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) in
the place of mean and deviation, and over good steps only, so that a spike does not hide those that follow it. The scores are
of logarithms: losses and norms spread by factors, norms so much that what is rare in them would otherwise seem a spike.

No step waits for the host. The numbers are summed over the ranks, so that all decide alike, and judged on the device between
DeepSpeed's norm and Adam's step. The decision goes into `found_inf` of PyTorch's fused AdamW, which the kernels read on the
device: where it is 1 they leave weights, moments and step count alone, in fp32 and over ZeRO's bf16 alike, for every stage,
since all of them call Adam for the partitions of fp32 that they hold. DeepSpeed has a check of its own, which waits for the
device, is not there without ZeRO, and knows nothing of spikes; it is turned off. The host reads a decision one step later
(`found`), when the device is through with it anyway; until then, `stop` and `rollback` let no other update through, so that
the delay changes nothing.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.zero.stage3
import deepspeed.runtime.zero.stage_1_and_2
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.outputs import sync_folder
from pipeline.tokens.loader import ranges_of
from pipeline.training.engine import DEVICE
from pipeline.training.settings import TrainConfig

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Event = dict[str, Any]  # a line of the file
FILE = "events.jsonl"
WINDOW = 128  # good steps, as in OLMo-core
LEAST = WINDOW // 2  # good steps before the first can be called a spike, as in OLMo-core
NORMAL = 1.4826  # times the median absolute deviation is the standard deviation of normal numbers
FLOOR = 0.005  # least deviation of logarithms: nothing within 6 x 0.5 % of the median is a spike, however even the steps were
BEFORE_SPIKE = 100  # steps that a rollback undoes: PaLM went back about 100, and left out 200 to 500 batches


def _clip(input_tensors: list[Tensor], max_norm: float, global_norm: Tensor, mpu: None, eps: float = 1e-6) -> None:
    for tensor in input_tensors:
        tensor.detach().mul_((max_norm / (global_norm + eps)).clamp(max=1.0))


# What DeepSpeed's optimizers wait for the device for: whether the norm is finite (a check of the gradients themselves is turned
# off in the configuration), and that of bf16 with ZeRO-1 also for whether it has to clip.
for module in (deepspeed.runtime.bf16_optimizer, deepspeed.runtime.zero.stage_1_and_2, deepspeed.runtime.zero.stage3):
    module.is_invalid_grad_norm = lambda norm: False
deepspeed.runtime.bf16_optimizer.clip_tensors_by_global_norm = _clip


def judge(window: Tensor, seen: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a step is bad, on the device of its numbers.

    `window`: float64 [2, WINDOW], logarithms of the loss and the gradient norm of the last good steps, the newest last, NaN
    where there were fewer. `seen`: float64 [2], the step's loss and norm. `sigma`: the z-score from which on it is a spike.

    Returns bad, bool []; the z-scores, float64 [2], NaN where the window has fewer than LEAST steps; and the next window, which
    has the step if it was good.
    """
    value = seen.clamp(min=torch.finfo(torch.float32).tiny).log()
    median = window.nanmedian(1, keepdim=True).values
    deviation = NORMAL * (window - median).abs().nanmedian(1).values
    scores = (value - median[:, 0]) / deviation.clamp(min=FLOOR)
    scores = torch.where((~window.isnan()).sum(1) >= LEAST, scores, torch.nan)
    bad = ~seen.isfinite().all() | (scores > sigma).any()
    return bad, scores, torch.where(bad, window, torch.cat([window[:, 1:], value[:, None]], 1))


class Guard:
    """Stands between DeepSpeed's gradients and Adam's step. Every rank has one; rank 0's writes `folder/events.jsonl`.

    Attributes: `skipped`, the ranges [first, end) of global samples that rollbacks took out.
    """

    def __init__(self, engine: "DeepSpeedEngine", folder: Path, config: TrainConfig) -> None:
        self.skipped: list[tuple[int, int]] = []
        self._engine, self._folder, self._config = engine, folder, config
        self._adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
        assert all(group["fused"] for group in self._adam.param_groups), "only the fused AdamW obeys found_inf"
        self._adam.register_step_pre_hook(lambda *_: self._judge())
        self._events = read_events(folder)
        dist.barrier()  # all have read

    def go_on(self, step: int, state: dict[str, Any]) -> None:
        """Takes up what `state` returned after `step`, {} before the first, and what rollbacks took out since. Events of the
        steps behind it are removed but for rollbacks, as these steps come again."""
        self._window = torch.full((2, WINDOW), torch.nan, dtype=torch.float64, device=DEVICE)
        if known := len(state.get("window", [[]])[0]):
            self._window[:, -known:] = torch.tensor(state["window"], dtype=torch.float64)
        self._in_a_row = state.get("in_a_row", 0)
        self._halted = torch.zeros((), dtype=torch.bool, device=DEVICE)
        self._waiting: list[_Step] = []
        self._current: _Step | None = None
        self._events = [event for event in self._events if event["step"] <= step or event["action"] == "rollback"]
        taken_out = [part for event in self._events for part in event.get("taken_out", [])]
        self.skipped = sorted({(first, end) for first, end in [*state.get("skipped", []), *taken_out]})
        if dist.get_rank() == 0:
            temporary = self._folder / f".{FILE}.tmp"
            temporary.write_text("".join(json.dumps(event) + "\n" for event in self._events), encoding="utf-8")
            temporary.replace(self._folder / FILE)

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep, as a JSON value. Waits for the device."""
        window = self._window[:, ~self._window[0].isnan()]
        return {"window": window.tolist(), "in_a_row": self._in_a_row, "skipped": self.skipped}

    def watch(self, step: int, sample: int, count: int, loss: Tensor) -> None:
        """The step that comes, its samples (their numbers without those in `skipped`), and the tensor that will have this
        rank's part of the loss when Adam's step comes."""
        self._current = _Step(step, sample, count, loss)

    def found(self, all_of_them: bool) -> Event | None:
        """A bad step for which the run has to be rolled back, as an event that is not recorded yet; of the steps before the
        last one, or of that too with `all_of_them`, which waits for it. Other bad steps are recorded. All ranks get the same.

        Raises ValueError in one line where the run has to stop: with `stop`, and after `train.guard_limit` steps skipped in a
        row.
        """
        ready, self._waiting = (self._waiting, []) if all_of_them else (self._waiting[:-1], self._waiting[-1:])
        for judged in ready:
            assert judged.decision
            bad, loss, norm, loss_score, norm_score = judged.decision.arrived()
            if not bad:
                self._in_a_row = 0
                continue
            event = {
                "step": judged.number,
                "samples": ranges_of(judged.sample, judged.count, self.skipped),
                "seen": "spike" if math.isfinite(loss) and math.isfinite(norm) else "not finite",
                "loss": _json_number(loss),
                "loss_score": None if math.isnan(loss_score) else loss_score,
                "grad_norm": _json_number(norm),
                "grad_norm_score": None if math.isnan(norm_score) else norm_score,
                "action": self._config.guard,
            }
            if self._config.guard == "rollback":
                self._last = judged
                return event
            self._record(event)
            self._in_a_row += 1
            if self._config.guard == "stop":
                raise ValueError(
                    f"train.guard=stop: {_told(event)}; it updated nothing. train.guard=skip leaves such a step out,"
                    " train.guard=rollback goes back to an earlier checkpoint and leaves its samples out"
                )
            self._give_up_after(self._in_a_row, "skipped in a row", event)
        return None

    def roll_back(self, event: Event, step: int, sample: int) -> None:
        """Records that the run goes back to the checkpoint of `step`, at sample `sample`, because of `event`, and takes out the
        samples of the last `margin` steps, as far as the checkpoint is back. (A replay is exact: with no more than the event's
        own samples out, it would come to the same weights before the step.)

        Raises ValueError in one line after `train.guard_limit` rollbacks to the same checkpoint.
        """
        end = self._last.sample + self._last.count
        first = max(sample, end - margin(event) * self._last.count)
        taken_out = ranges_of(first, end - first, self.skipped)
        self._record(event | {"to": step, "taken_out": taken_out})
        to = [other["to"] for other in self._events if "to" in other]
        times = next((i for i, other in enumerate(reversed(to)) if other != step), len(to))
        self._give_up_after(times, f"rolled back to the checkpoint of step {step}", event)

    def _judge(self) -> None:
        """Before each call of Adam in a step; DeepSpeed has set the norm by the first of them."""
        if (current := self._current) is None:
            return
        self._current = None
        norm = getattr(self._engine.optimizer, "_global_grad_norm", self._engine._global_grad_norm)
        # The norm is of all ranks already; as a sum over them it is the same number everywhere, to the last bit.
        norm = torch.as_tensor(norm, dtype=torch.float64, device=DEVICE) / dist.get_world_size()
        norm = torch.where(norm < 0, torch.inf, norm)  # DeepSpeed's -1 for what is not finite
        seen = torch.stack([current.loss.double(), norm])
        dist.all_reduce(seen)
        bad, scores, self._window = judge(self._window, seen, self._config.guard_sigma)
        if self._config.guard != "skip":
            bad, self._halted = bad & ~self._halted, bad | self._halted
        where = next(tensor.device for group in self._adam.param_groups for tensor in group["params"])  # offload: the CPU
        self._adam.found_inf = (bad | self._halted).float().to(where)
        current.decision = OnTheWay(torch.cat([bad.double()[None], seen, scores]))
        self._waiting.append(current)

    def _give_up_after(self, times: int, how: str, event: Event) -> None:
        if times >= self._config.guard_limit:
            raise ValueError(
                f"train.guard={self._config.guard}: {times} steps {how} (train.guard_limit), the last: {_told(event)}; lower"
                f" train.lr, look at the samples in {self._folder / FILE}, or raise train.guard_sigma if these are no spikes"
            )

    def _record(self, event: Event) -> None:
        self._events.append(event)
        if dist.get_rank() == 0:
            with (self._folder / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._folder)
            back = f" to step {event['to']}" if "to" in event else ""
            print(f"warning: {_told(event)}: {event['action']}{back}", flush=True)


class OnTheWay:
    """A tensor that is copied to the host while the device works on: waiting for it waits for nothing that is queued later."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event:
            self._event.record()

    def arrived(self) -> Any:
        """Its number, or the list of its numbers."""
        if self._event:
            self._event.synchronize()
        return self._copy.tolist()


@dataclass
class _Step:
    """A step, its samples, this rank's part of its loss; and what was decided: bad, loss, norm, their scores."""

    number: int
    sample: int
    count: int
    loss: Tensor
    decision: OnTheWay | None = None


def read_events(folder: Path) -> list[Event]:
    """The events of `folder/events.jsonl`, in their order; a last line that was cut by a crash is left out."""
    path = folder / FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def margin(event: Event) -> int:
    """So many steps, that of the event the last of them, are undone by a rollback and their samples taken out: of a spike what
    led to it too."""
    return BEFORE_SPIKE if event["seen"] == "spike" else 1


def _told(event: Event) -> str:
    """An event in a few words."""

    def number(name: str) -> str:
        value, score = event[name], event[f"{name}_score"]
        shown = f"{value:.4g}" if isinstance(value, float) else value
        return f"{shown} (z-score {score:.1f})" if isinstance(score, float) else shown

    samples = ", ".join(f"{first} to {end - 1}" for first, end in event["samples"])
    return f"step {event['step']}, samples {samples}: loss {number('loss')}, gradient norm {number('grad_norm')}"


def _json_number(value: float) -> float | str:
    """JSON has neither infinities nor NaN."""
    return value if math.isfinite(value) else str(value)
