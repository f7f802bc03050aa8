"""Words for a user whose memory was too small, with figures."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.config import LlamaConfig
from pipeline.training.job import Job
from pipeline.training.memory import activation_bytes, is_out_of_memory, out_of_memory, state_bytes
from pipeline.training.settings import MixtureConfig, TrainConfig, ZeroConfig

SEVEN = LlamaConfig()  # 6,738,415,616 parameters
TRAIN = TrainConfig(micro_batch=4)


@pytest.mark.parametrize(
    ("zero", "dtype", "world", "bytes_a_parameter"),
    [
        (ZeroConfig(0), "fp32", 8, 4 + 4 + 8),
        (ZeroConfig(1), "fp32", 8, 4 + 4 + 12 / 8),
        (ZeroConfig(1), "bf16", 8, 2 + 4 + 12 / 8),
        (ZeroConfig(2), "bf16", 8, 2 + 16 / 8),
        (ZeroConfig(3), "bf16", 8, 18 / 8),
        (ZeroConfig(3), "bf16", 1, 18),
        (ZeroConfig(3, offload=True), "bf16", 8, 0),
    ],
)
def test_states(zero: ZeroConfig, dtype: str, world: int, bytes_a_parameter: float) -> None:
    train = dataclasses.replace(TRAIN, dtype=dtype)
    assert state_bytes(SEVEN, train, zero, world) == pytest.approx(6_738_415_616 * bytes_a_parameter)


def test_activations_are_those_of_a_micro_batch() -> None:
    assert activation_bytes(SEVEN, TRAIN) == 4 * 2048 * SEVEN.activation_bytes_per_token("manual", 2)


def test_what_to_change() -> None:
    def said(zero: ZeroConfig, world: int, **train: object) -> str:
        mixture = MixtureConfig({"crawl": 1.0})
        return out_of_memory(Job(SEVEN, dataclasses.replace(TRAIN, **train), zero, mixture, {}, {}, "", ""), world)

    assert said(ZeroConfig(1), 8) == (
        "out of memory: with zero=1 and 8 as world size a rank holds about 50.5 GB of weights, gradients and optimizer states,"
        " and keeps 24.7 GB of activations for train.micro_batch=4; train.micro_batch=1 keeps 6.2 GB,"
        " train.activations=recompute keeps 2.4 GB, zero=2 holds 27.0 GB, zero=3 holds 15.2 GB"
    )
    assert said(ZeroConfig(3), 8, micro_batch=1, activations="recompute").endswith("; use more ranks or a smaller model")
    assert "zero=2" not in said(ZeroConfig(1), 1)


def test_an_allocation_that_fails_is_told_in_one_line(
    make_job: Callable[..., Path], one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's own error, of more than there are addresses for, from where a batch is made."""
    from pipeline.training import trainer

    monkeypatch.setattr(trainer, "batch_of", lambda *_: torch.empty(1 << 60, dtype=torch.uint8))
    path = make_job(tmp_path)
    with pytest.raises(
        ValueError, match=r"^out of memory: with zero=1 and 1 as world size a rank holds about .* activations"
    ) as raised:
        trainer.train(Job.read(path), tmp_path, threading.Event())
    assert "\n" not in str(raised.value)
    assert not is_out_of_memory(RuntimeError("something else"))
