"""Meta's files: `params.json` and `consolidated.*.pth`, one for each model-parallel process, in; from it back.

Rows and columns were dealt out to the processes as in fairscale's layers: wq, wk, wv, w1, w3 and the output by rows, wo
and w2 by columns; the embedding by columns in LLaMA 1 and 2, by rows in LLaMA 3; norms are the same in all. The files are
torch's, read with `weights_only=True`, memory-mapped.
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import LlamaConfig
from model.convert.hugging_face import read_json
from model.convert.layout import check_tensors, halves_from_pairs, is_rotated, pairs_from_halves, tensor_shapes

PARAMS = "params.json"
_NAMES = {"embedding": "tok_embeddings", "feed_forward_norm": "ffn_norm"}  # ours → Meta's; all others are the same
_BY_COLUMNS = ("wo.weight", "w2.weight")
_TABLES = "rope.freqs"  # stored in some files, and computed here


def from_meta(folder: Path, max_sequence: int = 2048) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration. The files do not say `max_sequence`: 2048 for LLaMA 1, 4096 for LLaMA 2.

    Raises ValueError, in one line, for files that are missing or broken, and tensors that are missing, surplus or
    misshapen.
    """
    params = read_json(folder / PARAMS)
    shards = [_read_shard(path) for path in sorted(folder.glob("consolidated.*.pth"))]
    if not shards:
        raise ValueError(f"{folder}: no consolidated.*.pth")
    config = _config(folder / PARAMS, params, shards, max_sequence)
    theirs = {_their_name(ours): ours for ours in tensor_shapes(config)}
    weights: dict[str, Tensor] = {}
    for name, ours in theirs.items():
        if any(name not in shard for shard in shards):
            raise ValueError(f"{folder}: {name} is missing")
        weight = _joined(folder, ours, name, [shard[name] for shard in shards], config)
        weights[ours] = halves_from_pairs(weight, config.head_dim) if is_rotated(ours) else weight
    if surplus := [name for shard in shards for name in shard if name not in theirs and name != _TABLES]:
        raise ValueError(f"{folder}: {surplus[0]} belongs to no such model ({len(surplus)} tensors in all)")
    check_tensors(tensor_shapes(config), weights, str(folder))
    return weights, config


def to_meta(weights: Mapping[str, Tensor], config: LlamaConfig, folder: Path, shards: int = 1) -> None:
    """Writes `params.json` and `shards` files into `folder`. `weights`: every tensor in our names.

    Raises ValueError for tensors that don't fit, a tied output (the format has none), and shards that don't divide the
    heads, the hidden width and the vocabulary.
    """
    check_tensors(tensor_shapes(config), weights, "the weights")
    if config.tied:
        raise ValueError("Meta's files have an output of their own, this model's is tied to the embedding")
    for name, number in (("kv_heads", config.kv_heads), ("hidden", config.hidden), ("vocab_size", config.vocab_size)):
        if number % shards:
            raise ValueError(f"shards={shards} must divide {name}={number}")
    folder.mkdir(parents=True, exist_ok=True)
    params = {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        **_hidden_params(config),
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "vocab_size": config.vocab_size,
    }
    (folder / PARAMS).write_text(json.dumps(params) + "\n", encoding="utf-8")
    for shard in range(shards):
        part = {}
        for ours, weight in weights.items():
            whole = pairs_from_halves(weight, config.head_dim) if is_rotated(ours) else weight
            axis = _axis(ours)
            part[_their_name(ours)] = (whole if axis is None else whole.chunk(shards, axis)[shard]).detach().cpu().clone()
        torch.save(part, folder / f"consolidated.{shard:02d}.pth")


def hidden_width(dim: int, multiple_of: int, ffn_dim_multiplier: float | None) -> int:
    """The width of the feed-forward network by Meta's rule: 2/3 · 4 · dim, times the multiplier, rounded up."""
    hidden = int(2 * 4 * dim / 3)
    if ffn_dim_multiplier is not None:
        hidden = int(ffn_dim_multiplier * hidden)
    return multiple_of * -(-hidden // multiple_of)


def _hidden_params(config: LlamaConfig) -> dict[str, Any]:
    """The parameters from which Meta's rule computes the hidden width."""
    if hidden_width(config.dim, 256, None) == config.hidden:
        return {"multiple_of": 256}
    return {"multiple_of": 1, "ffn_dim_multiplier": (config.hidden + 0.5) / int(2 * 4 * config.dim / 3)}


def _their_name(ours: str) -> str:
    return ".".join(_NAMES.get(part, part) for part in ours.split("."))


def _axis(name: str) -> int | None:
    """The axis over which a tensor was dealt out; None for norms."""
    if name.endswith("norm.weight"):
        return None
    return 1 if name.endswith(_BY_COLUMNS) or name == "embedding.weight" else 0


def _joined(folder: Path, ours: str, name: str, parts: Sequence[Tensor], config: LlamaConfig) -> Tensor:
    axis = _axis(ours)
    if axis is None or len(parts) == 1:
        return parts[0]
    if ours == "embedding.weight" and parts[0].shape[1] == config.dim:  # LLaMA 3
        axis = 0
    try:
        return torch.cat(list(parts), axis)
    except RuntimeError:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"{folder}: the parts of {name} have shapes that don't fit together: {shapes}") from None


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path}: no file of weights: {type(error).__name__}") from error
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError(f"{path}: holds other things than tensors by name")
    return value


def _config(path: Path, params: Mapping[str, Any], shards: Sequence[Mapping[str, Tensor]], max_sequence: int) -> LlamaConfig:
    if params.get("use_scaled_rope"):
        raise ValueError(f"{path}: use_scaled_rope: rotary embeddings can only be unscaled")
    try:
        heads, dim = params["n_heads"], params["dim"]
        vocab_size = params.get("vocab_size", -1)
        if vocab_size < 0:  # LLaMA 1 and 2 leave it to the tokenizer
            rows, columns = shards[0]["tok_embeddings.weight"].shape
            vocab_size = rows * (len(shards) if columns == dim and len(shards) > 1 else 1)
        return LlamaConfig(
            dim=dim,
            layers=params["n_layers"],
            heads=heads,
            kv_heads=params.get("n_kv_heads") or heads,
            hidden=hidden_width(dim, params["multiple_of"], params.get("ffn_dim_multiplier")),
            vocab_size=vocab_size,
            max_sequence=max_sequence,
            norm_eps=params["norm_eps"],
            rope_theta=params.get("rope_theta", 10000.0),
            tied=False,
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
