"""The configuration of a training run, checked; no torch here, so that the command line starts at once.

Defaults are LLaMA-7B's (arXiv 2302.13971, table 2 and section 2.3).
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from model.config import ACTIVATIONS

SCHEDULES = ("cosine", "wsd")  # see `pipeline.training.schedule`
# How a run is computed: with other values it gives the same, up to rounding, so it may go on with them.
HOW = (
    *("zero", "train.processes", "train.micro_batch", "train.activations"),
    *("train.checkpoint_every", "train.keep_checkpoints", "train.keep_every", "train.validate_every", "train.log_every"),
    *("train.guard", "train.guard_sigma", "train.guard_limit", "train.profile", "train.wandb"),
)


def _key(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class TrainConfig:
    """A training run: lengths in tokens, times in optimizer steps. Raises ValueError, in one line, for what can't be."""

    sequence: int = _key(2048, "tokens a sample")
    batch_tokens: int = _key(4_194_304, "tokens a step, over all processes: sequence x micro_batch x accumulation x processes")
    batch_warmup: list[list[int]] = _key(
        [], "[[steps, tokens a step], …]: smaller batches that come first, as [[2000,1048576]]"
    )
    micro_batch: int = _key(1, "samples that a process holds at a time")
    steps: int = _key(238_418, "optimizer steps")
    lr: float = _key(3e-4, "peak of the learning rate")
    schedule: str = _key("cosine", "after the warm-up: cosine, or wsd, which stays at the peak and falls at the end")
    decay_ratio: float = _key(0.1, "share of the steps in which wsd falls")
    min_lr_ratio: float = _key(0.1, "the learning rate ends at this share of its peak")
    warmup_steps: int = _key(2000, "steps of linear warm-up")
    weight_decay: float = _key(0.1, "of matrices; norms have none")
    beta1: float = _key(0.9, "AdamW's decay of the first moment")
    beta2: float = _key(0.95, "AdamW's decay of the second moment")
    adam_eps: float = _key(1e-8, "AdamW's epsilon")
    clip: float = _key(1.0, "largest norm of the gradient")
    seed: int = _key(1, "of the first weights and of the order of the samples")
    dtype: str = _key("bf16", "bf16, with fp32 master weights, or fp32")
    activations: str = _key("manual", "kept for the backward: autograd, recompute (block inputs) or manual (linear outputs)")
    document_mask: bool = _key(False, "attention and positions stay inside a document; else documents run on, as in LLaMA")
    processes: int = _key(1, "processes on this machine")
    checkpoint_every: int = _key(1000, "steps between checkpoints")
    keep_checkpoints: int = _key(3, "how many of the newest checkpoints stay")
    keep_every: int = _key(0, "steps between checkpoints that stay for ever, beside the newest; 0: none")
    validate_every: int = _key(1000, "steps between validations")
    log_every: int = _key(10, "steps between lines of metrics")
    guard: str = _key("skip", "what to do about a step whose loss or gradient is not finite or a spike: skip, stop or rollback")
    guard_sigma: float = _key(6.0, "a spike is so many robust standard deviations above the last 128 good steps")
    guard_limit: int = _key(10, "stop after so many steps skipped in a row, or rollbacks to the same checkpoint")
    profile: list[int] = _key([], "[first, last]: steps whose profile is written to train/profile; empty: none")
    wandb: str = _key("", "a project of Weights & Biases that gets the metrics too; needs the wandb extra")

    def __post_init__(self) -> None:
        counts = ("sequence", "batch_tokens", "micro_batch", "steps", "processes")
        for name in (*counts, "checkpoint_every", "keep_checkpoints", "validate_every", "log_every", "guard_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in ("lr", "adam_eps", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"train.{name}={getattr(self, name)}: must be a positive number")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: choose a number from 0 to below 1")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ValueError(f"train.min_lr_ratio={self.min_lr_ratio}: choose a number from 0 to 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"train.weight_decay={self.weight_decay}: choose 0 or a positive number")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"train.warmup_steps={self.warmup_steps}: choose 0 to train.steps={self.steps}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"train.schedule={self.schedule}: choose {' or '.join(SCHEDULES)}")
        if not 0 < self.decay_ratio <= 1:
            raise ValueError(f"train.decay_ratio={self.decay_ratio}: choose a share above 0, up to 1")
        if self.schedule == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"train.decay_ratio={self.decay_ratio}: {self.decay_steps} steps of decay and {self.warmup_steps} of warm-up"
                f" are more than train.steps={self.steps}"
            )
        self._check_batch_warmup()
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"train.keep_every={self.keep_every}: choose 0 or a multiple of train.checkpoint_every={self.checkpoint_every}"
            )
        if self.guard not in ("skip", "stop", "rollback"):
            raise ValueError(f"train.guard={self.guard}: choose skip, stop or rollback")
        if not self.guard_sigma > 0:
            raise ValueError(f"train.guard_sigma={self.guard_sigma}: choose a positive number")
        if self.dtype not in ("bf16", "fp32"):
            raise ValueError(f"train.dtype={self.dtype}: choose bf16 or fp32")
        if self.activations not in ACTIVATIONS:
            raise ValueError(f"train.activations={self.activations}: choose {', '.join(ACTIVATIONS)}")
        if self.profile and (len(self.profile) != 2 or not 1 <= self.profile[0] <= self.profile[1] <= self.steps):
            raise ValueError(f"train.profile={self.profile}: choose [first, last] of the steps 1 to {self.steps}, or []")

    def _check_batch_warmup(self) -> None:
        named = f"train.batch_warmup={self.batch_warmup}"
        if any(len(entry) != 2 or min(entry) < 1 for entry in self.batch_warmup):
            raise ValueError(f"{named}: choose pairs [steps, tokens a step] of positive numbers")
        if any(later <= earlier for earlier, later in itertools.pairwise(self._sizes())):
            raise ValueError(f"{named}: the batches must grow, up to train.batch_tokens={self.batch_tokens}")
        if (warm := sum(steps for steps, _ in self.batch_warmup)) > self.steps:
            raise ValueError(f"{named}: has {warm} steps, more than train.steps={self.steps}")

    def _sizes(self) -> list[int]:
        return [*(tokens for _, tokens in self.batch_warmup), self.batch_tokens]

    def accumulation(self, world: int) -> int:
        """Micro-batches a process takes for a step of `batch_tokens`. Raises ValueError where that, or a batch of the warm-up,
        is no whole number of them."""
        held = self.sequence * self.micro_batch * world
        for tokens in reversed(self._sizes()):
            if tokens % held:
                named = "batch_tokens" if tokens == self.batch_tokens else "batch_warmup"
                raise ValueError(
                    f"train.{named}={tokens} is no multiple of sequence {self.sequence} x micro_batch {self.micro_batch} x"
                    f" {world} processes = {held}"
                )
        return self.batch_tokens // held

    @property
    def batch(self) -> int:
        """Samples a step, over all processes, behind the batch warm-up."""
        return self.batch_tokens // self.sequence

    def batch_at(self, step: int) -> int:
        """Samples of step 1, 2, …, over all processes."""
        return self.samples(step) - self.samples(step - 1)

    def samples(self, steps: int) -> int:
        """Samples of the first `steps` steps: the index of the next one."""
        samples, left = 0, steps
        for length, tokens in self.batch_warmup:
            taken = min(left, length)
            samples, left = samples + taken * (tokens // self.sequence), left - taken
        return samples + left * self.batch

    def tokens(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        return self.samples(steps) * self.sequence

    @property
    def decay_steps(self) -> int:
        """The last steps of wsd, in which the learning rate falls."""
        return max(1, round(self.decay_ratio * self.steps))


@dataclass
class MixtureConfig:
    """What is trained on: the sources of `tokenize`, by `pipeline.tokens.mixture`."""

    shares: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "{source: share of the samples}, relative to their sum, beside those of mixture=…; 0 leaves one out"},
    )
    epochs: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "{source: epochs}, after which its share goes to the others; a source not named here repeats"},
    )

    def __post_init__(self) -> None:
        for source, share in self.shares.items():
            if not 0 <= share < float("inf"):
                raise ValueError(f"mixture.shares.{source}={share}: choose 0 or a positive number")
        for source, epochs in self.epochs.items():
            if not 0 < epochs < float("inf"):
                raise ValueError(f"mixture.epochs.{source}={epochs}: choose a positive number; without one the source repeats")
            if source not in self.shares:
                raise ValueError(f"mixture.epochs.{source}={epochs}: mixture.shares has no such source")


@dataclass
class ZeroConfig:
    """DeepSpeed's ZeRO (arXiv 1910.02054), and its offload (arXiv 2101.06840)."""

    stage: int = _key(1, "what is partitioned: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too")
    offload: bool = _key(False, "with stage 3: weights and optimizer states lie in the CPU's memory, AdamW runs there")

    def __post_init__(self) -> None:
        if self.stage not in (0, 1, 2, 3):
            raise ValueError(f"zero.stage={self.stage}: choose 0, 1, 2 or 3")
        if self.offload and self.stage != 3:
            raise ValueError(f"zero.offload=true: needs zero.stage=3, not {self.stage} (zero=3_offload)")
