"""The schedule of sources: shares in every window, ends, edges."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.mixture import CYCLE, FOREVER, MAX_SOURCES, Mixture

WINDOW = 1000
LLAMA = {"crawl": 67, "c4": 15, "github": 4.5, "wikipedia": 4.5, "books": 4.5, "arxiv": 2.5, "stackexchange": 2}
shares_of_sources = st.lists(st.floats(1e-3, 1), min_size=1, max_size=MAX_SOURCES).map(
    lambda numbers: {f"s{n:02d}": number for n, number in enumerate(numbers)}
)


def counts_before(source: np.ndarray, sources: int) -> np.ndarray:
    """[samples + 1, sources]: how many samples of each source come before each place."""
    return np.concatenate([np.zeros((1, sources), int), np.cumsum(source[:, None] == np.arange(sources), axis=0)])


def worst(mixture: Mixture, first: int, last: int) -> float:
    """How far a source's count is from its share in any window of 1,000 samples from `first` to `last`."""
    before = counts_before(mixture.locate(np.arange(first, last))[0], len(mixture.sources))
    share = np.array([mixture.shares[source] for source in mixture.sources])
    return float(np.abs(before[WINDOW:] - before[:-WINDOW] - WINDOW * share).max())


@settings(max_examples=30, deadline=None)
@given(shares_of_sources)
def test_every_window_has_its_shares(shares: dict[str, float]) -> None:
    mixture = Mixture(shares, {})
    assert sum(mixture.shares.values()) == pytest.approx(1)
    assert worst(mixture, 0, CYCLE + WINDOW) < 2


def test_every_window_of_llama_at_any_place() -> None:
    mixture = Mixture(LLAMA, {})
    assert mixture.shares["crawl"] == pytest.approx(0.67)
    assert worst(mixture, 0, 2 * CYCLE) < 2
    for first in (10**9 - 5, 10**12, FOREVER - 3 * CYCLE):
        assert worst(mixture, first, first + CYCLE + WINDOW) < 2


@pytest.mark.parametrize("shares", [[1], [1, 1], [1] * MAX_SOURCES, [CYCLE - 31] + [1] * 31, [1, CYCLE - 1], [0.3, 0.6, 0.1]])
def test_extreme_shares(shares: list[float]) -> None:
    assert worst(Mixture({f"s{n:02d}": share for n, share in enumerate(shares)}, {}), 0, CYCLE + WINDOW) < 2


@settings(max_examples=30, deadline=None)
@given(shares_of_sources, st.lists(st.one_of(st.none(), st.integers(1, 3000)), max_size=MAX_SOURCES), st.data())
def test_ends_and_what_comes_between(shares: dict[str, float], numbers: list[int | None], data: st.DataObject) -> None:
    limits = {f"s{n:02d}": limit for n, limit in enumerate(numbers) if limit is not None and n < len(shares)}
    mixture = Mixture(shares, limits)
    if len(limits) == len(shares):
        assert mixture.samples == sum(limits.values())
    else:
        assert mixture.samples == FOREVER
    span = min(mixture.samples, max([0, *mixture.ends.values()]) + 2000)
    source, nth = mixture.locate(np.arange(span))
    before = counts_before(source, len(mixture.sources))
    np.testing.assert_array_equal(nth, before[np.arange(span), source])  # every sample of a source, in order
    for number, name in enumerate(mixture.sources):
        assert mixture.ends.get(name, None) == (None if name not in limits else np.flatnonzero(source == number)[-1] + 1)
        if name in limits:
            assert before[-1, number] == limits[name]
    # Between two ends, each prefix has the shares of those that are left, within 1; so windows are within 2.
    edges = [0, *sorted(set(mixture.ends.values())), span]
    for first, last in itertools.pairwise(edges):
        there = np.array([mixture.ends.get(name, FOREVER) > first for name in mixture.sources])
        share = np.where(there, [mixture.shares[name] for name in mixture.sources], 0)
        expected = np.arange(last - first + 1)[:, None] * (share / (share.sum() or 1))
        drift = (last - first) / CYCLE  # of shares that are multiples of 1 / CYCLE
        assert np.abs(before[first : last + 1] - before[first] - expected).max(initial=0) < 1 + drift
    for samples in data.draw(st.lists(st.integers(0, span), max_size=5)):
        assert list(mixture.counts(samples).values()) == before[samples].tolist()
    if span:
        alone = data.draw(st.integers(0, span - 1))
        assert [part.tolist() for part in mixture.locate(np.array([alone]))] == [[source[alone]], [nth[alone]]]


def test_a_limit_of_trillions_takes_no_longer() -> None:
    mixture = Mixture({"a": 0.75, "b": 0.25}, {"b": 10**12 + 1})
    end = mixture.ends["b"]
    assert abs(end - 4 * (10**12 + 1)) < 8
    source, nth = mixture.locate(np.arange(end - 1000, end + 1000))
    assert (source[1000:] == 0).all()
    assert nth[source == 1].max() == 10**12
    assert np.diff(nth[source == 0]).tolist() == [1] * ((source == 0).sum() - 1)


def test_the_schedule_stays_what_it_was() -> None:
    """A run that goes on with a later version must see the same samples: these numbers may never change."""
    drawn = "".join(str(n) for n in Mixture(LLAMA, {}).locate(np.arange(60))[0])
    assert drawn == "332331332334332336332330333233133233433633532333233133233433"


def test_errors_are_one_clear_line() -> None:
    cases = [
        ({}, {}, "no source has a share above 0"),
        ({"a": 0.0}, {}, "no source has a share above 0"),
        ({"a": 1, "b": 1e-9}, {}, "b has less than 1/65536 of the whole"),
        ({f"s{n}": 1 for n in range(33)}, {}, "33 sources; at most 32"),
        ({"a": 1, "b": 1}, {"b": 0}, "source b ends before its first sample"),
    ]
    for shares, limits, message in cases:
        with pytest.raises(ValueError, match=message):
            Mixture(shares, limits)
    with pytest.raises(ValueError, match=r"ends after 5 samples \(a at sample 3, b at sample 5\)"):
        Mixture({"a": 1, "b": 1}, {"a": 2, "b": 3}).locate(np.array([5]))
