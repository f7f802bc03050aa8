"""File formats of others: weights in this project's names out to Hugging Face's folder, and from it back.

Names differ, shapes and the rotary layout (halves) do not, so tensors go over bit for bit.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
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
        "dtype": "float32",
    }


def to_hugging_face(weights: Mapping[str, Tensor], config: LlamaConfig, folder: Path, *, bos: int, eos: int) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`. `weights`: every tensor in our names.

    Raises ValueError, naming it, for a tensor that is missing, surplus or of another shape.
    """
    names = list(hugging_face_names(config))
    _check({ours: shape for ours, _, shape in names}, {k: tuple(v.shape) for k, v in weights.items()}, "the weights")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(hugging_face_config(config, bos, eos), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    tensors = {theirs: weights[ours].contiguous() for ours, theirs, _ in names}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def from_hugging_face(folder: Path) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration, of a folder with one or more safetensors files.

    Raises ValueError, in one line, for another architecture, and for tensors that are missing, surplus or misshapen.
    """
    value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if value.get("model_type") != "llama":
        raise ValueError(f"{folder}: model_type is {value.get('model_type')!r}, not 'llama'")
    config = LlamaConfig(
        dim=value["hidden_size"],
        layers=value["num_hidden_layers"],
        heads=value["num_attention_heads"],
        kv_heads=value.get("num_key_value_heads") or value["num_attention_heads"],
        hidden=value["intermediate_size"],
        vocab_size=value["vocab_size"],
        max_sequence=value["max_position_embeddings"],
        norm_eps=value["rms_norm_eps"],
        rope_theta=value.get("rope_theta") or value["rope_parameters"]["rope_theta"],
        tied=value.get("tie_word_embeddings", False),
    )
    index = folder / INDEX
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
    tensors: dict[str, Tensor] = {}
    for name in files:
        with safe_open(folder / name, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    names = list(hugging_face_names(config))
    _check({theirs: shape for _, theirs, shape in names}, {k: tuple(v.shape) for k, v in tensors.items()}, str(folder))
    return {ours: tensors[theirs] for ours, theirs, _ in names}, config


def _check(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all)")
    if surplus := [name for name in found if name not in wanted]:
        raise ValueError(f"{where}: {surplus[0]} belongs to no such model ({len(surplus)} tensors in all)")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{where}: {name} has the shape {found[name]}, the configuration says {shape}")
