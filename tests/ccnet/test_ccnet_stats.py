import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.stats import Tally, Total, chain, excess, merge, top, total

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


DOMAINS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 5))


@given(st.lists(DOMAINS, max_size=5), st.integers(1, 4))
def test_the_largest_counts_of_units_bound_those_of_all(units, number):
    """Cut in each unit and added in any order, a count is known to within `others`."""
    true, merged = merge(units), merge(top(unit, number) for unit in units)
    assert merge(top(unit, number) for unit in reversed(units)) == merged
    for name in "abcdefgh":
        known = merged.get("largest", {}).get(name, 0)
        assert known <= true.get(name, 0) <= known + merged.get("others", 0)


def test_equal_counts_are_cut_by_name():
    assert top({"b": 2, "c": 2, "a": 1, "d": 3}, 2) == {"largest": {"d": 3, "b": 2}, "others": 2}
    assert top({"b": 2}, 2) == {"largest": {"b": 2}, "others": 0}
    assert top({}, 2) == {"largest": {}, "others": 0}


def test_domains_of_all_units_are_cut_again(monkeypatch):
    monkeypatch.setattr("ccnet.stats.TOP_DOMAINS", 2)
    tallies = [Tally(), Tally()]
    for tally, domains in zip(tallies, ("aab", "ccccd"), strict=True):
        tally.domains["kept"].update(domains)
    found = total(tally.statistics() for tally in tallies)["domains"]
    assert found["kept"] == {"largest": {"c": 4, "a": 2}, "others": 1}
    assert found["dropped"] == {"largest": {}, "others": 0}
    assert total([]) == {}


MANY_NAMES = [f"{a}{b}" for a in "abcdefgh" for b in "0123"]


@given(
    st.lists(st.dictionaries(st.sampled_from(MANY_NAMES), st.integers(1, 5)), max_size=40),
    st.integers(1, 6),
    st.integers(2, 8),
    st.integers(0, 40),
)
def test_domains_held_are_bounded_and_their_true_counts_are_within_the_bounds(units, of_a_unit, held, looked):
    """Against the exact counts: cut in each unit, cut while units are added, cut at the end, and looked at on the way."""
    true, added, added_once = merge(units), Total(), Total()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccnet.stats.MANY_DOMAINS", held)
        patch.setattr("ccnet.stats.TOP_DOMAINS", 3)
        for number, unit in enumerate(units):
            record = {"documents": 1, "domains": {"kept": top(unit, of_a_unit)}}
            added.add(record)
            added_once.add(record)
            assert len(added._merged["domains"]["kept"]["largest"]) <= held
            if number == looked:
                added.statistics()
        found = added.statistics()
        assert found == added_once.statistics()
    assert found.get("documents", 0) == len(units)
    kept = found.get("domains", {}).get("kept", {"largest": {}, "others": 0})
    assert len(kept["largest"]) <= 3
    for name in MANY_NAMES:
        known = kept["largest"].get(name, 0)
        assert known <= true.get(name, 0) <= known + kept["others"]


def step(kept, **dropped):
    tally = Tally()
    tally.add("in", kept + sum(dropped.values()), 10 * (kept + sum(dropped.values())), 0)
    tally.add("kept", kept, 10 * kept, 0)
    for reason, n in dropped.items():
        tally.add(reason, n, 10 * n, 0)
    return tally.statistics()


def test_two_steps_are_one():
    whole = chain(step(90, short=4, both=6), step(50, language=30, both=10))
    assert whole["documents"] == {"in": 100, "kept": 50, "dropped": {"short": 4, "both": 16, "language": 30}}
    assert whole["chars"]["dropped"]["both"] == 160
    assert sorted(whole) == ["chars", "documents", "lines"]


def test_what_a_step_removes_too_much():
    statistics = step(20, near=50, short=30, chosen=900)
    assert excess(statistics, 0.8, ["chosen"]) is None  # no more than
    assert excess(statistics, 0.79, ["chosen"]) == "80.0% of 1000 characters (near 50.0%, short 30.0%)"
    assert excess(statistics, 0.97, []) == "98.0% of 10000 characters (chosen 90.0%, near 5.0%, short 3.0%)"
    assert excess(step(0), 0.5, []) is None
    assert excess(step(0, short=1), 0.98, []) == "100.0% of 10 characters (short 100.0%)"


def test_lists_of_different_lengths_do_not_add():
    with pytest.raises(AssertionError):
        merge([{"n": [1, 2]}, {"n": [1]}])
