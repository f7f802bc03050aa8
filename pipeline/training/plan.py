"""What a training costs before it starts: a model and its training in; bytes by part, the largest micro-batch and days out.

Arithmetic alone, no torch. `memory` gives the most that a rank holds at a time: what is there for good (weights, fp32 masters
and Adam's moments of `pipeline.training.engine`'s AdamW, which is fused and so has no temporaries), what a step's gradients
take, and what the forward keeps, with the working memory of the part of a step in which the sum is largest. Tests compare it
with what torch's allocator hands out in real steps of a real engine.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from model.config import ACTIVATIONS, LlamaConfig
from pipeline.progress import human_bytes
from pipeline.training.devices import GPUS
from pipeline.training.settings import TrainConfig

CHUNK_BYTES = 24 << 20  # logits of a chunk: `model.loss.CHUNK_BYTES`
BUCKET = 1 << 22  # elements that are reduced together: `pipeline.training.reduction.BUCKET`
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at their peak, by part; `host` is what `offload` moves to the CPU's memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class _Gradients:
    """What DeepSpeed 0.19 with `pipeline.training.reduction` holds beside weights and optimizer for a step's gradients, in
    bytes: of each parameter, of each of a rank's share of them, of each element of a bucket (BUCKET at most), and of each of
    the largest reduction. `kept` and `held`, of the first two, stay between micro-batches and between steps."""

    whole: int
    share: int
    bucket: int
    reduced: int
    kept: tuple[int, int]
    held: tuple[int, int] = (0, 0)


GRADIENTS = {
    ("fp32", 0): _Gradients(4, 0, 4, 4, (4, 0)),  # .grad; a flat copy of what is reduced together
    ("fp32", 1): _Gradients(4, 4, 4, 0, (4, 4), (0, 4)),  # .grad; the share; a bucket
    ("fp32", 2): _Gradients(0, 4, 4, 0, (0, 4), (0, 4)),  # the share's sums; a bucket
    ("fp32", 3): _Gradients(0, 4, 4, 0, (0, 4)),
    ("bf16", 1): _Gradients(6, 0, 4, 4, (6, 0), (4, 0)),  # fp32 sums and .grad; a flat fp32 copy of what is reduced together
    ("bf16", 2): _Gradients(0, 4, 2, 4, (0, 4)),  # the share's sums; a bucket, and an fp32 copy of what is reduced
    ("bf16", 3): _Gradients(0, 4, 2, 4, (0, 4)),
}
STAGES = {"0": (0, False), "1": (1, False), "2": (2, False), "3": (3, False), "3_offload": (3, True)}  # name: stage, offload


def memory(
    model: LlamaConfig,
    train: TrainConfig,
    *,
    stage: int,
    world: int,
    activations: str,
    offload: bool = False,
    micro_batch: int | None = None,
) -> Memory:
    """The most that a rank of `world` holds at a time, with `micro_batch` samples of train.sequence, or train.micro_batch.

    That is at the start of a backward, when all activations are kept, at its end, when all gradients are there, or when these
    are reduced.
    """
    count, itemsize = model.parameter_count(), 2 if train.dtype == "bf16" else 4
    share, bucket = -(-count // world), min(BUCKET, count)
    reduction = max(bucket, model.vocab_size * model.dim, model.dim * model.hidden)
    micro_batch = micro_batch or train.micro_batch
    tokens = micro_batch * train.sequence
    of = GRADIENTS[train.dtype, stage]
    weights = itemsize * (share if stage == 3 else count)
    # In fp32, ZeRO-1 and 2 have no masters beside the weights.
    optimizer = 8 * count if stage == 0 else (8 if train.dtype == "fp32" and stage < 3 else 12) * share
    gathered = itemsize * min(LIVE, count) if stage == 3 else 0
    block = tokens * working_bytes_per_token(model, activations, itemsize) + block_gradient_bytes(model, activations, itemsize)
    per_parameter, per_share = of.kept if train.batch_tokens > tokens * world else of.held
    kept, gradients = per_parameter * count + per_share * share, of.whole * count + of.share * share
    reducing = of.bucket * bucket + of.reduced * reduction
    activation_bytes = tokens * model.activation_bytes_per_token(activations, itemsize)
    activation_bytes += max(block, loss_bytes(model, tokens, itemsize))
    if stage < 2:  # reduces when the backward is over
        phases = [
            Memory(weights, kept, optimizer, activation_bytes, 0),
            Memory(weights, gradients, optimizer, block, 0),
            Memory(weights, gradients, optimizer, 0, reducing),
        ]
    else:
        phases = [
            Memory(weights, kept, optimizer, activation_bytes, gathered + reducing),
            Memory(weights, gradients, optimizer, max(block, itemsize * reduction), gathered + reducing),
        ]
    most = max(phases, key=lambda phase: phase.total)
    if not offload:
        return most
    host = of.share * share
    return Memory(0, 0, 0, most.activations, most.buffers, most.weights + most.optimizer + host)


def largest_micro_batch(model: LlamaConfig, train: TrainConfig, limit: int, **place: Any) -> int:
    """The largest micro-batch that takes at most `limit` bytes; 0 if none does. `place` as of `memory`."""
    low, high = 0, 1
    while memory(model, train, micro_batch=high, **place).total <= limit:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if memory(model, train, micro_batch=middle, **place).total <= limit:
            low = middle
        else:
            high = middle
    return low


def seconds(model: LlamaConfig, sequence: int, tokens: int, gpus: int, peak: float, mfu: float) -> float:
    """Seconds of training on `tokens` with `gpus` of `peak` FLOPs a second each, of which it reaches the share `mfu`."""
    return model.flops_per_token(sequence) * tokens / (gpus * peak * mfu)


def checkpoint_bytes(model: LlamaConfig) -> int:
    """Bytes of a checkpoint: weights and two moments in fp32."""
    return 3 * model.parameter_bytes(4)


class Published(NamedTuple):
    """A training whose cost its paper gives: `tokens`, in sequences of 2,048, and A100 `hours`."""

    model: LlamaConfig
    tokens: float
    hours: int


LLAMA_HOURS = {  # arXiv 2302.13971, tables 2 and 15
    "LLaMA 7B": Published(LlamaConfig(), 1.0e12, 82_432),
    "LLaMA 13B": Published(LlamaConfig(dim=5120, layers=40, heads=40, kv_heads=40, hidden=13824), 1.0e12, 135_168),
    "LLaMA 33B": Published(LlamaConfig(dim=6656, layers=60, heads=52, kv_heads=52, hidden=17920), 1.4e12, 530_432),
    "LLaMA 65B": Published(LlamaConfig(dim=8192, layers=80, heads=64, kv_heads=64, hidden=22016), 1.4e12, 1_022_362),
}


def implied_mfu(run: Published) -> float:
    """The share of the A100's dense bf16 peak that such a training means."""
    return run.model.flops_per_token(2048) * run.tokens / (run.hours * 3600 * GPUS["A100"].peak)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory, of a device or of this machine, could not be had."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


