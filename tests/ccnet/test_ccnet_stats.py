import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.stats import merge

NUMBERS = st.integers(0, 1 << 60)
RECORDS = st.fixed_dictionaries(
    {"documents": NUMBERS, "partitions": st.lists(NUMBERS, min_size=3, max_size=3)},
    optional={
        "bad": st.dictionaries(st.sampled_from("abc"), NUMBERS),
        "perplexity": st.dictionaries(st.sampled_from(["en", "de"]), st.dictionaries(st.sampled_from("123"), NUMBERS)),
    },
)


def test_adds_numbers_nested_dictionaries_and_lists():
    first = {"n": 1, "bad": {"short": 2}, "lists": [1, 2]}
    second = {"n": 10, "bad": {"short": 1, "late": 5}, "lists": [10, 20], "new": {"x": {"y": 1.5}}}
    assert merge([first, second]) == {
        "n": 11,
        "bad": {"short": 3, "late": 5},
        "lists": [11, 22],
        "new": {"x": {"y": 1.5}},
    }


def test_nothing():
    assert merge([]) == {}
    assert merge([{}, {}]) == {}


@given(st.lists(RECORDS, max_size=6), st.integers(0, 6), st.randoms())
def test_grouping_and_order_do_not_matter_and_inputs_stay(records, cut, random):
    before = copy.deepcopy(records)
    whole = merge(records)
    assert merge([merge(records[:cut]), merge(records[cut:])]) == whole
    shuffled = random.sample(records, len(records))
    assert merge(shuffled) == whole
    assert records == before


def test_lists_of_different_lengths_do_not_add():
    with pytest.raises(AssertionError):
        merge([{"n": [1, 2]}, {"n": [1]}])
