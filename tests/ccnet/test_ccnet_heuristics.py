"""Measures of documents, beside a plain Python version; the rules of Gopher and FineWeb at their limits."""

import random
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ccnet.heuristics import BULLETS, ENDS, FINEWEB, GOPHER, MEASURES, REPEATED, STOP_WORDS, TOP, Measured, measure

PARTS = [
    "the",
    "The",
    "of",
    "and",
    "a",
    "word",
    "Größe",
    "日本",
    "42",
    "#",
    "##tag",
    "...",
    "……",
    "....",
    "……",
    "•",
    "- x",
    ".",
    "end.",
    "“q”",
]


def repeated(items: list[str]) -> tuple[int, int]:
    seen: set[str] = set()
    number = chars = 0
    for item in items:
        if item in seen:
            number, chars = number + 1, chars + len(item)
        seen.add(item)
    return number, chars


def plain(text: str) -> dict[str, float]:
    """The measures as their description says them."""
    spans = [found.span() for found in re.finditer(r"\S+", text)]
    words = [text[low:high] for low, high in spans]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n(?:[^\S\n]*\n)+", text) if part.strip()]
    size, n_words, n_lines = max(len(text), 1), max(len(words), 1), max(len(lines), 1)
    values: dict[str, float] = {
        "words": len(words),
        "word_length": sum(map(len, words)) / n_words,
        "hashes": text.count("#") / n_words,
        "ellipses": (text.count("...") + text.count("…")) / n_words,
        "bullet_lines": sum(line[0] in BULLETS for line in lines) / n_lines,
        "ellipsis_lines": sum(line.endswith(("...", "…")) for line in lines) / n_lines,
        "alphabetic_words": sum(any(c.isalpha() for c in word) for word in words) / n_words,
        "stop_words": len({word.lower() for word in words} & set(STOP_WORDS)),
        "ended_lines": sum(line[-1] in ENDS for line in lines) / n_lines,
        "short_lines": sum(len(line) < 30 for line in lines) / n_lines,
    }
    number, chars = repeated(lines)
    values |= {"repeated_lines": number / n_lines, "repeated_line_chars": chars / size}
    number, chars = repeated(paragraphs)
    values |= {"repeated_paragraphs": number / max(len(paragraphs), 1), "repeated_paragraph_chars": chars / size}
    for n in (*TOP, *REPEATED):
        runs = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
        if n in TOP:
            counts = Counter(runs)
            run = max(runs, key=lambda run: counts[run], default=())  # the first of equal ones
            first = runs.index(run) if runs else 0
            length = spans[first + n - 1][1] - spans[first][0] if runs else 0
            values[f"top_{n}_gram"] = counts[run] * length / size if counts[run] > 1 else 0.0
        else:
            covered: set[int] = set()
            for k, run in enumerate(runs):
                if run in runs[:k]:
                    covered |= set(range(spans[k][0], spans[k + n - 1][1]))
            values[f"repeated_{n}_grams"] = len(covered) / size
    return values


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(PARTS), st.sampled_from([" ", " ", " ", "\n", "\n\n", " \n\t\n", "  ", "\u3000"])),
        max_size=60,
    )
)
@example([])
def test_measures_are_those_of_the_plain_version(parts: list[tuple[str, str]]) -> None:
    text = "".join(word + space for word, space in parts).strip()
    found = dict(zip(MEASURES, measure(pa.array([text], pa.string()))[0].tolist(), strict=True))
    assert found == pytest.approx(plain(text), abs=1e-12)


def test_texts_are_measured_by_themselves() -> None:
    texts = ["one two three", "", "the of\n\nthe of", "a " * 500, "x" * 5000]
    together = measure(pa.array(texts))
    assert np.array_equal(together, np.concatenate([measure(pa.array([text])) for text in texts]))
    assert np.array_equal(measure(pa.array(["cut", *texts])[1:]), together)
    assert measure(pa.array([], pa.string())).shape == (0, len(MEASURES))


