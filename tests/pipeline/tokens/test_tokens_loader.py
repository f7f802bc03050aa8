"""The order of training: permutation, samples, worlds, errors."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.loader import Loader, TokenStream, Validation, permute
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard

EOS = 2
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a shard of given documents and returns its prefix."""

    def shard(name: str, documents: list[list[int]], pieces: int = 32000, tokenizer: str = "a" * 64) -> Path:
        files = ShardFiles.of(tmp_path / name)
        write_shard((np.array(ids, np.int64) for ids in documents), files.bin, files.idx, dtype_for(pieces))
        Vocabulary(tokenizer, pieces, EOS).write(files.meta)
        return tmp_path / name

    return shard


def counting(write: Write, sizes: list[int], pieces: int = 32000) -> list[Path]:
    """Shards whose stream is 0, 1, 2, …: every token tells its place."""
    edges = np.cumsum([0, *sizes])
    return [
        write(f"part-{number:05d}", [list(range(start, end))] if end > start else [], pieces)
        for number, (start, end) in enumerate(itertools.pairwise(edges))
    ]


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n), n, seed, np.full(n, epoch))


# The permutation


@pytest.mark.parametrize("n", [*range(1, 70), 100, 255, 256, 257, 1000, 4095, 4097, 65537, 200_000])
def test_permutation_is_a_bijection_for_small_n(n: int) -> None:
    np.testing.assert_array_equal(np.sort(whole(n, seed=n)), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**12), st.integers(), st.integers(0, 10**6), st.data())
def test_permutation_is_injective_and_in_range_for_any_n(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    position = np.unique(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=300).map(np.array)))
    position = np.union1d(position, np.arange(max(0, n - 1000), n))
    image = permute(position, n, seed, np.full(len(position), epoch))
    assert image.dtype == np.int64
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(position)


def test_permutation_of_one_element_does_not_depend_on_the_rest_of_the_batch() -> None:
    n, epoch = 1001, np.arange(1001) % 7
    together = permute(np.arange(n), n, 5, epoch)
    alone = [permute(np.array([p]), n, 5, np.array([e]))[0] for p, e in enumerate(epoch)]
    np.testing.assert_array_equal(together, alone)


def test_epochs_and_seeds_differ() -> None:
    orders = [whole(1000, seed, epoch) for seed in range(5) for epoch in range(5)]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert (order == other).mean() < 0.02


def test_every_place_is_reached_equally_often() -> None:
    """Chi-squared over 20,000 epochs of small n, where a network is weakest; 5 sigma."""
    for n in (2, 3, 5, 7, 10):
        epochs = np.arange(20_000)
        for position in (0, n - 1):
            image = permute(np.full(len(epochs), position), n, 1, epochs)
            expected = len(epochs) / n
            chi2 = ((np.bincount(image, minlength=n) - expected) ** 2 / expected).sum()
            assert chi2 < n - 1 + 5 * np.sqrt(2 * n)


def test_neighbours_are_scattered() -> None:
    """The distance between neighbours is that of two random places, a third of n."""
    n = 100_000
    distance = np.abs(np.diff(whole(n))).mean()
    assert abs(distance / n - 1 / 3) < 0.01


# Samples


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 17), st.integers(0, 99))
def test_every_label_of_an_epoch_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], sequence: int, seed: int
) -> None:
    total = sum(sizes)
    if total <= sequence:
        return
    folder = tmp_path_factory.mktemp("shards")

    def write(name: str, documents: list[list[int]], pieces: int) -> Path:
        files = ShardFiles.of(folder / name)
        write_shard((np.array(ids) for ids in documents), files.bin, files.idx, dtype_for(pieces))
        Vocabulary("a", pieces, EOS).write(files.meta)
        return folder / name

    loader = Loader(counting(write, sizes), sequence, seed)
    n = loader.samples_per_epoch
    assert n == (total - 1) // sequence
    for epoch in range(3):
        batch = loader.batch(epoch * n, n)
        assert batch.shape == (n, sequence + 1)
        assert batch.dtype == np.int64
        np.testing.assert_array_equal(np.diff(batch), 1)  # consecutive tokens, across shards too
        np.testing.assert_array_equal(np.sort(batch[:, 1:].ravel()), np.arange(1, n * sequence + 1))
        np.testing.assert_array_equal(np.sort(batch[:, 0]), np.arange(n) * sequence)


