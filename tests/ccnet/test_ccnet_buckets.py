import dataclasses
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.buckets import (
    BUCKETS,
    RATIO,
    RELEASED,
    Cutoffs,
    bin_edges,
    bin_of,
    bucket,
    computed_cutoffs,
    cutoffs,
    released_cutoffs,
)
from ccnet.stats import merge

PERPLEXITIES = st.lists(st.integers(10, 10_000_000).map(lambda tenths: tenths / 10), min_size=1, max_size=300)


def histogram(values):
    return dict(Counter(str(bin_of(value)) for value in values))


def test_every_perplexity_lies_between_the_edges_of_its_bin():
    for tenths in range(10, 200_000):
        low, high = bin_edges(bin_of(tenths / 10))
        assert low <= tenths / 10 < high
    assert bin_of(1.0) == 0
    assert bin_edges(3)[1] == bin_edges(4)[0]


@given(PERPLEXITIES, st.tuples(st.integers(1, 99), st.integers(1, 99)))
def test_the_share_below_a_cutoff_is_the_wanted_one_to_within_a_bin(values, percentiles):
    for cutoff, percentile in zip(cutoffs(histogram(values), percentiles), percentiles, strict=True):
        wanted = Fraction(percentile, 100) * len(values)
        assert sum(value < cutoff for value in values) >= wanted
        assert sum(value < cutoff / RATIO * (1 - 1e-12) for value in values) < wanted


@given(PERPLEXITIES, PERPLEXITIES)
def test_histograms_of_parts_merge_to_that_of_the_whole(first, second):
    whole = histogram(first + second)
    assert merge([histogram(first), histogram(second)]) == whole
    assert merge([histogram(second), histogram(first)]) == whole
    reverse = dict(reversed(whole.items()))
    assert cutoffs(whole) == cutoffs(reverse)


def check_against_quantiles(values, percentiles):
    wanted = np.quantile(values, np.array(percentiles) / 100, method="inverted_cdf")
    for cutoff, quantile in zip(cutoffs(histogram(values), percentiles), wanted, strict=True):
        assert quantile < cutoff <= quantile * RATIO * (1 + 1e-12)


@given(PERPLEXITIES, st.tuples(*[st.sampled_from([12.5, 25.0, 50.0, 75.0])] * 2))  # eighths, so numpy's ranks are exact
def test_cutoffs_are_quantiles_to_within_a_bin(values, percentiles):
    check_against_quantiles(values, percentiles)


def test_cutoffs_of_many_documents_are_quantiles_to_within_a_bin():
    check_against_quantiles(np.random.default_rng(0).lognormal(6, 1, 10_001).round(1).tolist(), (30.0, 60.0))


def test_perplexities_of_one_and_below_are_in_the_first_bin():
    assert [bin_of(value) for value in (1.0, 0.9, 0.1, 0.0)] == [0] * 4
    p30, p60 = cutoffs(histogram([0.0, 0.5, 1.0]))
    assert bucket(0.0, (p30, p60)) == bucket(1.0, (p30, p60)) == "head"


def test_cutoffs_of_known_perplexities():
    values = [float(value) for value in range(100, 200)]
    p30, p60 = cutoffs(histogram(values))
    assert 129 < p30 < 129 * RATIO + 1
    assert 159 < p60 < 159 * RATIO + 1
    assert cutoffs(histogram([50.0])) == (bin_edges(bin_of(50.0))[1],) * 2


def test_no_perplexities():
    for nothing in ({}, {"5": 0}):
        with pytest.raises(ValueError, match="no perplexities"):
            cutoffs(nothing)


def test_bucket():
    cut = (340.0, 520.0)
    assert [bucket(value, cut) for value in (1.0, 339.9, 340.0, 519.9, 520.0, 1e9)] == [
        "head",
        "head",
        "middle",
        "middle",
        "tail",
        "tail",
    ]
    assert bucket(None, cut) == bucket(None, None) == bucket(100.0, None) == "all"


def test_released_cutoffs():
    assert len(RELEASED) == 48 and all(0 < low < high for low, high in RELEASED.values())
    assert released_cutoffs("en") == Cutoffs(340, 520, (30.0, 60.0), None, None)
    assert (RELEASED["ko"], RELEASED["zh"], RELEASED["hu"]) == ((920, 2130), (1460, 1950), (80, 140))
    assert released_cutoffs("sw") is None


def test_computed_cutoffs_say_what_they_were_computed_from():
    counts = histogram([float(value) for value in range(100, 200)])
    cut = computed_cutoffs(counts, (10.0, 90.0), "digest")
    assert (cut.low, cut.high) == cutoffs(counts, (10.0, 90.0))
    assert (cut.percentiles, cut.documents, cut.model) == ((10.0, 90.0), 100, "digest")
    assert dataclasses.asdict(cut).keys() == {"low", "high", "percentiles", "documents", "model"}  # as manifests have it


def test_names():
    assert BUCKETS == ("head", "middle", "tail", "all")
