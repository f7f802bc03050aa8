from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.config import LlamaConfig
from model.generate import _choose, stream
from model.generate import generate as generate_batch
from model.llama import Llama

PROMPT = [3, 17, 4, 9]


def generate(model: Llama, prompt: list[int], *, max_new: int, **options: Any) -> list[int]:
    [new] = generate_batch(model, [prompt], max_new=max_new, **options)
    return new


@pytest.fixture(scope="module", params=[4, 1], ids=["multi-head", "grouped"])
def model(request: pytest.FixtureRequest) -> Llama:
    """Random weights, large enough for the greedy text to vary."""
    config = LlamaConfig(32, 2, 4, request.param, hidden=48, vocab_size=40, max_sequence=32)
    model = Llama(config)
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        spread = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * spread if name.endswith("norm.weight") else 0.4 * spread
    return model.eval()


@torch.no_grad()
def without_cache(model: Llama, prompt: list[int], max_new: int) -> list[int]:
    ids = list(prompt)
    while len(ids) - len(prompt) < max_new and len(ids) <= model.config.max_sequence:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_cache_changes_nothing(model: Llama, length: int) -> None:
    new = generate(model, PROMPT[:length], max_new=20)
    assert new == without_cache(model, PROMPT[:length], 20)
    assert len(new) == 20 and len(set(new)) > 9


def test_greedy_is_top_1(model: Llama) -> None:
    greedy = generate(model, PROMPT, max_new=15)
    assert generate(model, PROMPT, max_new=15, temperature=1.3, top_k=1, seed=4) == greedy
    assert generate(model, PROMPT, max_new=15, temperature=1.3, top_p=1e-9, seed=4) == greedy
    assert generate(model, PROMPT, max_new=15, temperature=1e-4, seed=4) == greedy


def test_stops_at_eos(model: Llama) -> None:
    greedy = generate(model, PROMPT, max_new=15)
    eos = greedy[6]
    assert generate(model, PROMPT, max_new=15, eos=eos) == greedy[: greedy.index(eos) + 1]
    unused = next(i for i in range(40) if i not in greedy)
    assert generate(model, PROMPT, max_new=15, eos=unused) == greedy
    assert generate(model, [eos, *PROMPT], max_new=1, eos=eos) != []  # in the prompt it stops nothing


PROMPTS = [PROMPT, [5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [7, 7], PROMPT]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_each_prompt_what_it_gets_alone(model: Llama, temperature: float) -> None:
    new = generate_batch(model, PROMPTS, max_new=12, temperature=temperature, seed=3)
    alone = [generate(model, prompt, max_new=12, temperature=temperature, seed=3 + n) for n, prompt in enumerate(PROMPTS)]
    assert new == alone
    assert (new[0] == new[4]) == (temperature == 0)


def test_rows_of_a_batch_end_by_themselves(model: Llama) -> None:
    alone = [generate(model, prompt, max_new=100) for prompt in PROMPTS]
    assert generate_batch(model, PROMPTS, max_new=100) == alone  # until max_sequence is reached, sooner or later
    eos = alone[0][3]
    assert generate_batch(model, PROMPTS, max_new=9, eos=eos) == [
        generate(model, prompt, max_new=9, eos=eos) for prompt in PROMPTS
    ]
    assert generate_batch(model, [], max_new=9) == []


def test_ids_come_as_they_are_chosen(model: Llama) -> None:
    steps = list(stream(model, [PROMPT[:2], PROMPT], max_new=3))
    assert [[token is None for token in step] for step in steps] == [
        [False, True],
        [False, True],
        [False, False],
        [True, False],
        [True, False],
    ]


def test_seed_decides(model: Llama) -> None:
    def text(seed: int) -> list[int]:
        return generate(model, PROMPT, max_new=15, temperature=1.0, seed=seed)

    first = text(1)
    torch.manual_seed(123)
    torch.rand(7)
    assert text(1) == first
    assert len({tuple(text(seed)) for seed in range(4)}) == 4


def test_leaves_the_global_random_state_alone(model: Llama) -> None:
    before = torch.get_rng_state()
    generate(model, PROMPT, max_new=5, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_max_sequence_ends_it(model: Llama) -> None:
    limit = model.config.max_sequence
    new = generate(model, PROMPT, max_new=1000)
    assert len(PROMPT) + len(new) == limit + 1  # the last id follows a full context
    assert new == without_cache(model, PROMPT, 1000)
    full = (PROMPT * limit)[:limit]
    assert generate(model, full, max_new=9) == without_cache(model, full, 9)
    assert len(generate(model, full, max_new=9)) == 1


def test_nothing_asked_nothing_given(model: Llama) -> None:
    assert generate(model, PROMPT, max_new=0) == []


@pytest.mark.parametrize(
    ("prompt", "options", "told"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 33, {}, "a prompt of 33 tokens is longer than max_sequence=32"),
        (PROMPT, {"max_new": -1}, "max_new=-1: must be 0 or more"),
        (PROMPT, {"temperature": -0.5}, "temperature=-0.5: must be 0 or a positive number"),
        (PROMPT, {"temperature": float("nan")}, "temperature=nan: must be 0 or a positive number"),
        (PROMPT, {"top_k": -1}, "top_k=-1: must be 0 (all) or positive"),
        (PROMPT, {"top_p": 0.0}, "top_p=0.0: must be above 0 and at most 1"),
        (PROMPT, {"top_p": 1.5}, "top_p=1.5: must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_generated(model: Llama, prompt: list[int], options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        generate(model, prompt, **{"max_new": 3, **options})
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.0, 3, 1.0), (1.0, 0, 0.6), (1.5, 4, 0.7), (1.0, 100, 0.3), (1.0, 2, 0.55)],
)
def test_draws_from_the_distribution_of_transformers(
    temperature: float, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_v = torch.randn(12, generator=torch.Generator().manual_seed(2)) * 1.5
    steps: list[Any] = [TemperatureLogitsWarper(temperature)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)]
    expected_v = LogitsProcessorList(steps)(torch.empty(1, 0, dtype=torch.int64), logits_v[None])[0].softmax(-1)

    generator = torch.Generator().manual_seed(0)
    draws = 4000
    drawn = torch.tensor([int(_choose(logits_v, temperature, top_k, top_p, generator)) for _ in range(draws)])
    shares_v = torch.bincount(drawn, minlength=12) / draws
    assert not shares_v[expected_v == 0].any()
    torch.testing.assert_close(shares_v, expected_v, rtol=0, atol=5 * 0.5 / draws**0.5)
