"""Validation: the mean over all tokens of the split, whatever the batches and ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.tokens.loader import Validation
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard
from pipeline.training.evaluate import perplexity, validation_sums

SEQUENCE = 5


def split(folder: Path, tokens: int) -> Validation:
    files = ShardFiles.of(folder / f"validation-{tokens}")
    ids = np.random.default_rng(tokens).integers(0, 50, tokens)
    write_shard([ids], files.bin, files.idx, dtype_for(50))
    Vocabulary("a", 50, 2).write(files.meta)
    return Validation([folder / f"validation-{tokens}"], SEQUENCE)


def loss(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for a model: depends on every token and label; labels below 5 don't count."""
    counted = labels >= 5
    return ((tokens * 3 + labels * 7) % 11).float()[counted].sum(), counted.sum()


@settings(max_examples=60, deadline=None)
@given(st.integers(SEQUENCE + 1, 150), st.integers(1, 9), st.integers(1, 6))
def test_any_split_gives_the_plain_mean(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, micro_batch: int, world: int
) -> None:
    validation = split(tmp_path_factory.getbasetemp(), tokens)
    rows = torch.from_numpy(validation.batch(0, validation.samples))
    expected = torch.stack([value.double() for value in loss(rows[:, :-1], rows[:, 1:])])
    rounds: list[int] = []
    sums = torch.zeros(2, dtype=torch.float64)
    for rank in range(world):
        calls = 0

        def counted(tokens: Tensor, labels: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            assert 0 < len(tokens) <= micro_batch and documents is None
            return loss(tokens, labels)

        sums += validation_sums(counted, validation, micro_batch, "cpu", None, rank, world)
        rounds.append(calls)
    assert torch.equal(sums, expected)
    assert len(set(rounds)) == 1, "sharded weights need all ranks to run as many batches"


def test_a_models_loss(tmp_path: Path) -> None:
    """Against logits and PyTorch's own cross-entropy, tokens weighted alike."""
    from model.config import LlamaConfig
    from model.llama import Llama

    validation = split(tmp_path, 98)
    model = Llama(LlamaConfig(dim=16, layers=1, heads=2, kv_heads=2, hidden=32, vocab_size=50, max_sequence=SEQUENCE))
    model.init_weights(3)
    rows = torch.from_numpy(validation.batch(0, validation.samples))
    logits = model(rows[:, :-1])
    assert isinstance(logits, Tensor)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    for micro_batch in (1, 4, 100):
        value = perplexity(validation_sums(model, validation, micro_batch, "cpu"))
        assert value["loss"] == pytest.approx(expected, rel=1e-6)
        assert value["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        assert value["tokens"] == len(rows) * SEQUENCE
    assert all(parameter.grad is None for parameter in model.parameters())
