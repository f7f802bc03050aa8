"""The order of training: permutation, samples, mixtures, worlds, boundaries, prefetching, errors."""

import contextlib
import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.loader import NO_LABEL, Loader, Validation, _source_seed, _starts, document_boundaries, permute, plan
from pipeline.tokens.shards import HEADER, MAGIC, ShardFiles, Vocabulary, dtype_for, write_shard

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


def alone(shards: list[Path], sequence: int, seed: int, **more: str) -> Loader:
    """A loader of one source that repeats for ever."""
    return Loader({"crawl": shards}, {"crawl": 1}, {}, sequence, seed, **more)


def permuted(position: np.ndarray, n: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    return permute(position, np.full(len(position), n), np.uint64(seed % 2**64), epoch)


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permuted(np.arange(n), n, seed, np.full(n, epoch))


# The permutation


@pytest.mark.parametrize("n", [*range(1, 70), 100, 255, 256, 257, 1000, 4095, 4097, 65537, 200_000])
def test_permutation_is_a_bijection_for_small_n(n: int) -> None:
    np.testing.assert_array_equal(np.sort(whole(n, seed=n)), np.arange(n))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**12), st.integers(), st.integers(0, 10**6), st.data())
def test_permutation_is_injective_and_in_range_for_any_n(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    position = np.unique(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=300).map(np.array)))
    position = np.union1d(position, np.arange(max(0, n - 1000), n))
    image = permuted(position, n, seed, np.full(len(position), epoch))
    assert image.dtype == np.int64
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(position)


def test_permutation_of_one_element_does_not_depend_on_the_rest_of_the_batch() -> None:
    n, epoch = 1001, np.arange(1001) % 7
    together = permuted(np.arange(n), n, 5, epoch)
    alone = [permuted(np.array([p]), n, 5, np.array([e]))[0] for p, e in enumerate(epoch)]
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
            image = permuted(np.full(len(epochs), position), n, 1, epochs)
            expected = len(epochs) / n
            chi2 = ((np.bincount(image, minlength=n) - expected) ** 2 / expected).sum()
            assert chi2 < n - 1 + 5 * np.sqrt(2 * n)


def test_neighbours_are_scattered() -> None:
    """The distance between neighbours is that of two random places, a third of n."""
    n = 100_000
    distance = np.abs(np.diff(whole(n))).mean()
    assert abs(distance / n - 1 / 3) < 0.01


