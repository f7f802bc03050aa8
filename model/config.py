"""The shape of a LLaMA: in go its sizes, out come checked sizes, the parameter count, FLOPs and bytes.

Needs no torch, so that configurations can be read and checked without it.
"""

from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = ("autograd", "recompute", "manual")  # what training keeps for the backward: see `model.llama.Llama`


def _described(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class LlamaConfig:
    """Architecture of a LLaMA (arXiv 2302.13971 §2.2; grouped-query attention: arXiv 2307.09288 §2.2).

    The defaults are LLaMA-7B. Raises ValueError in one line for sizes that do not fit together.
    """

    dim: int = _described(4096, "width of the residual stream")
    layers: int = _described(32, "number of transformer blocks")
    heads: int = _described(32, "number of query heads; must divide dim")
    kv_heads: int = _described(32, "number of key and value heads; must divide heads (fewer than heads: grouped-query)")
    hidden: int = _described(11008, "width inside the feed-forward network")
    vocab_size: int = _described(32000, "number of pieces of the tokenizer")
    max_sequence: int = _described(2048, "longest sequence in tokens (length of the rotary tables)")
    norm_eps: float = _described(1e-5, "epsilon of the RMS norms")
    rope_theta: float = _described(10000.0, "base of the rotary frequencies")
    tied: bool = _described(False, "share one weight between the embedding and the output")

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "hidden", "vocab_size", "max_sequence"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("norm_eps", "rope_theta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be a positive number")
        if self.dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide dim={self.dim}")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"dim={self.dim} / heads={self.heads} gives heads of {self.head_dim}: rotary embedding needs an even number"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    def parameter_count(self) -> int:
        """Number of parameters; a tied weight counts once."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim
        feed_forward = 3 * self.dim * self.hidden
        block = attention + feed_forward + 2 * self.dim
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.dim
        return embeddings + self.layers * block + self.dim

    def flops_per_token(self, sequence: int) -> int:
        """Floating-point operations per trained token (forward and backward) in sequences of `sequence` tokens.

        6 · (parameters - embedding) for the matrix products (a tied weight counts, as the output multiplies by it),
        plus 6 · layers · dim · sequence for the attention scores: half of the usual 12 · layers · dim · sequence,
        because masked scores are not counted. Recomputed activations are not counted either (model FLOPs: PaLM,
        arXiv 2204.02311, appendix B).
        """
        multiplied = self.parameter_count() - (0 if self.tied else self.vocab_size * self.dim)
        return 6 * multiplied + 6 * self.layers * self.dim * sequence

    def parameter_bytes(self, itemsize: int) -> int:
        """Bytes of the parameters, in a type of `itemsize` bytes."""
        return self.parameter_count() * itemsize

    def activation_bytes_per_token(self, activations: str, itemsize: int) -> int:
        """Bytes a token that are kept from the forward to the backward in a model whose type has `itemsize` bytes.

        `activations` is one of ACTIVATIONS. Counted is what there is when the loss is known: the blocks, the last norm and the
        gradient that the loss leaves; neither parameters nor what is of the same size whatever the tokens (rotary tables, the
        gradient of the output weight). The backward's own memory comes on top, with `recompute` a block of `autograd`.
        """
        keys = self.kv_heads * self.head_dim
        # A norm keeps x and x / rms, which is a copy in fp32 where the model's type is smaller, and the 1 / rms of each token.
        norm = self.dim * (2 * itemsize if itemsize >= 4 else 4 + itemsize) + max(4, itemsize)
        attention = (2 * self.dim + 2 * keys) * itemsize + self.heads * max(4, itemsize)
        block = {
            "autograd": 2 * (norm + self.dim * itemsize) + attention + 4 * self.hidden * itemsize,
            "recompute": self.dim * itemsize,
            "manual": 2 * (self.dim * itemsize + max(4, itemsize)) + attention + 2 * self.hidden * itemsize,
        }[activations]
        return self.layers * block + norm + self.dim * itemsize
