"""Documents of Parquet files: every one once, whatever the columns and the slices."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.documents import read_documents, slices


def read(path: Path, slice_bytes: int = 1 << 30) -> list[tuple[str, str]]:
    batches = [batch for part in slices(str(path), slice_bytes) for batch in read_documents(part)]
    assert all(batch.schema.names == ["digest", "raw_content"] for batch in batches)
    return [(row["digest"], row["raw_content"]) for batch in batches for row in batch.to_pylist()]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=40), st.integers(1, 9), st.integers(1, 400))
def test_slices_have_every_document_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rows: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("documents") / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=rows)
    assert read(path, size) == [(sha256(text), text) for text in texts]
    cut = slices(str(path), size)
    assert all(part.last - part.first == 1 or part.bytes <= size for part in cut)


def test_the_columns_that_count(tmp_path: Path) -> None:
    own = pa.array(["sha1:A", None, "sha1:C"])
    cases: list[tuple[dict[str, object], list[tuple[str, str]]]] = [
        ({"raw_content": ["a", "b", "c"], "digest": own}, [("sha1:A", "a"), (sha256("b"), "b"), ("sha1:C", "c")]),
        ({"text": ["x", "y", "z"], "raw_content": ["a", "b", "c"], "id": [1, 2, 3]}, [(sha256(t), t) for t in "abc"]),
        ({"raw_content": [1, 2, 3], "text": pa.array(["a", None, "c"], pa.large_string())}, [(sha256(t), t) for t in "ac"]),
        ({"meta": [{"text": 1}] * 3, "text": ["a", "", "c"]}, [(sha256(t), t) for t in ("a", "", "c")]),
    ]
    for number, (columns, expected) in enumerate(cases):
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
        assert read(tmp_path / f"{number}.parquet") == expected


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"raw_content": "a", "digest": "sha1:A"}, {"text": "ü\n日本"}, {"text": None}, {"text": "", "digest": None}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines) * 2000)
    expected = [("sha1:A", "a"), (sha256("ü\n日本"), "ü\n日本"), (sha256(""), "")]
    assert read(tmp_path / "a.jsonl") == expected
    assert read(tmp_path / "a.json.gz") == expected * 2000
    for bad in (b"no JSON", b"[1]", b'{"title": "x"}', b'{"text": 5}', b'"text"', b'{"text": "\\ud800"}', b"\xff"):
        (tmp_path / "bad.jsonl").write_bytes(lines + bad)
        with pytest.raises(ValueError, match=r"bad.jsonl: line 5 is no JSON object with a string raw_content or text"):
            read(tmp_path / "bad.jsonl")


def test_a_url(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    parts = slices(f"file://{tmp_path}/a.parquet", 1 << 20)
    assert [row for part in parts for batch in read_documents(part) for row in batch.column(1).to_pylist()] == ["a", "b"]


def test_errors_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "prose.parquet").write_text("not a Parquet file at all")
    pq.write_table(pa.table({"content": ["a"], "text": [1]}), tmp_path / "other.parquet")
    good = tmp_path / "good.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000] * 10}), good)
    (tmp_path / "cut.parquet").write_bytes(good.read_bytes()[:-20])
    (tmp_path / "empty.parquet").write_bytes(b"")
    cases = {"prose": "no Parquet file", "other": "no column raw_content or text", "cut": "no Parquet", "empty": "no Parquet"}
    for name, message in cases.items():
        with pytest.raises(ValueError, match=f"{name}.parquet: .*{message}|{name}.parquet: {message}") as error:
            read(tmp_path / f"{name}.parquet")
        assert "\n" not in str(error.value)


def test_broken_files_are_named(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(1000))
    packed = gzip.compress(lines)
    plain = tmp_path / "plain.parquet"
    table = pa.table({"text": [str(number) for number in range(1000)]})
    pq.write_table(table, plain, use_dictionary=False, compression="none")
    broken = {
        "cut.jsonl.gz": packed[: len(packed) // 2],
        "changed.jsonl.gz": packed[:-8] + bytes(8),
        "garbled.jsonl.gz": packed[:40] + b"\xff" * 40 + packed[80:],
        "unpacked.jsonl.gz": lines,
        "page.parquet": plain.read_bytes()[:10] + b"\xff" * 500 + plain.read_bytes()[510:],
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: can't be read: "):
            read(tmp_path / name)


def test_digests_and_texts_of_any_kind(tmp_path: Path) -> None:
    """Numbers as digests, and a text that is not UTF-8."""
    (tmp_path / "a.jsonl").write_text('{"text": "a", "digest": 7}\n')
    pq.write_table(pa.table({"text": ["a"], "digest": [7]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.parquet") == [("7", "a")]
    offsets = pa.py_buffer(b"\0\0\0\0\2\0\0\0")
    malformed = pa.StringArray.from_buffers(1, offsets, pa.py_buffer(b"\xffa"))
    pq.write_table(pa.table({"text": malformed}), tmp_path / "b.parquet")
    assert read(tmp_path / "b.parquet") == [(sha256("\ufffda"), "\ufffda")]