# Samples of one source


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 17), st.integers(0, 99))
def test_every_token_of_an_epoch_is_once_an_input_and_once_a_label(
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

    loader = alone(counting(write, sizes), sequence, seed)
    epochs = sequence  # after which samples and epochs end together
    rows = loader.batch(0, total)
    assert rows.shape == (total, sequence + 1)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(np.diff(rows) % total, 1)  # consecutive tokens, across shards and epochs too
    assert (np.bincount(rows[:, :-1].ravel()) == epochs).all()
    assert (np.bincount(rows[:, 1:].ravel()) == epochs).all()
    for epoch in range(1, epochs + 1):  # and after each of them, all but what the next sample has
        samples = -(-epoch * total // sequence)
        seen = np.bincount(rows[:samples, :-1].ravel(), minlength=total)
        spilled = samples * sequence - epoch * total
        assert spilled < sequence
        np.testing.assert_array_equal(seen, epoch + (np.arange(total) < spilled))


def test_an_epoch_is_shuffled_and_the_next_one_otherwise(write: Write) -> None:
    starts = alone(counting(write, [10_000]), 10, seed=1).batch(0, 2000)[:, 0]
    first, second = starts[:1000], starts[1000:]
    np.testing.assert_array_equal(np.sort(first), np.arange(1000) * 10)
    np.testing.assert_array_equal(np.sort(second), np.arange(1000) * 10)
    assert (first == second).mean() < 0.02
    assert abs(np.abs(np.diff(first)).mean() / 10_000 - 1 / 3) < 0.03


def test_order_depends_on_the_seed_only(write: Write) -> None:
    shards = counting(write, [2000])
    first, again, other = (alone(shards, 10, seed).batch(0, 200) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(np.sort(first[:, 0]), np.sort(other[:, 0]))


def test_order_stays_what_it_was(write: Write) -> None:
    """A run that goes on with a later version must see the same samples: these numbers may never change."""
    assert permuted(np.arange(8), 1000, 0, np.zeros(8, int)).tolist() == [862, 427, 778, 89, 980, 714, 215, 373]
    far = permuted(np.arange(4), 10**12, 1234, np.arange(4))
    assert far.tolist() == [760057525695, 16325942916, 519474603519, 778145725019]
    assert stream_hash(mixed(write).batch(0, 600)) == "15840ec4ecacfd29"


def test_validation_is_every_sample_once_in_order(write: Write) -> None:
    validation = Validation(counting(write, [30, 5, 66]), 10)
    assert validation.samples == 10
    batches = [validation.batch(first, 4) for first in range(0, validation.samples, 4)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches)[:, 0], np.arange(10) * 10)
    assert validation.batch(12, 4).shape == (0, 11)


def test_sample_across_many_shards(write: Write) -> None:
    loader = alone(counting(write, [1, 0, 1, 2, 0, 3, 1, 0]), 7, seed=0)
    assert sorted(loader.batch(0, 8).tolist()) == [[(start + n) % 8 for n in range(8)] for start in range(8)]


def test_a_trillion_tokens_start_at_once(tmp_path: Path) -> None:
    """Files of nothing but holes, with the ends that an index of such a size has; and a sample from anywhere among them."""
    count, documents = 1 << 34, 1 << 20
    for number in range(64):
        bin, idx, meta = ShardFiles.of(tmp_path / f"part-{number:05d}")
        with bin.open("wb") as file:
            file.truncate(2 * count)
        with idx.open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
            file.seek(HEADER.size + 12 * documents - 8)
            file.write((2 * count).to_bytes(8, "little"))
            file.truncate(HEADER.size + 20 * documents + 8)
        Vocabulary("a" * 64, 32000, EOS).write(meta)
    loader = alone([tmp_path / f"part-{number:05d}" for number in range(64)], 2048, seed=1)
    nth = np.array([0, 12345678, 64 * count // 2048 - 1, 64 * count // 2048, 10**9])
    for sample, start in zip(nth.tolist(), _starts(nth, 64 * count, 2048, _source_seed(1, "crawl")).tolist(), strict=True):
        assert (loader.batch(sample, 1)[0, :3] != [7, 8, 9]).any()
        with ShardFiles.of(tmp_path / f"part-{start // count:05d}").bin.open("r+b") as file:
            file.seek(2 * (start % count))
            file.write(np.array([7, 8, 9], "<u2").tobytes())
        assert loader.batch(sample, 1)[0].tolist() == [7, 8, 9] + [0] * 2046


# Mixtures


def stream_hash(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:16]


SIZES = {"crawl": [500, 0, 37, 963], "books": [301], "wiki": [77, 20]}
SHARES = {"crawl": 0.6, "books": 0.3, "wiki": 0.1}
EPOCHS = {"books": 2.5, "wiki": 3.0}


def mixed(write: Write, shares: Mapping[str, float] = SHARES, seed: int = 3, pieces: int = 32000) -> Loader:
    """Three sources whose tokens tell source and place."""
    sources, first = {}, 1000
    for source, sizes in SIZES.items():
        edges = np.cumsum([first, *sizes]).tolist()
        sources[source] = [
            write(f"{source}-{n}", [list(range(a, b))] if b > a else [], pieces)
            for n, (a, b) in enumerate(itertools.pairwise(edges))
        ]
        first += 5000
    return Loader(sources, shares, EPOCHS, 11, seed)


@pytest.mark.parametrize("pieces", [32000, 100_000])
def test_stream_is_the_same_for_every_world_and_after_a_resume(write: Write, pieces: int) -> None:
    whole = stream_hash(mixed(write, pieces=pieces).batch(0, 480))
    for world in (1, 2, 3, 4, 8):
        ranks = [mixed(write, pieces=pieces) for _ in range(world)]
        share = 24 // world
        parts = [loader.batch(first + rank * share, share) for first in range(0, 480, 24) for rank, loader in enumerate(ranks)]
        assert stream_hash(np.concatenate(parts)) == whole
    first, parts = 0, []
    for world in (1, 8, 3, 2, 4):  # a restart with another one after every four steps
        ranks = [mixed(write, pieces=pieces) for _ in range(world)]
        for _ in range(4):
            parts += [loader.batch(first + rank * (24 // world), 24 // world) for rank, loader in enumerate(ranks)]
            first += 24
    assert stream_hash(np.concatenate(parts)) == whole


def test_order_is_that_of_the_formats(write: Write) -> None:
    """Against the description in docs/data-formats.md, in plain Python with fractions and without limits to integers."""
    loader, sequence, seed = mixed(write), 11, 3
    tokens = {source: np.concatenate([shard.tokens for shard in loader.streams[source].shards]) for source in SIZES}
    left = {source: -(-round(EPOCHS[source] * len(tokens[source])) // sequence) for source in EPOCHS}
    there, counts, of_run, i = sorted(SHARES), dict.fromkeys(SIZES, 0), dict.fromkeys(SIZES, 0), 0
    for row in loader.batch(0, 600).tolist():
        total = sum(SHARES[source] for source in there)
        exact = {source: SHARES[source] / total * 65536 for source in there}
        share = {source: Fraction(int(exact[source]), 65536) for source in there}
        lost = sorted(there, key=lambda source: int(exact[source]) - exact[source])
        for source in lost[: int((1 - sum(share.values())) * 65536)]:
            share[source] += Fraction(1, 65536)
        i += 1
        least = Fraction(1, 2 * len(there) - 2) if len(there) > 1 else Fraction(1)
        behind = {source: share[source] * i - counts[source] for source in there}
        source = min((s for s in there if behind[s] >= least), key=lambda s: (1 - least - behind[s]) / share[s])
        j, size = of_run[source], len(tokens[source])
        epoch = j * sequence // size
        first, next_first = -(-epoch * size // sequence), -(-(epoch + 1) * size // sequence)
        key = int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:8], "little")
        start = (first + feistel(j - first, next_first - first, key, epoch)) * sequence - epoch * size
        assert row == [int(tokens[source][(start + k) % size]) for k in range(sequence + 1)]
        counts[source] += 1
        of_run[source] += 1
        if of_run[source] == left.get(source):
            there.remove(source)
            counts, i = dict.fromkeys(SIZES, 0), 0


def feistel(position: int, n: int, seed: int, epoch: int) -> int:
    side = math.isqrt(n - 1) + 1
    keys = [mix(mix(mix(seed) + epoch) + number) for number in range(6)]
    x = position
    while True:
        left, right = divmod(x, side)
        for key in keys:
            left, right = right, (left + mix(right + key) % side) % side
        x = left * side + right
        if x < n:
            return x


def mix(x: int) -> int:
    """SplitMix64's output function."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_a_source_in_a_mixture_has_the_samples_that_it_has_alone(write: Write) -> None:
    loader = mixed(write)
    assert [*loader.streams] == ["books", "crawl", "wiki"]
    rows = loader.batch(0, 600)
    for number, source in enumerate(SIZES):
        of_source = rows[rows[:, 0] // 5000 == (1000 + 5000 * number) // 5000]
        limits = {source: EPOCHS[source]} if source in EPOCHS else {}
        only = Loader({source: loader_shards(loader, source)}, {source: 1}, limits, 11, seed=3)
        np.testing.assert_array_equal(of_source, only.batch(0, len(of_source)))


def loader_shards(loader: Loader, source: str) -> list[Path]:
    return [shard.prefix for shard in loader.streams[source].shards]


def test_sources_end_after_their_epochs_and_the_others_go_on(write: Write) -> None:
    loader = mixed(write)
    rows = loader.batch(0, 2000)
    source = (rows[:, 0] - 1000) // 5000
    books, wiki = np.flatnonzero(source == 1), np.flatnonzero(source == 2)
    assert len(books) == -(-int(2.5 * 301 + 0.5) // 11)
    assert len(wiki) == -(-3 * 97 // 11)
    assert loader.mixture.ends == {"books": books[-1] + 1, "wiki": wiki[-1] + 1}
    np.testing.assert_array_equal(source[max(books[-1], wiki[-1]) + 1 :], 0)
    counted = np.bincount(rows[wiki, :-1].ravel() - 11000, minlength=97)
    assert counted.min() == 3
    assert counted.sum() == 3 * 97 + (-3 * 97) % 11


def test_the_order_of_the_configuration_does_not_matter(write: Write) -> None:
    backwards = dict(reversed(SHARES.items()))
    np.testing.assert_array_equal(mixed(write).batch(0, 300), mixed(write, backwards).batch(0, 300))


def test_a_share_of_nothing_leaves_a_source_out(write: Write) -> None:
    loader = mixed(write, SHARES | {"wiki": 0})
    assert [*loader.streams] == ["books", "crawl"]
    assert (loader.batch(0, 300) < 11000).all()


# Boundaries of documents


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(3, 9), max_size=9), min_size=1, max_size=30), st.integers(1, 12))
def test_boundaries_are_those_of_the_index(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], sequence: int
) -> None:
    prefix = tmp_path_factory.mktemp("shard") / "part"
    files = ShardFiles.of(prefix)
    lengths = [len(text) + 1 for text in texts]
    total = sum(lengths)
    if total <= sequence:
        return
    write_shard((np.array([*text, EOS]) for text in texts), files.bin, files.idx, dtype_for(100))
    Vocabulary("a", 100, EOS).write(files.meta)
    rows = alone([prefix], sequence, seed=0).batch(0, 3 * total)
    documents, labels = document_boundaries(rows, EOS)
    assert (documents.dtype, labels.dtype) == (np.int32, np.int64)
    of_token = np.repeat(np.arange(len(texts)), lengths)  # as the index has them
    stream = np.concatenate([[*text, EOS] for text in texts])
    for row, numbers, answers in zip(rows, documents, labels, strict=True):
        matches = [s for s in range(total) if all(stream[(s + k) % total] == row[k] for k in range(len(row)))]
        assert any(fits(of_token, start, numbers, answers, row) for start in matches)


def fits(of_token: np.ndarray, start: int, numbers: np.ndarray, answers: np.ndarray, row: np.ndarray) -> bool:
    total, count = len(of_token), of_token[-1] + 1
    places = start + np.arange(len(row))
    absolute = of_token[places % total] + places // total * count
    same = absolute[1:] == absolute[:-1]
    return (
        numbers.tolist() == (absolute[:-1] - absolute[0]).tolist()
        and answers.tolist() == np.where(same, row[1:], NO_LABEL).tolist()
    )


# Prefetching


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("skipped", [(), [(0, 1)], [(3, 40), (41, 90), (700, 5000)]])
def test_counts_are_those_of_the_samples_that_are_left(write: Write, skipped: list[tuple[int, int]]) -> None:
    loader = mixed(write)
    for samples in (1, 3, 4, 200, 1500):
        source = (loader.batch(0, samples, skipped)[:, 0] - 1000) // 5000
        expected = dict(zip(("crawl", "books", "wiki"), np.bincount(source, minlength=3).tolist(), strict=True))
        assert loader.counts(samples, skipped) == expected


def test_batches_are_those_of_a_rank_and_their_thread_ends(write: Write) -> None:
    loader = mixed(write)
    with contextlib.closing(loader.batches((first, 3) for first in itertools.count(7, 12))) as batches:
        for first in range(7, 127, 12):
            np.testing.assert_array_equal(next(batches), loader.batch(first, 3))
        assert len(loader_threads()) == 1
    assert not loader_threads()
    slices = [(0, 2), (2, 5), (7, 1)]
    for length in range(4):
        rows = list(loader.batches(slices[:length]))
        assert [part.tolist() for part in rows] == [loader.batch(*part).tolist() for part in slices[:length]]
    assert not loader_threads()


def test_an_error_reaches_the_reader_and_the_thread_ends(write: Write) -> None:
    loader = Loader({"crawl": counting(write, [100])}, {"crawl": 1}, {"crawl": 1}, 10, 0)
    batches = loader.batches((first, 4) for first in itertools.count(0, 4))
    assert [len(next(batches)) for _ in range(2)] == [4, 4]
    with pytest.raises(ValueError, match=r"ends after 10 samples .crawl at sample 10.*mixture.epochs"):
        next(batches)
    assert not loader_threads()


# Errors


def test_errors_are_one_clear_line(write: Write, tmp_path: Path) -> None:
    good = write("good", [[5, 6, EOS], [7, EOS]])
    other = write("other", [[5, EOS]], tokenizer="b" * 64)
    empty = write("empty", [])
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: alone([], 4, 0), "source crawl has no tokens"),
        (lambda: alone([empty, empty], 4, 0), "source crawl has no tokens"),
        (lambda: alone([good], 5, 0), "source crawl has 5 tokens, fewer than one sample of sequence=5"),
        (lambda: alone([good], 0, 0), "sequence=0"),
        (lambda: alone([good, other], 2, 0), "other: made with tokenizer bbbbbbbbbbbb, not with aaaaaaaaaaaa"),
        (lambda: alone([good], 2, 0, tokenizer="c" * 64), "made with tokenizer aaaaaaaaaaaa, not with cccccccccccc"),
        (lambda: Validation([good], 2, tokenizer="c" * 64), "made with tokenizer aaaaaaaaaaaa, not with cccccccccccc"),
        (lambda: alone([tmp_path / "nowhere"], 2, 0), "nowhere.bin: no such file"),
        (
            lambda: Loader({"a": [good], "b": [other]}, {"a": 1, "b": 1}, {}, 1, 0),
            "other: made with tokenizer bbbbbbbbbbbb, not with aaaaaaaaaaaa",
        ),
        (lambda: Loader({"a": [good]}, {"a": 1, "b": 1}, {}, 1, 0), "source b has no tokens"),
        (
            lambda: plan({"a": 9}, {"a": 1, "c4": 0.5, "d": 1}, {}, 1),
            r"mixture.shares: there are no tokens of c4, d \(but of a\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert len(alone([good], 4, 0, tokenizer="a" * 64).batch(0, 3)) == 3
