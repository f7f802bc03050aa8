"""The DeepSpeed engine: the run's configuration in, a model with its first weights and an engine around it out.

DeepSpeed's own configuration is derived here from `TrainConfig` and `ZeroConfig`; it is written nowhere else.
"""

import ctypes
import os
from typing import Any

import deepspeed
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import nn

from model.config import LlamaConfig
from model.llama import Block, Llama, initial_weight
from pipeline.training import reduction
from pipeline.training.settings import TrainConfig, ZeroConfig

# An all-reduce for inference on CPUs, which DeepSpeed would compile in the first start: a start that is killed while torch's
# lock on the build is held makes the next one wait for ever, and its buffers (67 MB a rank) stay in /dev/shm.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def join_ranks() -> None:
    """Joins the process group that torchrun's environment variables describe: gloo on CPUs, NCCL on GPUs."""
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # NCCL binds to the current device
    deepspeed.init_distributed("nccl" if DEVICE == "cuda" else "gloo")


def deepspeed_config(train: TrainConfig, zero: ZeroConfig, world: int, parameters: int) -> dict[str, Any]:
    """The dictionary that `deepspeed.initialize` takes.

    Raises ValueError where the batch can't be divided, and for bf16 without ZeRO: DeepSpeed's optimizer for that takes one
    step too many, with zero gradients, before the first, and can't sum gradients in fp32.
    """
    if train.dtype == "bf16" and zero.stage == 0:
        raise ValueError("zero.stage=0: train.dtype=bf16 needs ZeRO's master weights; choose zero.stage 1, 2 or 3")
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": train.accumulation(world),
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.dtype == "bf16", "check_grad_overflow": False},  # the guard does that
        "zero_optimization": {"stage": zero.stage}
        | reduction.configuration(zero.stage, parameters)
        | ({"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}} if zero.offload else {}),
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW is one kernel too, and has not to be compiled
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**62,
    }


@torch.no_grad()
def build_model(config: LlamaConfig, train: TrainConfig, zero: ZeroConfig, world: int) -> Llama:
    """The model with its first weights, in `train.dtype`: those of `Llama.init_weights`, made part by part.

    With ZeRO-3 all ranks call this, and each keeps its share of a part before the next one is made: no rank ever holds more
    than one block.
    """
    with torch.device("meta"):
        model = Llama(config, train.activations).to(torch.bfloat16 if train.dtype == "bf16" else torch.float32)
    parts: dict[str, nn.Module] = {"": model}
    if zero.stage == 3:
        parts = {f"layers.{i}": block for i, block in enumerate(model.layers)}
        parts |= {name: part for name, part in model.named_children() if name != "layers"}
    for prefix, part in parts.items():
        part.to_empty(device=DEVICE)
        if prefix == "output" and config.tied:
            part.weight = model.embedding.weight
            continue
        for name, parameter in part.named_parameters(prefix):
            parameter.copy_(initial_weight(name, parameter.shape, config.layers, train.seed))
        if zero.stage == 3:
            deepspeed.zero.Init(part, config_dict_or_path=deepspeed_config(train, zero, world, config.parameter_count()))
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed between the shares otherwise
    return model


def build_engine(model: nn.Module, train: TrainConfig, zero: ZeroConfig, world: int) -> deepspeed.DeepSpeedEngine:
    """An engine around the model, with AdamW that decays matrices only (LLaMA, arXiv 2302.13971, section 2.3)."""
    shapes = {parameter: getattr(parameter, "ds_shape", parameter.shape) for parameter in model.parameters()}
    groups = [
        {"params": [p for p, shape in shapes.items() if len(shape) >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p, shape in shapes.items() if len(shape) < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), eps=train.adam_eps, fused=True)
    if zero.stage == 3:  # a block's weights come together: its backward needs them all, and outside of its submodules
        set_z3_leaf_modules(model, [Block])
    config = deepspeed_config(train, zero, world, sum(shape.numel() for shape in shapes.values()))
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    reduction.spare_copies(engine, train.clip)
    return engine


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Sets the rate of the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