def out_of_memory(model: LlamaConfig, train: TrainConfig, stage: int, world: int, offload: bool = False) -> str:
    """What a rank needs by part, and what would save how much: a line for a run that did not fit."""
    now = memory(model, train, stage=stage, world=world, activations=train.activations, offload=offload)
    parts = {name: getattr(now, name) for name in ("weights", "gradients", "optimizer", "activations", "buffers")}
    changes: dict[str, dict[str, Any]] = {}
    if train.micro_batch > 1:
        smaller = train.micro_batch // 2
        changes[f"train.micro_batch={smaller}"] = {"micro_batch": smaller}
    for name, (other, offloaded) in STAGES.items():
        if (other, offloaded) > (stage, offload) and (world > 1 or offloaded):
            changes[f"zero={name}"] = {"stage": other, "offload": offloaded}
    changes |= {f"train.activations={name}": {"activations": name} for name in ACTIVATIONS if name != train.activations}
    place: dict[str, Any] = {"stage": stage, "world": world, "activations": train.activations, "offload": offload}
    saved = {name: now.total - memory(model, train, **(place | change)).total for name, change in changes.items()}
    useful = sorted((name for name in saved if saved[name] > 0), key=lambda name: -saved[name])
    told = ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items() if size)
    less = ", ".join(f"{name} {human_bytes(saved[name])}" for name in useful) or "only a smaller model or sequence"
    return f"a rank needs about {human_bytes(now.total)} ({told}); less with {less}"


def working_bytes_per_token(model: LlamaConfig, activations: str, itemsize: int) -> int:
    """Bytes a token that the backward of a block takes at most beside what was kept."""
    keys = model.kv_heads * model.head_dim
    if activations == "manual":
        return (5 * model.dim + 3 * keys) * itemsize + (3 * model.dim * 4 if itemsize < 4 else 0)
    own = 2 * model.hidden * itemsize + (model.dim * 4 if itemsize < 4 else 0)
    if activations == "recompute":  # a block is there as with autograd; what was kept behind the blocks is gone by then
        one, two = (replace(model, layers=layers).activation_bytes_per_token("autograd", itemsize) for layers in (1, 2))
        block = two - one
        own += block - (one - block)
    return own


def block_gradient_bytes(model: LlamaConfig, activations: str, itemsize: int) -> int:
    """Bytes of the weights' gradients that the backward of a block hands over at once: with `manual` all of the block's."""
    keys = model.kv_heads * model.head_dim
    attention = 2 * model.dim * model.dim + 2 * model.dim * keys
    return (attention + 3 * model.dim * model.hidden) * itemsize if activations == "manual" else 0


def loss_bytes(model: LlamaConfig, tokens: int, itemsize: int) -> int:
    """Bytes that the loss takes: a chunk's logits, their softmax and gradient, and the output weight's gradient in fp32."""
    chunk = min(CHUNK_BYTES, 4 * tokens * model.vocab_size)
    weight = model.vocab_size * model.dim
    return 3 * chunk + (4 if itemsize >= 4 else 4 + itemsize) * weight
