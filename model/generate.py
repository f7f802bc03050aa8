"""Generation: prompts' token ids in, the ids that the model goes on with out, one forward pass a token (KV cache).

Prompts of a batch may differ in length: the shortest is taken at once, and then all rows go on together, each from its
prompt as long as that lasts. So no row has padding, and each gets what it would get alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from model.llama import Llama


class LayerCache:
    """Keys and values of the tokens that one layer has seen: room for `length` tokens, filled from the front."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._k_bhtk: Tensor | None = None
        self._v_bhtk: Tensor | None = None
        self._seen = 0

    def append(self, k_bhtk: Tensor, v_bhtk: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the new tokens' keys and values, [b, kv_heads, t, head_dim]; returns those of all tokens so far."""
        if self._k_bhtk is None or self._v_bhtk is None:
            b, h, _, k = k_bhtk.shape
            self._k_bhtk, self._v_bhtk = k_bhtk.new_empty(b, h, self._length, k), v_bhtk.new_empty(b, h, self._length, k)
        end = self._seen + k_bhtk.shape[2]
        self._k_bhtk[:, :, self._seen : end] = k_bhtk
        self._v_bhtk[:, :, self._seen : end] = v_bhtk
        self._seen = end
        return self._k_bhtk[:, :, :end], self._v_bhtk[:, :, :end]


def generate(model: Llama, prompts: Sequence[Sequence[int]], *, max_new: int, **options: Any) -> list[list[int]]:
    """What `stream` gives, gathered: for each prompt the ids that follow it."""
    new: list[list[int]] = [[] for _ in prompts]
    for ids in stream(model, prompts, max_new=max_new, **options):
        for row, chosen in enumerate(ids):
            if chosen is not None:
                new[row].append(chosen)
    return new


@torch.no_grad()
def stream(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    eos: int | None = None,
) -> Iterator[list[int | None]]:
    """Yields the next id of each row as it is chosen; None for a row that is still in its prompt, or has ended.

    A row ends after `max_new` ids, with `eos` (which it yields), or where max_sequence is reached. Temperature 0 takes the
    most probable id; otherwise row r draws, with the seed `seed` + r, from the `top_k` (0: all) most probable ones, of these
    the fewest that hold `top_p` of their probability. Raises ValueError for a prompt that is empty or longer than
    max_sequence, and for options out of range.
    """
    limit = model.config.max_sequence
    for prompt in prompts:
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) > limit:
            raise ValueError(f"a prompt of {len(prompt)} tokens is longer than max_sequence={limit}")
    if max_new < 0:
        raise ValueError(f"max_new={max_new}: must be 0 or more")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be 0 or a positive number")
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: must be 0 (all) or positive")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: must be above 0 and at most 1")
    ends = [min(len(prompt) + max_new, limit + 1) for prompt in prompts]  # tokens of each row when it is done
    if not prompts or max_new == 0:
        return
    device = model.embedding.weight.device
    generators = [torch.Generator(device).manual_seed(seed + row) for row in range(len(prompts))]
    caches = [LayerCache(min(max(ends), limit)) for _ in model.layers]
    start, end = 0, min(map(len, prompts))  # the tokens that go in next are those at start … end - 1
    tokens = torch.tensor([list(prompt[:end]) for prompt in prompts], device=device)
    while True:
        logits_bv = model.output(model.hidden(tokens, caches, start)[:, -1:])[:, -1]
        chosen: list[int | None] = [None] * len(prompts)
        following = [0] * len(prompts)
        for row, prompt in enumerate(prompts):
            if end < len(prompt):
                following[row] = prompt[end]
            elif end < ends[row]:
                chosen[row] = following[row] = int(_choose(logits_bv[row], temperature, top_k, top_p, generators[row]))
                if chosen[row] == eos:
                    ends[row] = 0
        yield chosen
        start, end = end, end + 1
        if end >= max(ends):
            return
        tokens = torch.tensor(following, device=device)[:, None]


def _choose(logits_v: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_v.argmax()
    probability_v, ids_v = (logits_v / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k:
        probability_v = probability_v[:top_k] / probability_v[:top_k].sum()
    before_v = probability_v.cumsum(-1) - probability_v
    probability_v = probability_v * (before_v < top_p)
    return ids_v[torch.multinomial(probability_v, 1, generator=generator)[0]]
