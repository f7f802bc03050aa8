"""The learning rate as a function of the step."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.schedule import learning_rate
from pipeline.training.settings import TrainConfig


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    steps = draw(st.integers(2, 2000))
    return TrainConfig(
        steps=steps,
        warmup_steps=draw(st.integers(0, steps // 2)),
        lr=draw(st.floats(1e-8, 10)),
        min_lr_ratio=draw(st.floats(0, 1)),
        **draw(st.sampled_from([{}, {"schedule": "wsd", "decay_ratio": 0.25}])),
    )


@given(configs())
def test_rises_to_the_peak_then_falls_to_the_floor(config: TrainConfig) -> None:
    rates = [learning_rate(step, config) for step in range(1, config.steps + 1)]
    warm, falling = rates[: config.warmup_steps], rates[max(0, config.warmup_steps - 1) :]
    assert warm == sorted(warm)
    assert all(a >= b * (1 - 1e-12) for a, b in itertools.pairwise(falling))
    assert all(0 < rate <= config.lr * (1 + 1e-12) for rate in warm)
    floor = config.lr * config.min_lr_ratio
    assert all(floor * (1 - 1e-12) <= rate <= config.lr * (1 + 1e-12) for rate in falling)
    if config.warmup_steps:
        assert rates[config.warmup_steps - 1] == pytest.approx(config.lr, rel=1e-12)
    if config.warmup_steps < config.steps:
        assert rates[-1] == pytest.approx(floor, rel=1e-9, abs=1e-20)


def test_llamas_numbers() -> None:
    config = TrainConfig(steps=238_418, warmup_steps=2000, lr=3e-4)
    assert learning_rate(1, config) == pytest.approx(1.5e-7)
    assert learning_rate(1000, config) == pytest.approx(1.5e-4)
    assert learning_rate(2000, config) == 3e-4
    half = (2000 + 238_418) // 2
    assert learning_rate(half, config) == pytest.approx(1.65e-4)
    assert learning_rate(238_418, config) == pytest.approx(3e-5)


def test_against_pytorchs_cosine() -> None:
    import torch

    config = TrainConfig(steps=50, warmup_steps=10, lr=0.7, min_lr_ratio=0.2)
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.7)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 40, 0.14)
    for step in range(10, 51):
        assert learning_rate(step, config) == pytest.approx(cosine.get_last_lr()[0], rel=1e-9)
        sgd.step()
        cosine.step()


@pytest.mark.parametrize(("warmup", "ratio", "floor"), [(10, 0.2, 0.2), (0, 0.1, 0.1), (25, 0.5, 0.0), (0, 1.0, 0.0)])
def test_against_transformers_wsd(warmup: int, ratio: float, floor: float) -> None:
    import torch
    from transformers import get_wsd_schedule

    config = TrainConfig(steps=50, warmup_steps=warmup, lr=0.7, min_lr_ratio=floor, schedule="wsd", decay_ratio=ratio)
    sgd = torch.optim.SGD([torch.zeros(1)], lr=0.7)
    wsd = get_wsd_schedule(sgd, warmup, round(50 * ratio), num_training_steps=50, decay_type="1-sqrt", min_lr_ratio=floor)
    for step in range(1, 51):
        sgd.step()
        wsd.step()
        if step >= warmup:  # theirs starts at the floor
            assert learning_rate(step, config) == pytest.approx(wsd.get_last_lr()[0], rel=1e-9, abs=1e-12), step


@pytest.mark.parametrize("step", [0, -1, 11])
def test_no_such_step(step: int) -> None:
    with pytest.raises(AssertionError):
        learning_rate(step, TrainConfig(steps=10, warmup_steps=2))


def test_no_warm_up_and_nothing_but_warm_up() -> None:
    first = learning_rate(1, TrainConfig(steps=4, warmup_steps=0, lr=1.0, min_lr_ratio=0.0))
    assert first == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(4, TrainConfig(steps=4, warmup_steps=4, lr=1.0)) == 1.0
