"""Pieces of evaluation sets in documents, beside a plain Python version."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.contamination import count_pieces, evaluation_keys

QUESTION = "Which of the following planets is the largest one in the whole solar system that we live in?"


def pieces(text: str) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[n : n + 13]) for n in range(len(words) - 12)]


def keys_of(folder: Path, *texts: str) -> tuple[np.ndarray, Counter[str]]:
    counts: Counter[str] = Counter()
    (folder / "evaluation.jsonl").write_text("".join(json.dumps({"a": [{"question": text}]}) + "\n" for text in texts))
    return evaluation_keys([str(folder / "evaluation.jsonl")], counts), counts


@settings(deadline=None)  # the first one compiles the kernels
@given(st.lists(st.text("ab ", max_size=80), max_size=4), st.lists(st.text("ab ", max_size=120), max_size=4))
def test_counts_are_those_of_the_plain_version(tmp_path_factory, evaluation: list[str], documents: list[str]) -> None:
    keys, counts = keys_of(tmp_path_factory.mktemp("evaluation"), *evaluation)
    known = {piece for text in evaluation for piece in pieces(text)}
    assert len(keys) == len(known)
    assert counts["short"] == sum(len(text.split()) < 13 for text in evaluation)
    wanted = [sum(piece in known for piece in pieces(text)) for text in documents]
    assert count_pieces(pa.array(documents, pa.string()), keys).tolist() == wanted


@pytest.mark.parametrize(
    ("document", "found"),
    [
        (QUESTION, True),
        (f"Quiz: {QUESTION.upper()} Answer: Jupiter", True),
        (QUESTION.replace(" ", "\n"), True),
        ("«" + QUESTION.replace(" ", "»  «"), True),
        (" ".join(QUESTION.split()[:13]), True),
        (" ".join(QUESTION.split()[:12]), False),
        (" ".join(QUESTION.split()[::-1]), False),
        ("", False),
    ],
)
def test_pieces_are_found_whatever_case_and_space(tmp_path: Path, document: str, found: bool) -> None:
    keys, _ = keys_of(tmp_path, QUESTION)
    assert bool(count_pieces(pa.array([document, "x"]), keys)[0]) is found


def test_every_kind_of_file(tmp_path: Path) -> None:
    wanted, _ = keys_of(tmp_path, QUESTION)
    rows = pa.table({"id": [1], "q": [{"text": QUESTION, "choices": ["a", "b"]}]})
    pq.write_table(rows, tmp_path / "a.parquet")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps([QUESTION, {"x": 3}]).encode()))
    (tmp_path / "c.txt").write_bytes(QUESTION.encode() + b"\n")
    for name in ("a.parquet", "b.json.gz", "c.txt"):
        assert np.array_equal(evaluation_keys([str(tmp_path / name)], Counter()), wanted)
    assert np.array_equal(evaluation_keys([str(tmp_path / name) for name in ("a.parquet", "c.txt")], Counter()), wanted)
    assert not len(evaluation_keys([], Counter()))


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "b"}\n{')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        evaluation_keys([str(tmp_path / "a.jsonl")], Counter())
    (tmp_path / "a.parquet").write_text("x")
    for name in ("a.parquet", "none.txt"):
        with pytest.raises(ValueError, match="can't be read"):
            evaluation_keys([str(tmp_path / name)], Counter())
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe" * 100)
    assert not len(evaluation_keys([str(tmp_path / "a.txt")], Counter()))
