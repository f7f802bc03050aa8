"""LLaMA, top to bottom: token ids in, logits out; with labels, the summed loss and the number of labels.

Architecture: arXiv 2302.13971 §2.2 (pre-norm RMSNorm, SwiGLU, rotary embeddings, no biases), grouped-query attention:
arXiv 2307.09288 §2.2. Letters of shapes: b batch, t tokens, d dim, h heads, k head_dim, v vocabulary, f hidden.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import attend, document_lengths, joined, rotary_tables, rotate
from model.block_backward import BlockWeights, block
from model.config import ACTIVATIONS, LlamaConfig
from model.loss import cross_entropy


class Cache(Protocol):
    """Keys and values of the tokens that one attention layer has seen."""

    def append(self, k_bhtk: Tensor, v_bhtk: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values; return those of all tokens so far."""
        ...


class Rotary(nn.Module):
    """The rotary tables, fp32 whatever type the model is cast to."""

    cos_tk: Tensor
    sin_tk: Tensor

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.shape = (config.head_dim, config.max_sequence, config.rope_theta)
        for name, table in zip(("cos_tk", "sin_tk"), rotary_tables(*self.shape), strict=True):
            self.register_buffer(name, table.to(torch.get_default_device()), persistent=False)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # Called by .to(), .bfloat16(), .to_empty(): a cast would round the tables, so they are computed again.
        super()._apply(fn, recurse)
        device = self.cos_tk.device
        self.cos_tk, self.sin_tk = (table.to(device) for table in rotary_tables(*self.shape))
        return self

    def forward(self, positions: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The tables of positions: [t, k] of a slice, [b, t, k] of int64 positions_bt."""
        return self.cos_tk[positions], self.sin_tk[positions]


class RMSNorm(nn.Module):
    """x / rms(x) in fp32 (fp64 where x is), cast back, times the weight (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_btd: Tensor) -> Tensor:
        x32_btd = x_btd.to(torch.promote_types(x_btd.dtype, torch.float32))
        scale_bt1 = torch.rsqrt(x32_btd.square().mean(-1, keepdim=True) + self.eps)
        return (x32_btd * scale_bt1).to(x_btd.dtype) * self.weight


class Attention(nn.Module):
    """Causal attention in which groups of heads / kv_heads query heads share one key and value head."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.wq = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(
        self,
        x_btd: Tensor,
        cos_tk: Tensor,
        sin_tk: Tensor,
        lengths: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        q_bthk, k_bthk, v_bthk = (w(x_btd).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q_bthk, k_bthk = rotate(q_bthk, cos_tk, sin_tk), rotate(k_bthk, cos_tk, sin_tk)
        if cache is not None:
            k_bhtk, v_bhtk = cache.append(k_bthk.transpose(1, 2), v_bthk.transpose(1, 2))
            k_bthk, v_bthk = k_bhtk.transpose(1, 2), v_bhtk.transpose(1, 2)
            assert q_bthk.shape[1] in (1, k_bthk.shape[1]), "a cache takes the prompt at once, then token by token"
        return self.wo(joined(attend(q_bthk, k_bthk, v_bthk, lengths))).view_as(x_btd)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x) (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x_btd)) * self.w3(x_btd))


class Block(nn.Module):
    """Attention, then feed-forward, each on the normed stream and added to it; `activations` as for `Llama`."""

    def __init__(self, config: LlamaConfig, activations: str):
        super().__init__()
        self.activations = activations
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        x_btd: Tensor,
        cos_tk: Tensor,
        sin_tk: Tensor,
        lengths: Sequence[int] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        if self.activations == "autograd" or not torch.is_grad_enabled():
            return self._forward(x_btd, cos_tk, sin_tk, lengths, cache)
        assert cache is None, "generation needs no gradients"
        if self.activations == "recompute":
            return checkpoint(
                self._forward, x_btd, cos_tk, sin_tk, lengths, None, use_reentrant=False, preserve_rng_state=False
            )
        attention, feed_forward = self.attention, self.feed_forward
        weights = BlockWeights(
            self.attention_norm.weight,
            attention.wq.weight,
            attention.wk.weight,
            attention.wv.weight,
            attention.wo.weight,
            self.feed_forward_norm.weight,
            feed_forward.w1.weight,
            feed_forward.w3.weight,
            feed_forward.w2.weight,
        )
        return block(x_btd, weights, cos_tk, sin_tk, lengths, attention.head_dim, self.attention_norm.eps)

    def _forward(
        self, x_btd: Tensor, cos_tk: Tensor, sin_tk: Tensor, lengths: Sequence[int] | None, cache: Cache | None
    ) -> Tensor:
        x_btd = x_btd + self.attention(self.attention_norm(x_btd), cos_tk, sin_tk, lengths, cache)
        return x_btd + self.feed_forward(self.feed_forward_norm(x_btd))


class Output(nn.Module):
    """The output projection: logits, or with labels the loss in chunks.

    Both happen inside this module's forward, where sharded training (ZeRO-3) has its weight gathered.
    """

    def __init__(self, weight_vd: Tensor):
        super().__init__()
        self.weight = weight_vd

    def forward(self, x_btd: Tensor, labels_bt: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if labels_bt is None:
            logits_btv = F.linear(x_btd, self.weight)
            return logits_btv.to(torch.promote_types(logits_btv.dtype, torch.float32))
        return cross_entropy(x_btd, self.weight, labels_bt)


class Llama(nn.Module):
    """The whole model. Parameters are made uninitialised: call `init_weights`, or load a state dict.

    `activations` says what training keeps for the backward: `autograd` all that autograd asks for, `recompute` the input of
    each block (which then runs its forward twice), `manual` what `model.block_backward` says. Raises ValueError for another.
    """

    def __init__(self, config: LlamaConfig, activations: str = "autograd"):
        super().__init__()
        if activations not in ACTIVATIONS:
            raise ValueError(f"activations={activations}: choose {', '.join(ACTIVATIONS)}")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim, _weight=torch.empty(config.vocab_size, config.dim))
        self.rotary = Rotary(config)
        self.layers = nn.ModuleList(Block(config, activations) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Output(self.embedding.weight if config.tied else nn.Parameter(torch.empty(config.vocab_size, config.dim)))
        if config.tied:  # one parameter, one name, as in named_parameters()
            self.register_state_dict_post_hook(_forget_output)
            self.register_load_state_dict_post_hook(_tie_output)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        if self.config.tied:  # leaving the meta device makes new parameters, one for each module
            self.output.weight = self.embedding.weight
        return self

    def hidden(
        self,
        tokens_bt: Tensor,
        caches: Sequence[Cache] | None = None,
        start: int = 0,
        documents_bt: Tensor | None = None,
    ) -> Tensor:
        """Normed output x_btd of the last block for int64 tokens_bt, which stand at positions start, start + 1, …

        `caches` (one per layer) hold what is before `start`. `documents_bt` as for `forward`, which has no cache. Raises
        ValueError beyond max_sequence.
        """
        if start + tokens_bt.shape[1] > self.config.max_sequence:
            raise ValueError(
                f"a sequence of {start + tokens_bt.shape[1]} tokens is longer than max_sequence={self.config.max_sequence}"
            )
        lengths = None
        positions: slice | Tensor = slice(start, start + tokens_bt.shape[1])
        if documents_bt is not None:
            assert documents_bt.shape == tokens_bt.shape and caches is None and start == 0
            lengths = document_lengths(documents_bt)
            positions = torch.cat([torch.arange(length) for length in lengths]).view(tokens_bt.shape).to(tokens_bt.device)
        cos_tk, sin_tk = self.rotary(positions)
        x_btd = self.embedding(tokens_bt)
        for i, layer in enumerate(self.layers):
            x_btd = layer(x_btd, cos_tk, sin_tk, lengths, None if caches is None else caches[i])
        return self.norm(x_btd)

    def forward(
        self, tokens_bt: Tensor, labels_bt: Tensor | None = None, documents_bt: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """tokens_bt int64 → logits_btv fp32; with labels_bt → (summed loss fp32, count of labels that are not -100 int64).

        labels_bt[i, j] is the token that follows tokens_bt[i, j]: nothing is shifted here. documents_bt (integers) numbers
        the documents that share a row: where the number changes another one starts, at position 0, and attention stays inside
        each. The numbers are needed on the host: on a GPU that waits for the device once.
        """
        return self.output(self.hidden(tokens_bt, documents_bt=documents_bt), labels_bt)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter with its `initial_weight`: the same for any rank, device, thread count or order."""
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, self.config.layers, seed))


def _forget_output(model: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    state.pop(f"{prefix}output.weight")


def _tie_output(model: nn.Module, unfit: Any) -> None:
    unfit.missing_keys[:] = [name for name in unfit.missing_keys if not name.endswith("output.weight")]
    assert isinstance(model, Llama)
    model.output.weight = model.embedding.weight  # load_state_dict(assign=True) makes new parameters


def initial_weight(name: str, shape: Sequence[int], layers: int, seed: int) -> Tensor:
    """Start value (fp32, CPU) of the parameter `name`; depends on nothing but the arguments.

    Norms are 1; matrices normal with deviation 0.02, those that write to the residual stream (wo, w2) divided by
    sqrt(2 · layers), as in GPT-2 (§2.3) and Megatron-LM. The LLaMA papers do not state theirs.
    """
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    deviation = 0.02
    if name.endswith(("wo.weight", "w2.weight")):
        deviation /= math.sqrt(2 * layers)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, deviation, generator=generator)
