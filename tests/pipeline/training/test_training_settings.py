"""Ranges of the settings of a run."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.settings import HOW, TrainConfig, ZeroConfig


def refused(**values: Any) -> str:
    with pytest.raises(ValueError) as error:
        TrainConfig(**values)
    message = str(error.value)
    assert "\n" not in message
    name, value = next(iter(values.items()))
    assert message.startswith(f"train.{name}={value}: ")
    return message


COUNTS = ["sequence", "batch_tokens", "micro_batch", "steps", "processes"]
COUNTS += ["checkpoint_every", "keep_checkpoints", "validate_every", "log_every", "guard_limit"]


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_counts(name: str, value: int) -> None:
    assert "at least 1" in refused(**{name: value})


@pytest.mark.parametrize("name", ["lr", "adam_eps", "clip"])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("inf"), float("nan")])
def test_positive_numbers(name: str, value: float) -> None:
    assert "positive" in refused(**{name: value})


@pytest.mark.parametrize("name", ["beta1", "beta2", "min_lr_ratio"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_shares(name: str, value: float) -> None:
    refused(**{name: value})


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_beta_of_one_never_learns(name: str) -> None:
    refused(**{name: 1.0})


@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_weight_decay(value: float) -> None:
    refused(weight_decay=value)


def test_guard() -> None:
    refused(guard="off")
    for sigma in (0.0, -1.0, float("nan")):
        refused(guard_sigma=sigma)
    assert TrainConfig(guard_sigma=float("inf")).guard == "skip", "only what is not finite"


def test_checkpoints_that_stay_are_checkpoints() -> None:
    refused(keep_every=-1000)
    refused(keep_every=1500, checkpoint_every=1000)
    assert TrainConfig(keep_every=5000, checkpoint_every=1000).keep_every == 5000


def test_warm_up_within_the_run() -> None:
    refused(warmup_steps=-1)
    refused(warmup_steps=11, steps=10)
    assert TrainConfig(warmup_steps=10, steps=10).warmup_steps == 10


@pytest.mark.parametrize("value", ["fp16", "float32", ""])
def test_dtype(value: str) -> None:
    refused(dtype=value)


@pytest.mark.parametrize("value", [-1, 4])
def test_zero_stage(value: int) -> None:
    with pytest.raises(ValueError, match=f"^zero.stage={value}: choose 0, 1, 2 or 3$"):
        ZeroConfig(value)


def test_defaults_are_llamas() -> None:
    config = TrainConfig()
    assert config.batch_tokens == 2048 * 2048 == config.batch_at(1) * config.sequence
    assert (config.beta1, config.beta2, config.weight_decay, config.clip) == (0.9, 0.95, 0.1, 1.0)
    assert config.tokens(config.steps) == pytest.approx(1e12, rel=1e-5)


@given(*(st.integers(1, 64) for _ in range(4)), st.integers(1, 10_000))
def test_accumulation(sequence: int, micro_batch: int, world: int, count: int, batch_tokens: int) -> None:
    held = sequence * micro_batch * world
    config = TrainConfig(sequence=sequence, micro_batch=micro_batch, batch_tokens=held * count)
    assert config.accumulation(world) == count
    assert config.batch_at(1) == config.batch_at(config.steps) == micro_batch * world * count
    other = TrainConfig(sequence=sequence, micro_batch=micro_batch, batch_tokens=batch_tokens)
    if batch_tokens % held:
        with pytest.raises(ValueError, match=rf"^train.batch_tokens={batch_tokens} is no multiple of .* = {held}$"):
            other.accumulation(world)
    else:
        assert other.accumulation(world) * held == batch_tokens


@pytest.mark.parametrize("value", ["checkpoint", "Manual", ""])
def test_activations(value: str) -> None:
    assert "choose autograd, recompute, manual" in refused(activations=value)


@pytest.mark.parametrize("value", ["linear", "WSD", ""])
def test_schedule(value: str) -> None:
    assert "choose cosine or wsd" in refused(schedule=value)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_decay_ratio(value: float) -> None:
    refused(decay_ratio=value)


def test_decay_behind_the_warm_up() -> None:
    assert "50 steps of decay and 51 of warm-up" in refused(decay_ratio=0.5, schedule="wsd", steps=100, warmup_steps=51)
    assert TrainConfig(decay_ratio=0.5, schedule="wsd", steps=100, warmup_steps=50).decay_steps == 50
    assert TrainConfig(decay_ratio=1e-9, schedule="wsd", steps=100, warmup_steps=50).decay_steps == 1
    assert TrainConfig(decay_ratio=1.0, steps=100, warmup_steps=50).schedule == "cosine"


# Batch warm-up

SIZES = {"sequence": 8, "micro_batch": 1, "warmup_steps": 0}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 50)), max_size=4), st.integers(0, 20), st.integers(51, 60))
def test_samples_are_those_of_the_batches_one_by_one(warmup: list[tuple[int, int]], more: int, last: int) -> None:
    sizes = sorted({batch for _, batch in warmup})
    entries = [[steps, batch * 8] for (steps, _), batch in zip(warmup, sizes, strict=False)]
    config = TrainConfig(**SIZES, steps=sum(n for n, _ in entries) + more + 1, batch_tokens=last * 8, batch_warmup=entries)
    batches = [tokens // 8 for steps, tokens in entries for _ in range(steps)] + [last] * (more + 1)
    assert [config.batch_at(step) for step in range(1, config.steps + 1)] == batches
    assert [config.samples(steps) for steps in range(config.steps + 1)] == [sum(batches[:n]) for n in range(config.steps + 1)]
    assert config.tokens(config.steps) == 8 * sum(batches)


@pytest.mark.parametrize("value", [[[0, 16]], [[1, 0]], [[1]], [[1, 16, 3]], [[]], [[-1, 16]]])
def test_batch_warm_up_is_of_pairs(value: list[list[int]]) -> None:
    assert "pairs" in refused(batch_warmup=value, **SIZES, steps=10, batch_tokens=64)


@pytest.mark.parametrize("value", [[[1, 64]], [[1, 128]], [[1, 32], [1, 32]], [[1, 32], [1, 16]]])
def test_batches_grow(value: list[list[int]]) -> None:
    assert "must grow" in refused(batch_warmup=value, **SIZES, steps=10, batch_tokens=64)


def test_batch_warm_up_within_the_run() -> None:
    assert "has 11 steps" in refused(batch_warmup=[[6, 16], [5, 32]], **SIZES, steps=10, batch_tokens=64)


def test_a_batch_of_the_warm_up_that_cannot_be_divided() -> None:
    config = TrainConfig(**SIZES, steps=10, batch_tokens=64, batch_warmup=[[2, 16], [3, 24]])
    assert config.accumulation(1) == 8
    with pytest.raises(ValueError, match=r"^train.batch_warmup=24 is no multiple of .* x 2 processes = 16$"):
        config.accumulation(2)


# ZeRO


def test_offload_needs_stage_3() -> None:
    assert ZeroConfig(3, offload=True).offload
    with pytest.raises(ValueError, match=r"^zero.offload=true: needs zero.stage=3, not 2"):
        ZeroConfig(2, offload=True)


# What a run may go on with


def test_how_names_settings() -> None:
    names = {f"train.{f.name}" for f in dataclasses.fields(TrainConfig)} | {"zero"}
    assert names.issuperset(HOW)
    assert "train.steps" not in HOW and "train.batch_tokens" not in HOW and "train.dtype" not in HOW
