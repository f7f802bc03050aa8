"""What a rank's memory is needed for: a job and the number of ranks in, bytes by part out; and the words for a user whose
memory was too small."""

import dataclasses

import torch

from model.config import LlamaConfig
from pipeline.progress import human_bytes
from pipeline.training.job import Job
from pipeline.training.settings import TrainConfig, ZeroConfig


def state_bytes(model: LlamaConfig, train: TrainConfig, zero: ZeroConfig, world: int) -> int:
    """Bytes of weights, fp32 gradients, fp32 master weights and AdamW's moments that a rank holds (ZeRO, arXiv 1910.02054,
    section 3.1, with gradients that are summed in fp32); without buffers, and what `offload` moves to the host."""
    gradients = 4
    weights, optimizer = (2, 12) if train.dtype == "bf16" else (4, 8 if zero.stage == 0 else 12)
    shared = {part: world if zero.stage >= stage else 1 for part, stage in (("optimizer", 1), ("gradients", 2), ("weights", 3))}
    if zero.offload:
        weights = gradients = optimizer = 0
    each = weights / shared["weights"] + gradients / shared["gradients"] + optimizer / shared["optimizer"]
    return round(model.parameter_count() * each)


def activation_bytes(model: LlamaConfig, train: TrainConfig) -> int:
    """Bytes that a rank keeps of a micro-batch from the forward to the backward."""
    size = 2 if train.dtype == "bf16" else 4
    return train.micro_batch * train.sequence * model.activation_bytes_per_token(train.activations, size)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU, for which PyTorch has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(job: Job, world: int) -> str:
    """What a rank's memory was needed for, and what makes it less, each with figures; one line."""
    model, train, zero = job.model, job.train, job.zero
    states, kept = state_bytes(model, train, zero, world), activation_bytes(model, train)
    name = "3_offload" if zero.offload else str(zero.stage)
    ways = []
    if train.micro_batch > 1:
        ways.append(f"train.micro_batch=1 keeps {human_bytes(kept // train.micro_batch)}")
    if train.activations != "recompute":
        less = activation_bytes(model, dataclasses.replace(train, activations="recompute"))
        ways.append(f"train.activations=recompute keeps {human_bytes(less)}")
    for other in (ZeroConfig(2), ZeroConfig(3)):
        if zero.stage < other.stage and world > 1:
            ways.append(f"zero={other.stage} holds {human_bytes(state_bytes(model, train, other, world))}")
    if not zero.offload and torch.cuda.is_available():
        ways.append("zero=3_offload holds them on the host")
    return (
        f"out of memory: with zero={name} and {world} as world size a rank holds about {human_bytes(states)} of weights,"
        f" gradients and optimizer states, and keeps {human_bytes(kept)} of activations for"
        f" train.micro_batch={train.micro_batch}; {', '.join(ways) or 'use more ranks or a smaller model'}"
    )
