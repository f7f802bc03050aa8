"""Ranges of the settings of a run."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.settings import TrainConfig, ZeroConfig


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
    assert config.batch_tokens == 2048 * 2048 == config.batch * config.sequence
    assert (config.beta1, config.beta2, config.weight_decay, config.clip) == (0.9, 0.95, 0.1, 1.0)
    assert config.steps * config.batch_tokens == pytest.approx(1e12, rel=1e-5)


@given(*(st.integers(1, 64) for _ in range(4)), st.integers(1, 10_000))
def test_accumulation(sequence: int, micro_batch: int, world: int, count: int, batch_tokens: int) -> None:
    held = sequence * micro_batch * world
    config = TrainConfig(sequence=sequence, micro_batch=micro_batch, batch_tokens=held * count)
    assert config.accumulation(world) == count
    assert config.batch == micro_batch * world * count
    other = TrainConfig(sequence=sequence, micro_batch=micro_batch, batch_tokens=batch_tokens)
    if batch_tokens % held:
        with pytest.raises(ValueError, match=rf"^train.batch_tokens={batch_tokens} is no multiple of .* = {held}$"):
            other.accumulation(world)
    else:
        assert other.accumulation(world) * held == batch_tokens


@pytest.mark.parametrize("value", ["checkpoint", "Manual", ""])
def test_activations(value: str) -> None:
    assert "choose autograd, recompute, manual" in refused(activations=value)
