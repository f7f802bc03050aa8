"""File formats of others: weights in this project's names out to Hugging Face's folder, from it back, in from llama2.c.

"Weights" are the state dict of a `Llama`. Hugging Face's names differ, shapes and the rotary layout (halves) do not, so
tensors go over bit for bit. llama2.c keeps Meta's rotary layout (adjacent pairs).
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import LlamaConfig

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_BLOCK = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}


_LLAMA2C = (
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
_LLAMA2C_HEADER = struct.Struct("<7i")


def hugging_face_names(config: LlamaConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(our name, Hugging Face's name, shape) of every tensor of a LlamaForCausalLM."""
    dim, kv, hidden = config.dim, config.kv_heads * config.head_dim, config.hidden
    shapes = {"wq": (dim, dim), "wk": (kv, dim), "wv": (kv, dim), "wo": (dim, dim)}
    shapes |= {"w1": (hidden, dim), "w3": (hidden, dim), "w2": (dim, hidden)}
    yield "embedding.weight", "model.embed_tokens.weight", (config.vocab_size, dim)
    for layer in range(config.layers):
        for ours, theirs in _BLOCK.items():
            shape = shapes.get(ours.split(".")[-1], (dim,))
            yield f"layers.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight", shape
    yield "norm.weight", "model.norm.weight", (dim,)
    if not config.tied:
        yield "output.weight", "lm_head.weight", (config.vocab_size, dim)


def hugging_face_config(config: LlamaConfig, bos: int, eos: int) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_sequence,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }


def to_hugging_face(weights: Mapping[str, Tensor], config: LlamaConfig, folder: Path, *, bos: int, eos: int) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`. `weights`: every tensor in our names.

    Raises ValueError, naming it, for a tensor that is missing, surplus or of another shape.
    """
    names = list(hugging_face_names(config))
    _check({ours: shape for ours, _, shape in names}, {k: tuple(v.shape) for k, v in weights.items()}, "the weights")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    text = json.dumps({**hugging_face_config(config, bos, eos), "dtype": dtype}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    tensors = {theirs: weights[ours].contiguous() for ours, theirs, _ in names}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def from_hugging_face(folder: Path) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration, of a folder with one or more safetensors files.

    Raises ValueError, in one line, for files that are missing or broken, another architecture, and tensors that are
    missing, surplus or misshapen.
    """
    config = _llama_config(folder / "config.json")
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}") from error
    names = list(hugging_face_names(config))
    _check({theirs: shape for _, theirs, shape in names}, {k: tuple(v.shape) for k, v in tensors.items()}, str(folder))
    return {ours: tensors[theirs] for ours, theirs, _ in names}, config


def _llama_config(path: Path) -> LlamaConfig:
    value = _read_json(path)
    if value.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type is {value.get('model_type')!r}, not 'llama'")
    # transformers 5 writes rope_parameters, older releases rope_theta and rope_scaling.
    rope = value.get("rope_parameters") or value.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"{path}: rope_type is {rope_type!r}: rotary embeddings can only be 'default' (not scaled)")
    if value.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{path}: hidden_act is {value['hidden_act']!r}, not 'silu'")
    try:
        return LlamaConfig(
            dim=value["hidden_size"],
            layers=value["num_hidden_layers"],
            heads=value["num_attention_heads"],
            kv_heads=value.get("num_key_value_heads") or value["num_attention_heads"],
            hidden=value["intermediate_size"],
            vocab_size=value["vocab_size"],
            max_sequence=value["max_position_embeddings"],
            norm_eps=value["rms_norm_eps"],
            rope_theta=value.get("rope_theta") or rope.get("rope_theta", 10000.0),
            tied=value.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that the index names; the one file goes first, as in transformers."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    shard_of = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict):
        raise ValueError(f"{folder / INDEX}: weight_map is missing")
    for name in shard_of.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / INDEX}: weight_map has {name!r}, which is not the name of a file in this folder")
    return [folder / name for name in sorted(set(shard_of.values()))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value


def from_llama2c(path: Path) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration, of a file of llama2.c (`export.py`, version 0; fp32).

    Seven little-endian int32: dim, hidden, layers, heads, kv_heads, vocabulary (negative: the output has its own weight),
    longest sequence. Then fp32: embedding; each kind of `_LLAMA2C` over all layers; the last norm; the rotary tables
    (sequence · head_dim numbers, passed over); the output's weight if it has its own. The format states neither norm_eps
    nor rope_theta: they are llama2.c's constants 1e-5 and 10000.

    Raises ValueError, in one line, for sizes that do not fit together or do not give the size of the file.
    """
    size = path.stat().st_size
    if size < _LLAMA2C_HEADER.size:
        raise ValueError(f"{path}: {size} bytes, less than llama2.c's header of {_LLAMA2C_HEADER.size}")
    with path.open("rb") as file:
        dim, hidden, layers, heads, kv_heads, vocab_size, sequence = _LLAMA2C_HEADER.unpack(file.read(_LLAMA2C_HEADER.size))
    try:
        config = LlamaConfig(
            dim=dim,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            hidden=hidden,
            vocab_size=abs(vocab_size),
            max_sequence=sequence,
            tied=vocab_size > 0,
        )
    except ValueError as error:
        raise ValueError(f"{path}: no file of llama2.c: {error}") from error
    tables = sequence * config.head_dim
    expected = _LLAMA2C_HEADER.size + 4 * (config.parameter_count() + tables)
    if size != expected:
        raise ValueError(f"{path}: {size} bytes, but the sizes in its header give {expected}")

    shapes = {ours: shape for ours, _, shape in hugging_face_names(config)}
    names = [f"layers.{layer}.{kind}.weight" for kind in _LLAMA2C for layer in range(layers)]
    numbers = torch.from_file(str(path), size=size // 4, dtype=torch.float32)
    at = _LLAMA2C_HEADER.size // 4
    weights: dict[str, Tensor] = {}
    for name in ("embedding.weight", *names, "norm.weight", "output.weight"):
        if name == "output.weight":
            if config.tied:
                break
            at += tables
        count = math.prod(shapes[name])
        weight = numbers[at : at + count].view(shapes[name])
        if name.endswith(("wq.weight", "wk.weight")):
            weight = weight.unflatten(0, (-1, config.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
        weights[name] = weight.clone()
        at += count
    return weights, config


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all)")
    if surplus := [name for name in found if name not in wanted]:
        raise ValueError(f"{where}: {surplus[0]} belongs to no such model ({len(surplus)} tensors in all)")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{where}: {name} has the shape {found[name]}, the configuration says {shape}")
