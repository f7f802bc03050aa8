"""Generation: a prompt's token ids in, the ids that the model goes on with out, one forward pass a token (KV cache)."""

import math

import torch
from torch import Tensor

from model.llama import Llama


class LayerCache:
    """Keys and values of the tokens that one layer has seen, [b, kv_heads, t, head_dim]."""

    def __init__(self) -> None:
        self._k_bhtk: Tensor | None = None
        self._v_bhtk: Tensor | None = None

    def append(self, k_bhtk: Tensor, v_bhtk: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the new tokens' keys and values; returns those of all tokens so far."""
        if self._k_bhtk is None or self._v_bhtk is None:
            self._k_bhtk, self._v_bhtk = k_bhtk, v_bhtk
        else:
            self._k_bhtk = torch.cat((self._k_bhtk, k_bhtk), 2)
            self._v_bhtk = torch.cat((self._v_bhtk, v_bhtk), 2)
        return self._k_bhtk, self._v_bhtk


@torch.no_grad()
def generate(
    model: Llama,
    prompt: list[int],
    *,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    eos: int | None = None,
) -> list[int]:
    """At most `max_new` ids after `prompt`, fewer where `eos` comes (it is the last one then) or max_sequence is reached.

    Temperature 0 takes the most probable id; otherwise ids are drawn with `seed` from the `top_k` (0: all) most probable
    ones, of these the fewest that hold `top_p` of their probability. Raises ValueError for a prompt that is empty or
    longer than max_sequence, and for options out of range.
    """
    if not prompt:
        raise ValueError("the prompt is empty")
    if len(prompt) > model.config.max_sequence:
        raise ValueError(f"a prompt of {len(prompt)} tokens is longer than max_sequence={model.config.max_sequence}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be 0 or a positive number")
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: must be 0 (all) or positive")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    caches = [LayerCache() for _ in model.layers]
    new: list[int] = []
    tokens, start = torch.tensor([prompt], device=device), 0
    while len(new) < max_new and start + tokens.shape[1] <= model.config.max_sequence:
        x_btd = model.hidden(tokens, caches, start)
        logits_v = model.output(x_btd[:, -1:])[0, -1]
        start += tokens.shape[1]
        chosen = int(_choose(logits_v, temperature, top_k, top_p, generator))
        new.append(chosen)
        if chosen == eos:
            break
        tokens = torch.tensor([[chosen]], device=device)
    return new


def _choose(logits_v: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_v.argmax()
    probability_v, ids_v = (logits_v / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k:
        probability_v = probability_v[:top_k] / probability_v[:top_k].sum()
    before_v = probability_v.cumsum(-1) - probability_v
    probability_v = probability_v * (before_v < top_p)
    return ids_v[torch.multinomial(probability_v, 1, generator=generator)[0]]
