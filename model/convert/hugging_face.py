"""Hugging Face's folder of a LlamaForCausalLM: weights in our names out to it, and in from it.

Names differ; shapes and the rotary layout (halves) do not, so tensors go over as they are.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import LlamaConfig
from model.convert.layout import check_tensors, tensor_shapes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # of a file of weights, as transformers has it
_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
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


def hugging_face_names(config: LlamaConfig) -> Iterator[tuple[str, str]]:
    """(our name, Hugging Face's name) of every tensor of a LlamaForCausalLM."""
    for ours in tensor_shapes(config):
        if block := re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", ours):
            yield ours, f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
        else:
            yield ours, _OUTSIDE[ours]


def hugging_face_config(config: LlamaConfig, bos: int | None, eos: int) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM.

    `bos`: id that stands before documents in training, None where nothing does; `eos`: id that ends them.
    """
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


def to_hugging_face(
    weights: Mapping[str, Tensor],
    config: LlamaConfig,
    folder: Path,
    *,
    bos: int | None,
    eos: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights into `folder`: `model.safetensors`, or more files of at most `shard_bytes` with an
    index. `weights`: every tensor in our names; `bos` and `eos` as of `hugging_face_config`.

    Raises ValueError, naming it, for a tensor that is missing, surplus or of another shape.
    """
    check_tensors(tensor_shapes(config), weights, "the weights")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    _write_json(folder / CONFIG, {**hugging_face_config(config, bos, eos), "dtype": dtype})
    tensors = {theirs: weights[ours].contiguous() for ours, theirs in hugging_face_names(config)}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_bytes)
    for name, keys in split.filename_to_tensors.items():
        save_file({key: tensors[key] for key in keys}, folder / name, metadata={"format": "pt"})
        shutil.copymode(folder / CONFIG, folder / name)  # safetensors makes files that none but their owner can read
    if split.is_sharded:
        _write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def from_hugging_face(folder: Path) -> tuple[dict[str, Tensor], LlamaConfig]:
    """Weights in our names, and the configuration, of a folder with one or more safetensors files.

    What older releases stored beside the weights, rotary frequencies and the second name of a tied output, is passed over.
    Raises ValueError, in one line, for files that are missing or broken, another architecture, and tensors that are
    missing, surplus or misshapen.
    """
    config = _llama_config(folder / CONFIG)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys() if not _is_derived(key, config)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: {error}") from error
    shapes = tensor_shapes(config)
    names = dict(hugging_face_names(config))
    check_tensors({theirs: shapes[ours] for ours, theirs in names.items()}, tensors, str(folder))
    return {ours: tensors[theirs] for ours, theirs in names.items()}, config


def _is_derived(name: str, config: LlamaConfig) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (config.tied and name == _OUTSIDE["output.weight"])


def _llama_config(path: Path) -> LlamaConfig:
    value = read_json(path)
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
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict):
        raise ValueError(f"{folder / INDEX}: weight_map is missing")
    for name in shard_of.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / INDEX}: weight_map has {name!r}, which is not the name of a file in this folder")
    return [folder / name for name in sorted(set(shard_of.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """A file with a JSON object. Raises ValueError, in one line, where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