@pytest.mark.parametrize("pieces", [32000, 100_000])
def test_stream_is_the_same_for_every_world_and_after_a_resume(write: Write, pieces: int) -> None:
    shards = counting(write, [500, 0, 37, 963], pieces)
    loader = Loader(shards, 11, seed=3)
    stream = loader.batch(0, 480)  # more than three epochs
    assert loader.samples_per_epoch == 136
    for world in (1, 2, 3, 4, 8):
        steps = []
        for first in range(0, 480, 24):
            share = 24 // world
            fresh = Loader(shards, 11, seed=3)
            steps += [fresh.batch(first + rank * share, share) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(steps), stream)


def test_order_depends_on_the_seed_only(write: Write) -> None:
    shards = counting(write, [2001])
    first, again, other = (Loader(shards, 10, seed).batch(0, 200) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.sort(first[:, 0]), np.sort(other[:, 0]))


def test_order_stays_what_it_was() -> None:
    """A run that goes on with a later version must see the same samples: these numbers may never change."""
    assert permute(np.arange(8), 1000, 0, np.zeros(8, int)).tolist() == [862, 427, 778, 89, 980, 714, 215, 373]
    far = permute(np.arange(4), 10**12, 1234, np.arange(4))
    assert far.tolist() == [760057525695, 16325942916, 519474603519, 778145725019]


def test_validation_is_every_sample_once_in_order(write: Write) -> None:
    validation = Validation(counting(write, [30, 5, 66]), 10)
    assert validation.samples == 10
    batches = [validation.batch(first, 4) for first in range(0, validation.samples, 4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches)[:, 0], np.arange(10) * 10)
    assert validation.batch(12, 4).shape == (0, 11)


def test_a_trillion_tokens_need_no_more_memory(write: Write) -> None:
    """Only the arithmetic matters: a stream of 2^40 tokens made of one small shard many times over."""
    stream = TokenStream(counting(write, [1000]), 100)
    stream.tokens *= 1000
    stream.ends = np.cumsum([len(tokens) for tokens in stream.tokens])
    row = stream.cut(np.array([9_995]))[0]
    np.testing.assert_array_equal(row, np.arange(999_500, 999_601) % 1000)


def test_sample_across_many_shards(write: Write) -> None:
    loader = Loader(counting(write, [1, 0, 1, 2, 0, 3, 1, 0]), 7, seed=0)
    np.testing.assert_array_equal(loader.batch(0, 2), [list(range(8))] * 2)


# Errors


def test_errors_are_one_clear_line(write: Write, tmp_path: Path) -> None:
    good = write("good", [[5, 6, EOS], [7, EOS]])
    other = write("other", [[5, EOS]], tokenizer="b" * 64)
    empty = write("empty", [])
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: Loader([], 4, 0), "source is empty"),
        (lambda: Loader([empty, empty], 4, 0), "empty: no tokens in 2 shard"),
        (lambda: Loader([good], 5, 0), "5 tokens in 1 shard.s., fewer than one sample of sequence=5"),
        (lambda: Loader([good], 0, 0), "sequence=0"),
        (lambda: Loader([good, other], 2, 0), "other: made with tokenizer bbbbbbbbbbbb, but .*good with aaaaaaaaaaaa"),
        (lambda: Loader([good], 2, 0, tokenizer="c" * 64), "made with tokenizer aaaaaaaaaaaa, not with cccccccccccc"),
        (lambda: Validation([good], 2, tokenizer="c" * 64), "made with tokenizer aaaaaaaaaaaa, not with cccccccccccc"),
        (lambda: Loader([tmp_path / "nowhere"], 2, 0), "nowhere.bin: no such file"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert len(Loader([good], 4, 0, tokenizer="a" * 64).batch(0, 3)) == 3
