"""Validation: the mean over the tokens of each source's split, whatever the batches and ranks."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard
from pipeline.training.evaluate import ValidationSplits, metrics_of

SEQUENCE = 5


def shard(folder: Path, tokens: int) -> str:
    """A shard of random tokens; its name."""
    files = ShardFiles.of(folder / f"validation-{tokens}")
    ids = np.random.default_rng(tokens).integers(0, 50, tokens)
    write_shard([ids], files.bin, files.idx, dtype_for(50))
    Vocabulary("a", 50, 2).write(files.meta)
    return f"validation-{tokens}"


def loss(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for a model: depends on every token and label; labels below 5 don't count."""
    counted = labels >= 5
    return ((tokens * 3 + labels * 7) % 11).float()[counted].sum(), counted.sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(SEQUENCE + 1, 150), min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 6))
def test_any_split_gives_the_plain_mean_of_each_source(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[int], micro_batch: int, world: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    shards = {f"source{number}": [shard(folder, count)] for number, count in enumerate(tokens)}
    validation = ValidationSplits(shards, folder, SEQUENCE, micro_batch)
    rounds: list[int] = []
    tables = []
    for rank in range(world):
        calls = 0

        def counted(tokens: Tensor, labels: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
            nonlocal calls
            calls += 1
            assert 0 < len(tokens) <= micro_batch and documents is None
            return loss(tokens, labels)

        tables.append(validation.sums(counted, "cpu", None, rank, world))
        rounds.append(calls)
    assert len(set(rounds)) == 1, "sharded weights need all ranks to run as many batches"
    assert sum((table != 0).any(1).sum() for table in tables) == (sum(tables) != 0).any(1).sum(), "each batch is one rank's"
    result = validation.result(sum(tables, torch.zeros_like(tables[0])))
    whole = torch.zeros(2, dtype=torch.float64)
    for source, split in validation.splits.items():
        rows = torch.from_numpy(split.batch(0, split.samples))
        summed, count = (value.double() for value in loss(rows[:, :-1], rows[:, 1:]))
        if count:
            assert result["sources"][source]["loss"] == float(summed / count)
            assert result["sources"][source]["tokens"] == int(count)
        whole += torch.stack([summed, count])
    assert (result["loss"], result["tokens"]) == (float(whole[0] / whole[1]), int(whole[1]))


def test_the_result_of_any_number_of_ranks_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    """With losses that do not add up exactly."""
    validation = ValidationSplits({"a": [shard(tmp_path, 977)], "b": [shard(tmp_path, 310)]}, tmp_path, SEQUENCE, 3)

    def inexact(tokens: Tensor, labels: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
        return (tokens.float() + 1).log().sum() * 1e5, torch.tensor(labels.numel())

    one = validation.result(validation.sums(inexact, "cpu"))
    for world in (2, 3, 5, 64, 500):
        tables = [validation.sums(inexact, "cpu", None, rank, world) for rank in range(world)]
        assert validation.result(sum(tables, torch.zeros_like(tables[0]))) == one


def test_a_models_loss(tmp_path: Path) -> None:
    """Against logits and PyTorch's own cross-entropy, tokens weighted alike."""
    from model.config import LlamaConfig
    from model.llama import Llama

    model = Llama(LlamaConfig(dim=16, layers=1, heads=2, kv_heads=2, hidden=32, vocab_size=50, max_sequence=SEQUENCE))
    model.init_weights(3)
    for micro_batch in (1, 4, 100):
        validation = ValidationSplits({"crawl": [shard(tmp_path, 98)]}, tmp_path, SEQUENCE, micro_batch)
        rows = torch.from_numpy(validation.splits["crawl"].batch(0, 100))
        logits = model(rows[:, :-1])
        assert isinstance(logits, Tensor)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
        value = validation.result(validation.sums(model, "cpu"))
        assert value["loss"] == pytest.approx(expected, rel=1e-6)
        assert value["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        assert value["tokens"] == len(rows) * SEQUENCE
        assert value["sources"] == {"crawl": {name: value[name] for name in ("loss", "perplexity", "tokens")}}
        assert metrics_of(value) == {"validation_loss": value["loss"], "validation_loss/crawl": value["loss"]}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_split_shorter_than_a_sample_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {"crawl": [shard(tmp_path, 40)], "small": [shard(tmp_path, SEQUENCE)]}
    assert list(ValidationSplits(shards, tmp_path, SEQUENCE, 2).splits) == ["crawl"]
    assert capsys.readouterr().err == "warning: no validation on small: its split has 5 tokens, less than a sample\n"
    with pytest.raises(ValueError, match=r"^validation: no source has a sample of 5 tokens .* \(small\): raise"):
        ValidationSplits({"small": [shard(tmp_path, SEQUENCE)]}, tmp_path, SEQUENCE, 2)


def test_a_checkpoint_has_the_loss_that_training_told(
    make_job: Callable[..., Path], run_job: Callable[..., list[dict[str, Any]]], tokens: Path, tmp_path: Path
) -> None:
    from pipeline.commands.validate import Settings, measure

    rows = run_job(make_job(tmp_path / "train", steps=4, validate_every=2, checkpoint_every=2))
    (tmp_path / "records").mkdir()
    sources = {"crawl": {"validation": {"shards": [str(tokens / "validation")]}}}
    (tmp_path / "records" / "tokenize.json").write_text(json.dumps({"result": {"sources": sources}}))
    for step in (2, 4):
        model = tmp_path / "train" / "checkpoints" / f"step-{step:08d}"
        result, _ = measure(Settings(model=str(model), out=str(tmp_path), micro_batch=2))
        assert result["loss"] == pytest.approx(rows[step - 1]["validation_loss"], rel=1e-6)
        assert rows[step - 1]["validation_loss/crawl"] == rows[step - 1]["validation_loss"]
