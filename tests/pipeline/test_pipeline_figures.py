"""Figures of a run that is made up record by record, and their charts."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.stats import total
from pipeline.charts import _log_ticks, _ticks, chart
from pipeline.figures import Chart, Column, Figure, Run, StageState, figures, shown
from pipeline.outputs import write_json
from pipeline.page_road import First, Line, Page
from pipeline.samples import merge_samples
from pipeline.stage import unit_file
from pipeline.stages.report import fitting, render, visible


def record(out, stage, round_name, unit, statistics, seconds=2.0):
    """A record as a finished unit leaves it."""
    stored = {"unit": unit, "fingerprint": "x", "inputs": {}, "outputs": {}, "statistics": statistics, "seconds": seconds}
    write_json(unit_file(out / "records" / stage / round_name, unit, ".json"), stored)


def hashed(pages):
    return {"pages_read": pages, "bytes_read": 1000 * pages, "bad": {"truncated": 1}, "skipped": {}, "partition_keys": [1, 2]}


def test_a_run_without_records_has_no_figures(tmp_path):
    assert Run(tmp_path).read() == {} and figures(tmp_path, {}) == []


def test_records_of_a_running_stage_are_added_as_they_come(tmp_path):
    run = Run(tmp_path)
    record(tmp_path, "hash", "hash", "a", hashed(3))
    assert run.read()["hash"].result["statistics"]["pages_read"] == 3
    record(tmp_path, "hash", "hash", "b", hashed(4))
    state = run.read()["hash"]
    assert (state.units, state.seconds, state.finished) == (2, 4.0, False)
    assert state.result["statistics"] == {"pages_read": 7, "bytes_read": 7000, "bad": {"truncated": 2}, "skipped": {}}
    unit_file(tmp_path / "records/hash/hash", "a", ".json").unlink()  # its segment has changed
    assert run.read()["hash"].result["statistics"]["pages_read"] == 4
    sections = {section.name: section for section in figures(tmp_path, run.read())}
    assert sections["input"].figures[0].rows == [["crawl", "bad records", "truncated", 1]]
    assert [row[0] for row in sections["work"].figures[0].rows] == ["hash (running)"]
    json.dumps([dataclasses.asdict(section) for section in sections.values()])


def test_a_stage_that_is_read_as_it_goes_on_has_the_sums_of_one_read_once(tmp_path, monkeypatch):
    """Its domains are cut to be shown only: a domain that is small in each of the readings may be large in the end."""
    monkeypatch.setattr("ccnet.stats.TOP_DOMAINS", 1)
    watched = Run(tmp_path)
    units = [{f"d{n}": 3, "often": 2} for n in range(5)]
    for n, domains in enumerate(units):
        record(tmp_path, "mine", "mine", f"{n}", {"domains": {"kept": {"largest": domains, "others": 0}}})
        seen = watched.read()["mine"].result
    assert seen == Run(tmp_path).read()["mine"].result
    assert seen["statistics"]["domains"]["kept"] == {"largest": {"often": 10}, "others": 3}


def test_what_a_running_regroup_has_judged_is_one_sum(tmp_path, monkeypatch):
    """Its units are named like segments; were each a sum of its own, the domains of all of them would be held."""
    monkeypatch.setattr("ccnet.stats.TOP_DOMAINS", 1)
    counts = {"in": 3, "kept": 3, "dropped": {}}
    measures = dict.fromkeys(("documents", "chars", "lines"), counts)
    for n in range(4):
        domains = {"kept": {"largest": {f"d{n}": 2, "often": 1}, "others": 0}, "dropped": {"largest": {}, "others": 0}}
        record(tmp_path, "mine", "mine", f"CC-MAIN-{n}-0000{n}", measures | {"domains": domains})
        record(tmp_path, "regroup", "judge", f"CC-MAIN-{n}-0000{n}", measures | {"domains": domains})
    result = Run(tmp_path).read()["regroup"].result
    assert result["statistics"]["domains"]["kept"] == {"largest": {"often": 4}, "others": 2}
    assert result["funnel"]["chars"] == {"in": 12, "kept": 12, "dropped": {}}


def test_records_of_a_finished_stage_are_not_read(tmp_path):
    record(tmp_path, "hash", "hash", "a", hashed(3))
    (tmp_path / "records/hash/hash/b.json").write_text("no JSON")
    result = {"statistics": {"pages_read": 5}}
    outputs = {"a": {"bytes": 7, "digest": "x"}, "b": {"bytes": 8, "digest": "y"}}
    manifest = {"result": result, "config": {}, "units": 2, "seconds": 9.0, "outputs": outputs, "digest": "z", "inputs": {}}
    write_json(tmp_path / "records/hash.json", manifest)
    assert Run(tmp_path).read() == {"hash": StageState(result, {}, 2, 9.0, 15, True, "z", {})}


def test_a_long_training_is_thinned_to_means(tmp_path):
    (tmp_path / "train").mkdir()
    row = {"lr": 0.1, "grad_norm": 1.0, "seconds": 1.0, "tokens_per_second": 10.0}
    rows = [{"step": s, "tokens": s, "loss": float(s % 2), **row} for s in range(1, 100_001)]
    rows[5]["loss"] = math.nan
    (tmp_path / "train/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [overview, training] = figures(tmp_path, {})
    loss = next(figure for figure in training.figures if figure.name == "loss")
    assert len(loss.rows) == 300 and loss.rows[-1][0] == 100_000
    assert all(value == pytest.approx(0.5, abs=0.01) for _, value in loss.rows)
    assert ["last training loss", 0.0] in overview.figures[0].rows
    assert len(render("x", [overview, training])) < 1_000_000


def test_other_sources_are_shown_with_their_reasons(tmp_path):
    counts = {"in": 10, "kept": 7, "dropped": {"bad_words": 3, "short": 0}}
    statistics = {"c4": {"documents": counts, "chars": counts, "lines": counts, "bad": {"no_text": 2}}}
    states = {"sources": StageState({"statistics": statistics}, {}, 1, 1.0, 0, True)}
    found = {figure.name: figure for section in figures(tmp_path, states) for figure in section.figures}
    assert [row[:4] for row in found["sources"].rows] == [
        ["in", "c4", "", 10],
        ["dropped", "c4", "bad_words", 3],
        ["kept", "c4", "", 7],
    ]
    assert found["bad-input"].rows == [["c4", "bad records", "no_text", 2]]


def test_a_page_of_all_languages_stays_under_five_megabytes(tmp_path):
    """With all 176 languages of fastText, each with a model, pages of the largest samples, and a long training."""
    languages = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefghijklmnopqrstuv"]
    sizes = {language: {"documents": 9, "chars": 10_000_000_000 + n} for n, language in enumerate(languages)}
    funnel = {"in": 10**10, "kept": 10**9, "dropped": {reason: 10**9 for reason in ("short", "duplicate", "held_out")}}
    domains = {"largest": {f"{n}.{'long' * 10}.example": 10**6 for n in range(200)}, "others": 10**6}
    statistics = {
        **dict.fromkeys(("documents", "chars", "lines"), funnel),
        "languages": sizes,
        "domains": {"kept": domains, "dropped": domains},
        "bad": {},
        "language_score": {key: {str(n): 12345 for n in range(101)} for key in languages},
        "length": {key: {str(n): 12345 for n in range(20)} for key in languages},
        "perplexity": {key: {str(n): 123456 for n in range(600, 1900)} for key in languages},
    }
    cut = {"low": 300.0, "high": 600.0}
    buckets = dict.fromkeys(languages, dict.fromkeys(("head", "middle", "tail"), sizes["aa"]))
    frequent = [{"text": "字" * 200, "documents": 10**6}] * 200
    regrouped = {"statistics": statistics, "funnel": {}, "cutoffs": dict.fromkeys(languages, cut), "buckets": buckets}
    regrouped["funnel"] = dict.fromkeys(("documents", "chars", "lines"), funnel)
    states = {
        name: StageState(result, {"language.threshold": 0.5}, 90_000, 1e6, 10**12, True)
        for name, result in {"mine": {"statistics": statistics, "frequent": frequent}, "regroup": regrouped}.items()
    }
    (tmp_path / "train").mkdir()
    names = ("loss", "lr", "grad_norm", "tokens_per_second", *(f"validation_loss/{n}" for n in range(8)))
    rows = [{"step": s, "tokens": s, **{name: s / 7 for name in names}} for s in range(1000)]
    (tmp_path / "train/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        Line("字" * 200, n, ("", "duplicate")[n % 2], 123.4, First("http://x.example/" + "y" * 300, "z")) for n in range(60)
    ]
    pages = [
        Page("http://x.example", "s", 1, "d", "", "title", 9, "corpus", bucket, language, 0.9, 400.0, [("crawl", "x")], lines)
        for language in languages
        for bucket in ("head", "middle", "tail")
        for _ in range(3)
    ]
    groups = fitting(merge_samples((("0", page) for page in pages), 3), buckets)
    chosen = [page for members in groups.values() for page in members]
    assert 0 < len(chosen) < len(pages)
    text = render("x", figures(tmp_path, states), chosen)
    assert len(text.encode()) < 5_000_000


def test_values_as_text():
    assert [shown(v, "count") for v in (None, 0, 1234567)] == ["", "0", "1,234,567"]
    assert [shown(v, "value") for v in ("x", 12, 12.5, math.nan, 1234.56, 98765.4)] == [
        "x",
        "12",
        "12.5",
        "nan",
        "1,234.6",
        "98,765",
    ]
    assert (shown(0.123, "share"), shown(2048, "bytes"), shown(60, "seconds")) == ("12.3 %", "2.0 kB", "1 min 0 s")


def test_domains_of_many_units_are_bounded_and_their_error_is_told(monkeypatch):
    monkeypatch.setattr("ccnet.stats.MANY_DOMAINS", 8)
    monkeypatch.setattr("ccnet.stats.TOP_DOMAINS", 2)
    units = [{"domains": {"kept": {"largest": {f"d{n}": 1, "often": 5}, "others": 0}}} for n in range(50)]
    kept = total(units)["domains"]["kept"]
    assert kept["largest"]["often"] == 250 and len(kept["largest"]) == 2
    assert kept["others"] >= 1


@given(st.floats(-1e12, 1e12), st.floats(0, 1e12), st.booleans())
def test_ticks_lie_evenly_around_the_values(low, width, inside):
    ticks = _ticks(low, low + width, inside=inside)
    assert len(ticks) <= 12 and ticks == sorted(ticks)
    if not inside:
        little = 1e-6 * (ticks[-1] - ticks[0])
        assert ticks[0] <= low + little and ticks[-1] >= low + width - little


@given(st.floats(1, 1e6), st.floats(1.001, 1e6))
def test_ticks_of_a_logarithmic_axis_lie_inside(low, factor):
    ticks = _log_ticks(low, low * factor)
    assert len(ticks) <= 7 and all(low <= tick <= low * factor for tick in ticks)


@pytest.mark.parametrize("kind", ["bars", "grouped", "histogram", "lines"])
@pytest.mark.parametrize("rows", [[[0, 0, 0, 0]], [[1, 2, 5, None], [2, 4, 3, 8]], [[1, 1, 1, 1]] * 30])
def test_charts_of_few_and_even_values(kind, rows):
    rows = [[*row[:3], row[3] or 0] for row in rows] if kind == "histogram" else rows
    columns = tuple(Column(name, "number") for name in ("<low>", "high", "<b>", "c"))
    for logarithmic in (False, True):
        spec = Chart(kind, 0, (2, 3), logarithmic=logarithmic, marks=(("<mark>", 1.5),) if kind == "histogram" else ())
        drawn = chart(Figure("f", "<title>", columns, rows, "<note>", spec))
        assert "<title>.&" not in drawn and "<b>c" not in drawn and "nan" not in drawn and "<mark>" not in drawn


@given(st.text())
def test_text_becomes_visible_text_and_nothing_else(text):
    shown_text = str(visible(text))
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown_text)
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u200f") & set(shown_text)
    assert "<" not in shown_text.replace('<span class="hidden">', "").replace("</span>", "")
