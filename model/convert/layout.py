"""What the formats share: the tensors that a model has, the order of rows under the rotary embedding, and their check."""

from collections.abc import Mapping

from torch import Tensor

from model.config import LlamaConfig


def tensor_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """{our name: shape} of every tensor of the model, in the order of the layers."""
    dim, kv, hidden = config.dim, config.kv_heads * config.head_dim, config.hidden
    block = {
        "attention.wq": (dim, dim),
        "attention.wk": (kv, dim),
        "attention.wv": (kv, dim),
        "attention.wo": (dim, dim),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w3": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "attention_norm": (dim,),
        "feed_forward_norm": (dim,),
    }
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, dim)}
    for layer in range(config.layers):
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["norm.weight"] = (dim,)
    if not config.tied:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def is_rotated(name: str) -> bool:
    """Whether a tensor's rows go through the rotary embedding."""
    return name.endswith(("wq.weight", "wk.weight"))


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of wq or wk, [heads · head_dim, dim], from adjacent pairs (2i, 2i + 1) to halves (i, i + head_dim / 2)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def pairs_from_halves(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `halves_from_pairs`."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def check_tensors(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor], where: str) -> None:
    """Raises ValueError, naming it, for a tensor that is missing, surplus or of another shape."""
    if missing := [name for name in wanted if name not in found]:
        raise ValueError(f"{where}: {missing[0]} is missing ({len(missing)} tensors in all)")
    if surplus := [name for name in found if name not in wanted]:
        raise ValueError(f"{where}: {surplus[0]} belongs to no such model ({len(surplus)} tensors in all)")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise ValueError(f"{where}: {name} has the shape {tuple(found[name].shape)}, the configuration says {shape}")
