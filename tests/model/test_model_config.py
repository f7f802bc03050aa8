import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from model.config import ACTIVATIONS, LlamaConfig
from model.llama import Llama

TINY = {"dim": 32, "layers": 3, "heads": 4, "kv_heads": 4, "hidden": 88, "vocab_size": 50, "max_sequence": 32}


@settings(deadline=None)
@given(
    layers=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half_head=st.integers(1, 5),
    hidden=st.integers(1, 40),
    vocab_size=st.integers(1, 60),
    tied=st.booleans(),
)
def test_count_is_the_models(
    layers: int, kv_heads: int, group: int, half_head: int, hidden: int, vocab_size: int, tied: bool
) -> None:
    heads = kv_heads * group
    config = LlamaConfig(2 * half_head * heads, layers, heads, kv_heads, hidden, vocab_size, max_sequence=4, tied=tied)
    with torch.device("meta"):
        model = Llama(config)
    assert config.head_dim == 2 * half_head
    assert sum(parameter.numel() for parameter in model.parameters()) == config.parameter_count()


@pytest.mark.parametrize("change", [{}, {"kv_heads": 2}, {"kv_heads": 1}, {"tied": True}, {"layers": 1, "hidden": 17}])
@pytest.mark.parametrize("sequence", [1, 7, 32])
def test_flops_are_those_of_torchs_counter(change: dict[str, int], sequence: int) -> None:
    config = LlamaConfig(**{**TINY, **change})
    model = Llama(config)
    model.init_weights(0)
    tokens = torch.randint(config.vocab_size, (2, sequence))
    # The plain kernel computes masked scores too; they are the half that flops_per_token leaves out.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    masked = 6 * config.layers * config.dim * sequence
    # By convention the weights of the norms count as if they were matrices; the counter knows that they are not.
    norms = 6 * (2 * config.layers + 1) * config.dim
    assert counter.get_total_flops() == tokens.numel() * (config.flops_per_token(sequence) + masked - norms)


def test_flops_of_7b() -> None:
    # 6 · (parameters - embedding) + 6 · 32 layers · 4096 · 2048
    assert LlamaConfig().flops_per_token(2048) == 6 * (6_738_415_616 - 32000 * 4096) + 1_610_612_736


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameter_bytes(dtype: torch.dtype) -> None:
    config = LlamaConfig(**{**TINY, "kv_heads": 2})
    counted = sum(parameter.nbytes for parameter in Llama(config).to(dtype).parameters())
    assert config.parameter_bytes(dtype.itemsize) == counted


class Storages(TorchDispatchMode):
    """Sees the memory of every tensor that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self, but: list[Tensor]) -> int:
        """Bytes of what is still there, each memory once."""
        known = {tensor.untyped_storage()._cdata for tensor in but}
        return sum(size for key, (storage, size) in self.made.items() if key not in known and not storage.expired())


@pytest.mark.parametrize("change", [{}, {"kv_heads": 2}, {"kv_heads": 1, "layers": 1, "hidden": 17}, {"tied": True}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_activation_bytes_are_those_that_are_kept(activations: str, dtype: torch.dtype, change: dict[str, int]) -> None:
    config = LlamaConfig(**{**TINY, **change})
    model = Llama(config, activations)
    model.init_weights(0)
    model.to(dtype)
    tokens = torch.randint(config.vocab_size, (2, 32))
    labels = tokens.clone()
    with Storages() as storages:
        loss, count = model(tokens, labels)
    kept = storages.alive([*model.parameters(), *model.buffers(), tokens, labels, loss, count])
    output_gradient = config.vocab_size * config.dim * max(4, dtype.itemsize)
    assert kept == tokens.numel() * config.activation_bytes_per_token(activations, dtype.itemsize) + output_gradient


def test_manual_keeps_little_more_than_half_of_autograd() -> None:
    for config in (LlamaConfig(), LlamaConfig(dim=8192, layers=80, heads=64, kv_heads=8, hidden=28672)):
        for itemsize in (2, 4):
            kept = {name: config.activation_bytes_per_token(name, itemsize) for name in ACTIVATIONS}
            assert kept["recompute"] < 0.1 * kept["autograd"] and kept["manual"] < 0.6 * kept["autograd"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dim": 0}, "dim=0: must be at least 1"),
        ({"layers": -1}, "layers=-1: must be at least 1"),
        ({"vocab_size": 0}, "vocab_size=0: must be at least 1"),
        ({"max_sequence": 0}, "max_sequence=0: must be at least 1"),
        ({"heads": 5}, "heads=5 must divide dim=32"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
        ({"kv_heads": 8}, "kv_heads=8 must divide heads=4"),
        ({"heads": 32}, "gives heads of 1: rotary embedding needs an even number"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: must be a positive number"),
        ({"norm_eps": float("nan")}, "norm_eps=nan: must be a positive number"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0: must be a positive number"),
        ({"rope_theta": float("inf")}, "rope_theta=inf: must be a positive number"),
    ],
)
def test_sizes_that_do_not_fit(change: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError) as error:
        LlamaConfig(**{**TINY, **change})
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_needs_no_torch() -> None:
    code = "import sys, model.config; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