_letter = random.Random(1).choice
WORDS = ["".join(_letter("abcdefghijklmnopqrstuvwxyz") for _ in range(7)) for _ in range(200)]
GOOD = f"the {' '.join(WORDS[:50])} of {' '.join(WORDS[50:100])}."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        (" ".join(["the of", *WORDS[:47]]), "gopher_words"),
        (" ".join(["the of", *WORDS[:48]]), ""),
        ("the of " + " ".join(chr(97 + n % 26) + chr(97 + n // 26) for n in range(60)), "gopher_word_length"),
        (GOOD + " #" * 12, "gopher_hashes"),
        (GOOD.replace(" ", " …", 12), "gopher_ellipses"),
        ("\n".join(f"- {line}" for line in (GOOD, "of " + " ".join(WORDS[100:]))), "gopher_bullet_lines"),
        ("\n".join([" ".join(WORDS[100:120]) + "...", GOOD, " ".join(WORDS[120:160])]), "gopher_ellipsis_lines"),
        (GOOD + " " + " ".join(map(str, range(1000, 1030))), "gopher_alphabetic_words"),
        (GOOD.replace("of ", "off "), "gopher_stop_words"),
        (GOOD.replace("of ", "Of "), ""),
        (GOOD + "\nshort" * 2, "gopher_repeated_lines"),
        ("\n".join([*WORDS[100:110], GOOD, GOOD]), "gopher_repeated_line_chars"),
        (
            "\n\n".join(["x\n" * 0 + f"{w}\ny{n}" for n, w in enumerate(WORDS[100:110])] + ["a\nb"] * 6 + [GOOD]),
            "gopher_repeated_lines",
        ),
        (GOOD + " " + "the same " * 30, "gopher_top_2_gram"),
        (GOOD + " " + "the one same " * 17, "gopher_top_3_gram"),
        (f"{GOOD} {' '.join(WORDS[:18])}", "gopher_repeated_5_grams"),
        (" ".join(["the of", *WORDS[:100], *(w for n in range(0, 100, 10) for w in (WORDS[n + 100], *WORDS[n : n + 4]))]), ""),
    ],
)
def test_gopher_names_the_first_rule_that_is_broken(text: str, reason: str) -> None:
    rule = Measured("gopher", GOPHER)
    verdict = rule(pa.array([text]))
    assert not verdict.lines.any() and len(verdict.lines) == text.count("\n") + 1
    assert ("", *rule.reasons)[verdict.documents[0]] == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "\n".join(
                ["A line that is long enough to be none of the short ones"]
                + [f"Line number {n} of those without an end mark" for n in range(8)]
                + ["One with an end."] * 1
            ),
            "fineweb_ended_lines",
        ),
        ("\n".join([f"A line of some length, which has the number {n}." for n in range(10)]), ""),
        (
            "\n".join([f"A line of some length, which has the number {n % 5}." for n in range(10)]),
            "fineweb_repeated_line_chars",
        ),
        ("\n".join([f"Short one {n}." for n in range(10)]), "fineweb_short_lines"),
    ],
)
def test_fineweb_names_the_first_rule_that_is_broken(text: str, reason: str) -> None:
    rule = Measured("fineweb", FINEWEB)
    assert ("", *rule.reasons)[rule(pa.array([text])).documents[0]] == reason


def test_limits_are_the_papers() -> None:
    lines = ["A line that is long enough to be none of the short ones"] * 0 + [
        f"Line {n} is long enough to be none of the short" for n in range(88)
    ]
    at_limit = "\n".join(lines + [f"Line {n} is long enough to be none of the short." for n in range(12)])
    above = "\n".join(lines[:-1] + [f"Line {n} is long enough to be none of the short." for n in range(13)])
    rule = Measured("fineweb", FINEWEB)
    assert rule(pa.array([at_limit, above])).documents.tolist() == [1, 0]
