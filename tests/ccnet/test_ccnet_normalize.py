"""The kernels against the same rules in plain Python, over all of Unicode."""

import gzip
import hashlib
import re
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.normalize import lm_octets, lm_text, paragraph_keys

PUNCTUATION = {
    0xFF0C: ",", 0x3002: ".", 0x3001: ",", 0x201E: '"', 0x201D: '"', 0x201C: '"', 0x00AB: '"', 0x00BB: '"',
    0xFF11: '"', 0x300D: '"', 0x300C: '"', 0x300A: '"', 0x300B: '"', 0x00B4: "'", 0x2236: ":", 0xFF1A: ":",
    0xFF1F: "?", 0xFF01: "!", 0xFF08: "(", 0xFF09: ")", 0xFF1B: ";", 0x2013: "-", 0x2014: " - ", 0xFF0E: ". ",
    0xFF5E: "~", 0x2019: "'", 0x2026: "...", 0x2501: "-", 0x3008: "<", 0x3009: ">", 0x3010: "[", 0x3011: "]",
    0xFF05: "%", 0x25BA: "-",
}  # fmt: skip
DELETED = re.compile("[" + "".join(map(chr, [*PUNCTUATION, *range(0x20), *range(0x7F, 0xA0)])) + "]")
CHARACTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]


def slow_key(line: str) -> int:
    line = line.strip()
    if line:
        line = DELETED.sub("", re.sub(r"\d", "0", line.lower()))
    return int.from_bytes(hashlib.sha1(line.encode()).digest()[:8], "little")


def slow_lm_text(text: str) -> str:
    text = "".join(c for c in unicodedata.normalize("NFD", text.strip().lower()) if unicodedata.category(c) != "Mn")
    text = "".join("0" if unicodedata.decimal(c, None) is not None else c for c in text)
    return "".join(PUNCTUATION.get(ord(c), c) for c in text if not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0))


def check_keys(documents: list[str]) -> None:
    keys, offsets = paragraph_keys(pa.array(documents, pa.string()))
    lines = [document.split("\n") for document in documents]
    assert keys.dtype == np.uint64 and offsets.dtype == np.int64
    assert offsets.tolist() == [0, *np.cumsum([len(document) for document in lines])]
    flat = [line for document in lines for line in document]
    wrong = [line for line, key in zip(flat, keys.tolist(), strict=True) if key != slow_key(line)]
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
    wanted = np.array([slow_key(line) for line in lines], np.uint64)
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
    assert keys.tolist() == [slow_key(line) for line in ("Ünï", "", "code 12", "")]


context_dependent = st.sampled_from("Σσςa A\u0345'.\u00ad1\n\u0130\u00a0\u2014\u200b\u0307\U0001d7d8ß\x1c\x85ΐ")
texts = st.text(st.one_of(context_dependent, st.characters(exclude_categories=["Cs"])), max_size=40)


@given(st.lists(texts, max_size=6))
@settings(max_examples=300, deadline=None)
def test_keys_of_any_text(documents):
    check_keys(documents)


@pytest.mark.parametrize("pattern", ["{}", "É{}\u0301 Σ{}"])
def test_lm_text_of_every_code_point(pattern):
    wrong = [c for c in CHARACTERS if lm_text(pattern.replace("{}", c)) != slow_lm_text(pattern.replace("{}", c))]
    assert not wrong, f"{len(wrong)} code points, the first {wrong[0]!r}"


@given(texts)
@settings(max_examples=300, deadline=None)
def test_lm_text_of_any_text(text):
    assert lm_text(text) == slow_lm_text(text)


marks = st.sampled_from("\u1b44\u302e\U0001d15f\u0301\uac01\u0345\n\x00 ")


@given(st.lists(st.one_of(marks, texts), max_size=6).map("".join))
@settings(max_examples=300, deadline=None)
def test_lines_of_lm_text(text):
    """Texts with marks that may have to be put in order take another way."""
    octets, starts = lm_octets(text)
    assert octets.tobytes().decode() == slow_lm_text(text)
    lines = text.split("\n")
    assert len(starts) == len(lines)
    body = [n for n, line in enumerate(lines) if line.strip()] or [0]
    for n, (start, end) in enumerate(pairwise([*starts.tolist(), len(octets)])):
        line = lines[n].lstrip() if n == body[0] else lines[n]
        line = line.rstrip() if n == body[-1] else line
        # Letters on both sides keep what strip() would take.
        wanted = slow_lm_text(f"\n|{line}|\n")[1:-1] if body[0] <= n <= body[-1] else ""
        assert octets[start:end].tobytes().decode() == wanted


def test_lm_text_is_one_line():
    assert lm_text("  Über “1984”…\nand\tso — on\n") == 'uber "0000"...andso  -  on'
    assert lm_text("12 Monkeys\n\nARE here") == "00 monkeysare here"
    assert lm_text(" \n ") == lm_text("") == ""


def test_real_pages(shared_data: Path):
    for path in sorted((shared_data / "text").glob("fastapi-*.md.gz")):
        text = gzip.decompress(path.read_bytes()).decode()
        check_keys([text])
        assert lm_text(text) == slow_lm_text(text)
