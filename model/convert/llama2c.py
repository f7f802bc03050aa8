"""llama2.c's files (`export.py`, version 0; fp32): weights in our names in, from it back.

Seven little-endian int32: dim, hidden, layers, heads, kv_heads, vocabulary (negative: the output has its own weight),
longest sequence. Then fp32: embedding; each kind of `_KINDS` over all layers; the last norm; the rotary tables
(sequence · head_dim numbers, passed over); the output's weight if it has its own. The format states neither norm_eps nor
rope_theta: they are llama2.c's constants 1e-5 and 10000.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.attention import rotary_tables
from model.config import LlamaConfig
from model.convert.layout import check_tensors, halves_from_pairs, is_rotated, pairs_from_halves, tensor_shapes

NORM_EPS, ROPE_THETA = 1e-5, 10000.0
_HEADER = struct.Struct("<7i")
_KINDS = (
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "feed_forward_norm",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)


def from_llama2c(path: Path) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration.

    Raises ValueError, in one line, for sizes that do not fit together or do not give the size of the file.
    """
    size = path.stat().st_size
    if size < _HEADER.size:
        raise ValueError(f"{path}: {size} bytes, less than llama2.c's header of {_HEADER.size}")
    with path.open("rb") as file:
        dim, hidden, layers, heads, kv_heads, vocab_size, sequence = _HEADER.unpack(file.read(_HEADER.size))
    try:
        config = LlamaConfig(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            hidden=hidden,
            vocab_size=abs(vocab_size),
            max_sequence=sequence,
            norm_eps=NORM_EPS,
            rope_theta=ROPE_THETA,
            tied=vocab_size > 0,
        )
    except ValueError as error:
        raise ValueError(f"{path}: no file of llama2.c: {error}") from error
    tables = sequence * config.head_dim
    expected = _HEADER.size + 4 * (config.parameter_count() + tables)
    if size != expected:
        raise ValueError(f"{path}: {size} bytes, but the sizes in its header give {expected}")
    numbers = torch.from_file(str(path), size=size // 4, dtype=torch.float32)
    at = _HEADER.size // 4
    shapes = tensor_shapes(config)
    weights: dict[str, Tensor] = {}
    for name in _order(config):
        if name == "output.weight":
            at += tables
        count = math.prod(shapes[name])
        weight = numbers[at : at + count].view(shapes[name])
        weights[name] = halves_from_pairs(weight, config.head_dim) if is_rotated(name) else weight.clone()
        at += count
    return weights, config


def to_llama2c(weights: Mapping[str, Tensor], config: LlamaConfig, path: Path) -> None:
    """Writes a file. `weights`: every tensor in our names; other types than fp32 are cast to it.

    Raises ValueError for tensors that don't fit, and for a norm_eps or rope_theta that the format can't say.
    """
    check_tensors(tensor_shapes(config), weights, "the weights")
    if (config.norm_eps, config.rope_theta) != (NORM_EPS, ROPE_THETA):
        raise ValueError(
            f"llama2.c computes with norm_eps={NORM_EPS} and rope_theta={ROPE_THETA}, this model with"
            f" {config.norm_eps} and {config.rope_theta}"
        )
    vocab_size = config.vocab_size if config.tied else -config.vocab_size
    sizes = (config.dim, config.hidden, config.layers, config.heads, config.kv_heads, vocab_size, config.max_sequence)
    with path.open("wb") as file:
        file.write(_HEADER.pack(*sizes))
        for name in _order(config):
            if name == "output.weight":
                _write_tables(file.write, config)
            weight = weights[name].detach().to("cpu", torch.float32)
            weight = pairs_from_halves(weight, config.head_dim) if is_rotated(name) else weight.contiguous()
            file.write(weight.numpy().astype("<f4", copy=False).data)
        if config.tied:
            _write_tables(file.write, config)


def _write_tables(write, config: LlamaConfig) -> None:  # type: ignore[no-untyped-def]
    cos_tk, sin_tk = rotary_tables(config.head_dim, config.max_sequence, config.rope_theta)
    half = config.head_dim // 2
    for table in (cos_tk[:, :half], sin_tk[:, half:]):
        write(table.contiguous().numpy().astype("<f4", copy=False).data)


def _order(config: LlamaConfig) -> Iterator[str]:
    yield "embedding.weight"
    for kind in _KINDS:
        for layer in range(config.layers):
            yield f"layers.{layer}.{kind}.weight"
    yield "norm.weight"
    if not config.tied:
        yield "output.weight"
