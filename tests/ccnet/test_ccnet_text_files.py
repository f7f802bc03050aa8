"""Rows of JSON lines and Parquet files become pages like those of a crawl."""

import base64
import bz2
import gzip
import hashlib
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ccnet import text_files
from ccnet.crawl import Source
from ccnet.schema import PAGE
from ccnet.wet import read_pages, statistics

ROWS = [
    {"url": "http://a/", "date": "2024-01-02", "title": "T\ni", "text": "one \r\n\n two"},
    {"id": 7, "timestamp": "x", "text": "ü" * 400},
    {"url": None, "id": "b", "title": None, "text": "three"},
    {"text": "four\n"},
]


def read(path, **options):
    counts = Counter()
    batches = list(read_pages(Source(str(path), **options), counts, min_length=0))
    return pa.Table.from_batches(batches, PAGE).to_pylist(), statistics(counts)


def lines(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write(path, kind):
    if kind == "parquet":
        columns = ("url", "id", "date", "timestamp", "title", "text")
        rows = [{name: None if row.get(name) is None else str(row[name]) for name in columns} for row in ROWS]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        zstd = pa.Codec("zstd").compress(lines(), asbytes=True)
        packed = {"plain": lines(), "gzip": gzip.compress(lines()), "zstd": zstd, "bz2": bz2.compress(lines())}
        path.write_bytes(packed[kind])


def test_a_byte_order_mark_before_the_first_line(tmp_path):
    (tmp_path / "plain").write_bytes(lines())
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + lines())
    rows, counts = read(tmp_path / "marked")
    assert [row["raw_content"] for row in rows] == [row["raw_content"] for row in read(tmp_path / "plain")[0]]
    assert not any(counts["bad"].values())


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "bz2", "parquet"])
def test_columns(tmp_path, kind):
    path = tmp_path / "texts"
    write(path, kind)
    rows, counts = read(path)
    assert [row["url"] for row in rows[:3]] == ["http://a/", "7", "b"] and rows[3]["url"].startswith("texts#sha1:")
    assert [row["date_download"] for row in rows] == ["2024-01-02", "x", "", ""]
    assert [row["title"] for row in rows] == ["T i", "", "", ""]
    assert [row["raw_content"] for row in rows] == ["one\n\ntwo", "ü" * 400, "three", "four"]
    assert [row["original_length"] for row in rows] == [11, 800, 5, 5]
    assert [row["original_nlines"] for row in rows] == [3, 1, 1, 1]
    assert rows[2]["digest"] == "sha1:" + base64.b32encode(hashlib.sha1(b"three").digest()).decode()
    assert {row["cc_segment"] for row in rows} == {"texts"} and not counts["bad"] and counts["pages_read"] == 4


@pytest.mark.parametrize("line", [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"text": 1}', b'{"other": "x"}'])
def test_a_bad_line_costs_itself(tmp_path, line):
    (tmp_path / "a").write_bytes(lines(ROWS[:2]) + line + b"\n\n" + lines(ROWS[2:]))
    rows, counts = read(tmp_path / "a")
    assert len(rows) == 4
    assert counts["bad"] == ({"no_text": 1} if b":" in line else {"broken_record": 1})


def test_half_a_surrogate_pair(tmp_path):
    (tmp_path / "a").write_bytes(b'{"text": "a\\ud800b \\ud83c\\udf89"}\n')
    assert read(tmp_path / "a")[0][0]["raw_content"] == "a?b 🎉"


def test_another_column(tmp_path):
    (tmp_path / "a").write_bytes(b'{"text": "no", "content": "yes"}\n')
    assert read(tmp_path / "a", text_column="content")[0][0]["raw_content"] == "yes"
    pq.write_table(pa.table({"content": ["yes", None], "n": [1, 2]}), tmp_path / "b")
    rows, counts = read(tmp_path / "b", text_column="content")
    assert [row["raw_content"] for row in rows] == ["yes"] and counts["bad"] == {"no_text": 1}
    with pytest.raises(ValueError, match=r"no column 'text' of strings; choose crawl\.text_column from content, n"):
        read(tmp_path / "b")
    with pytest.raises(ValueError, match="no column 'n' of strings"):
        read(tmp_path / "b", text_column="n")


def test_a_line_too_large_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE", 3 << 20)
    (tmp_path / "a").write_bytes(lines(ROWS[:2]) + lines([{"text": "x" * (5 << 20)}]) + lines(ROWS[2:]))
    rows, counts = read(tmp_path / "a")
    assert len(rows) == 4 and counts["bad"] == {"too_large": 1}


@pytest.mark.parametrize("kind", ["gzip", "zstd", "bz2", "parquet"])
def test_a_file_that_is_cut_is_counted(tmp_path, kind):
    path = tmp_path / "a"
    rows = [{"text": random.Random(n).randbytes(3000).hex()} for n in range(1000)]
    data = lines(rows)
    packed = {"gzip": gzip.compress, "zstd": lambda d: pa.Codec("zstd").compress(d, asbytes=True), "bz2": bz2.compress}
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(packed[kind](data))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, counts = read(path)
    assert [row["raw_content"] for row in found] == [row["text"] for row in rows[: len(found)]]
    assert sum(counts["bad"].values()) == 1 and (len(found) > 100 or kind == "parquet")
