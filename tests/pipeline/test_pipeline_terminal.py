"""What a terminal is sent, and the tables behind the questions, without a run."""

import csv
import io
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.__main__ import main
from pipeline.commands.inspect import QUESTIONS
from pipeline.commands.inspect import Settings as Inspect
from pipeline.commands.stats import Settings as Stats
from pipeline.config import load_settings
from pipeline.tables import TABLES, opened
from pipeline.terminal import json_text, print_rows, print_table, printable

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


@given(ANY_TEXT)
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert shown.isprintable() and (shown == text or not text.isprintable())
    written = json_text({text: [text, {"x": text}]})
    assert written.isprintable() and json.loads(written) == {text: [text, {"x": text}]}


def test_characters_in_escapes():
    assert printable("a\tb\n\x1b\u200f\U000e0001\u00e9 \u6f22 ar") == "a\\tb⏎\\x1b\\u200f\\U000e0001\u00e9 \u6f22 ar"
    assert (
        json_text([float("nan"), float("-inf"), Decimal("1.5"), None, True, b"x"]) == "[null, null, 1.5, null, true, \"b'x'\"]"
    )


@pytest.mark.parametrize("rows", [[], [("a\x1b", 1)], [('a,\n"', None), ("b", [1, 2])]])
def test_rows_as_json_and_csv_are_read_back(rows, capsys):
    print_rows(["text", "value"], iter(rows), "json")
    assert json.loads(capsys.readouterr().out) == [{"text": text, "value": value} for text, value in rows]
    print_rows(["text", "value"], iter(rows), "csv")
    read = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))
    assert read == [["text", "value"], *([text, "" if value is None else str(value)] for text, value in rows)]


def test_a_table_is_cut_to_the_screen_and_says_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_table("[red]title", ["a", "b"], [("[bold]x", 1234567), ("y" * 500, 0.5), ("z", True)], most=2, right=[1])
    shown = capsys.readouterr().out
    assert "[red]title" in shown and "[bold]x" in shown and "1,234,567" in shown and "…" in shown
    assert shown.count("y") == 160
    assert "The first 2 rows; rows=0 shows all." in shown
    print_table("", [f"column {n}" for n in range(20)], [range(20)], most=0)  # too many for the screen
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [["column", str(n), str(n)] for n in range(20)]


def test_words_settings_and_flags():
    query = "select * from corpus where language='en' and url like '%a=b'"
    settings = load_settings(
        Inspect, ["out=x", query, "--json", "page", "http://x/?a=b", "rows=3", "${out}", "-- no\nselect 1"]
    )
    assert (settings.out, settings.json, settings.csv, settings.rows) == ("x", True, False, 3)
    assert settings.question == [query, "page", "http://x/?a=b", "${out}", "-- no\nselect 1"]
    assert load_settings(Stats, ["--json"]).json
    for arguments, told in (
        (["jsn=1"], "did you mean json?"),
        (["--jsn"], "did you mean json?"),
        (["x"], "a setting is key=value"),
    ):
        with pytest.raises(ValueError, match=told.replace("?", ".")):
            load_settings(Stats, arguments)


def test_what_needs_more_memory_goes_through_the_disk(tmp_path):
    """220 MB of text are sorted in 100 MB."""
    with opened(tmp_path, "100MB") as tables:
        assert tables.names == []
        texts = "select repeat('x', 100) || hash(n) as text from range(2000000) t(n)"
        _, rows = tables.ask(f"select max(place) from (select row_number() over (order by text) as place from ({texts}))")
        assert list(rows) == [(2_000_000,)]


def test_help_names_questions_and_tables(capsys):
    assert main(["inspect", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in [*QUESTIONS, *TABLES]) and "inspect QUESTION … [key=value …]" in shown
