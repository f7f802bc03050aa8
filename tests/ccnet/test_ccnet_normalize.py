"""The kernels against the same rules in plain Python, over all of Unicode."""

import gzip
import hashlib
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.obvious import lm_text as obvious_lm_text
from benchmarks.obvious import paragraph_key
from ccnet.normalize import lm_octets, lm_text, paragraph_keys

CHARACTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]


def check_keys(documents: list[str]) -> None:
    keys, offsets = paragraph_keys(pa.array(documents, pa.string()))
    lines = [document.split("\n") for document in documents]
    assert keys.dtype == np.uint64 and offsets.dtype == np.int64
    assert offsets.tolist() == [0, *np.cumsum([len(document) for document in lines])]
    flat = [line for document in lines for line in document]
    wrong = [line for line, key in zip(flat, keys.tolist(), strict=True) if key != paragraph_key(line)]
    assert not wrong, f"{len(wrong)} lines, the first {wrong[0]!r}"


def test_known_keys():
    keys, offsets = paragraph_keys(pa.array(["hello", " HELLO\t\n\nhe\x07llo„"]))
    hello, empty = 0xA2E8C5DC1DC6F4AA, int.from_bytes(hashlib.sha1(b"").digest()[:8], "little")
    assert keys.tolist() == [hello, hello, empty, hello]
    assert offsets.tolist() == [0, 1, 4]


@pytest.mark.parametrize("pattern", ["{}", "x{}Y", "AΣ{}", "AΣ{}B", "Σ{}Σ"])
def test_keys_of_every_code_point(pattern):
    lines = [pattern.replace("{}", c) for c in CHARACTERS if c != "\n"]
    text = "\n".join(lines)
    keys, _ = paragraph_keys(pa.array([text]))
    wanted = np.array([paragraph_key(line) for line in lines], np.uint64)
    wrong = np.flatnonzero(keys != wanted)
    assert not len(wrong), f"{len(wrong)} code points, the first in {lines[wrong[0]]!r}"


def test_message_sizes_around_a_block():
    check_keys(["\n".join("ab" * n + "c" * odd for n in range(100) for odd in (0, 1)), "y" * 100_000])


def test_no_documents_and_empty_ones():
    keys, offsets = paragraph_keys(pa.array([], pa.string()))
    assert keys.tolist() == [] and offsets.tolist() == [0]
    check_keys([""])
    check_keys(["", "", "\n", ""])


def test_slice_of_an_array():
    whole = pa.array(["a\nb", "Ünï\n\ncode 12", "", "z"])
    keys, offsets = paragraph_keys(whole[1:3])
    assert offsets.tolist() == [0, 3, 4]
    assert keys.tolist() == [paragraph_key(line) for line in ("Ünï", "", "code 12", "")]


context_dependent = st.sampled_from("Σσςa A\u0345'.\u00ad1\n\u0130\u00a0\u2014\u200b\u0307\U0001d7d8ß\x1c\x85ΐ")
texts = st.text(st.one_of(context_dependent, st.characters(exclude_categories=["Cs"])), max_size=40)


@given(st.lists(texts, max_size=6))
@settings(max_examples=300, deadline=None)
def test_keys_of_any_text(documents):
    check_keys(documents)


@pytest.mark.parametrize("pattern", ["{}", "É{}\u0301 Σ{}"])
def test_lm_text_of_every_code_point(pattern):
    wrong = [c for c in CHARACTERS if lm_text(pattern.replace("{}", c)) != obvious_lm_text(pattern.replace("{}", c))]
    assert not wrong, f"{len(wrong)} code points, the first {wrong[0]!r}"


@given(texts)
@settings(max_examples=300, deadline=None)
def test_lm_text_of_any_text(text):
    assert lm_text(text) == obvious_lm_text(text)


marks = st.sampled_from("\u1b44\u302e\U0001d15f\u0301\uac01\u0345\n\x00 ")


@given(st.lists(st.one_of(marks, texts), max_size=6).map("".join))
@settings(max_examples=300, deadline=None)
def test_lines_of_lm_text(text):
    """Texts with marks that may have to be put in order take another way."""
    octets, starts = lm_octets(text)
    assert octets.tobytes().decode() == obvious_lm_text(text)
    lines = text.split("\n")
    assert len(starts) == len(lines)
    body = [n for n, line in enumerate(lines) if line.strip()] or [0]
    for n, (start, end) in enumerate(pairwise([*starts.tolist(), len(octets)])):
        line = lines[n].lstrip() if n == body[0] else lines[n]
        line = line.rstrip() if n == body[-1] else line
        # Letters on both sides keep what strip() would take.
        wanted = obvious_lm_text(f"\n|{line}|\n")[1:-1] if body[0] <= n <= body[-1] else ""
        assert octets[start:end].tobytes().decode() == wanted


def test_lm_text_is_one_line():
    assert lm_text("  Über “1984”…\nand\tso — on\n") == 'uber "0000"...andso  -  on'
    assert lm_text("12 Monkeys\n\nARE here") == "00 monkeysare here"
    assert lm_text(" \n ") == lm_text("") == ""


def test_real_pages(shared_data: Path):
    for path in sorted((shared_data / "text").glob("fastapi-*.md.gz")):
        text = gzip.decompress(path.read_bytes()).decode()
        check_keys([text])
        assert lm_text(text) == obvious_lm_text(text)
