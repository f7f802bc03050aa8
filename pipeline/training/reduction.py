"""What DeepSpeed does between backward and Adam, without its copies: the reduction of gradients, their norm, the fp32 weights.

DeepSpeed 0.19 copies all gradients into a bucket as large as the model, those of a rank's share once more, and in fp64 for
their norm; with fp32 weights it keeps a second copy of the share. The copies take memory, and on a CPU up to a quarter of a
step. The mathematics stays: tests compare losses and norms with plain PyTorch's.
"""

import functools
from collections.abc import Iterable
from typing import Any

import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.zero.stage_1_and_2
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup
from torch import Tensor, nn

BUCKET = 1 << 22  # elements that are copied together to be reduced; a larger gradient is reduced where it lies
ROW = 1 << 12  # elements of which a norm is taken in fp32: over tens of millions such a sum would be off by 0.2 %


def configuration(stage: int, parameters: int) -> dict[str, Any]:
    """The keys of DeepSpeed's `zero_optimization` that say how gradients are reduced."""
    return {"reduce_bucket_size": min(BUCKET, parameters), "reduce_scatter": stage == 3}


def spare_copies(engine: deepspeed.DeepSpeedEngine, clip: float) -> None:
    """Takes the copies out of a new engine, of which ZeRO-3 makes none. `clip`: the largest norm."""
    optimizer, reduce = engine.optimizer, engine.allreduce_gradients
    engine.allreduce_gradients = lambda bucket_size=BUCKET: reduce(BUCKET)
    if dist.get_backend() == "gloo":
        for module in (deepspeed.runtime.bf16_optimizer, deepspeed.runtime.zero.stage_1_and_2):
            module.all_gather_dp_groups = _gather_in_place
    if isinstance(optimizer, torch.optim.Optimizer):  # ZeRO-0
        engine.clip_fp32_gradients = lambda: setattr(engine, "_global_grad_norm", _clip(engine.module, clip))
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        optimizer.get_grad_norm_direct = lambda gradients, parameters: _norm_of_all(gradients)
        optimizer.copy_grads_in_partition = lambda parameter, group: optimizer.clear_grad_attribute(parameter)  # it was added
        if optimizer.dtype == torch.float32:
            _share_weights(optimizer)
            optimizer._use_compact_grad_partition_buffer = lambda group: True
            build = functools.cache(optimizer._build_compact_grad_partition_buffer)
            if optimizer.partition_gradients:  # ZeRO-2 sums every micro-batch's, ZeRO-1 has the sum by then
                optimizer._build_compact_grad_partition_buffer = lambda group: _zeroed(build(group))
            else:
                optimizer._build_compact_grad_partition_buffer = build
                optimizer._add_to_grad_partition_buffer = lambda share, gradient: share.copy_(gradient)


@torch.no_grad()
def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of `tensors` together, fp64 [], summed in fp64 over rows of fp32."""
    norms = []
    for tensor in tensors:
        flat = tensor.reshape(-1)
        whole = flat.numel() // ROW * ROW
        norms += [torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1), torch.linalg.vector_norm(flat[whole:])[None]]
    return torch.linalg.vector_norm(torch.cat(norms).double())


def _norm_of_all(gradients: Iterable[Tensor]) -> Tensor:
    """The norm of the gradients of all ranks, of which this rank has `gradients`, fp32 []; padding is zero."""
    square = norm(gradients).square()
    dist.all_reduce(square)
    return square.sqrt().float()


def _clip(module: nn.Module, clip: float) -> Tensor:
    """Scales the gradients to a norm of at most `clip`; returns what it was."""
    parameters = list(module.parameters())
    total = norm(parameter.grad for parameter in parameters if parameter.grad is not None).float()
    nn.utils.clip_grads_with_norm_(parameters, clip, total)
    return total


def _zeroed(buffer: GradPartitionBufferGroup) -> GradPartitionBufferGroup:
    buffer.flat_partition.zero_()
    return buffer


def _share_weights(optimizer: DeepSpeedZeroOptimizer) -> None:
    """Lets Adam change fp32 weights where the model has them, in the place of a copy of this rank's share."""
    for share, shares in zip(
        optimizer.single_partition_of_fp32_groups, optimizer.parallel_partitioned_bit16_groups, strict=True
    ):
        share.data = shares[dist.get_rank()]
    optimizer._link_all_hp_params()  # else the parameters hold the copies


def _gather_in_place(partitioned_param_groups: list[list[Tensor]], **_: Any) -> None:
    """Every rank's share of the weights to all ranks. gloo's own all-gather goes by way of a copy of all weights."""
    on_the_way = [
        dist.broadcast(share, rank, async_op=True) for shares in partitioned_param_groups for rank, share in enumerate(shares)
    ]
    for work in on_the_way:
        work.wait()
