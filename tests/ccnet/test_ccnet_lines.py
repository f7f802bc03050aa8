"""The kernel that splits and strips lines, against the obvious Python version, for every code point."""

import sys

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.lines import split_lines


def obvious(body, min_chars):
    """(title, content, kept, title characters, characters, lines)."""
    lines = body.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    title, *rest = map(str.strip, lines)
    content = "\n".join(rest)
    count = content.count("\n") + 1 if content else 0
    return title, content, len(content) >= max(min_chars, 1), len(title), len(content), count


def check(bodies, min_chars):
    split = split_lines(pa.array(bodies, pa.string()), min_chars)
    wanted = [obvious(body, min_chars) for body in bodies]
    kept = [row for row in wanted if row[2]]
    assert split.titles.to_pylist() == [row[0] for row in kept]
    assert split.contents.to_pylist() == [row[1] for row in kept]
    for name, column in (("kept", 2), ("title_chars", 3), ("chars", 4), ("lines", 5)):
        assert getattr(split, name).tolist() == [row[column] for row in wanted], name
    split.titles.validate(full=True)
    split.contents.validate(full=True)


def test_every_code_point_at_each_end_of_a_line():
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    check(["t\n" + "\n".join(f"{c}a\nb{c}\n{c}\n\t{c} x {c} " for c in characters), *characters[:0x3100]], 0)


piece = st.sampled_from(
    ["\n", "\r", "\r\n", " ", "\t", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "a", "bc" * 20, "ü", "漢", "🎉"]
)


body = st.lists(piece, max_size=30).map("".join) | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(body, max_size=6), st.integers(0, 40))
@settings(max_examples=400, deadline=None)
def test_any_bodies(bodies, min_chars):
    check(bodies, min_chars)


def test_no_body_and_a_long_one():
    check([], 0)
    check(["t\n" + " x " * 100_000 + "\n" + "y\n" * 100_000, "", "\n", "\n\n", "t"], 300)
