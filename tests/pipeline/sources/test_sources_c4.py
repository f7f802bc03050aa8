"""C4's files, and what Hugging Face's `datasets` streams."""

import functools
import gzip
import http.server
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import read

from pipeline.sources import c4

ROWS = [
    {"text": f"Page {n}.\nSecond line of {n}.", "timestamp": "2019-04-25T12:57:54Z", "url": f"http://x.org/{n}"}
    for n in range(20)
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set as the hub has C4: two files of a split, and one of another."""
    folder = tmp_path_factory.mktemp("c4")
    for number, rows in enumerate((ROWS[:12], ROWS[12:])):
        (folder / f"c4-train.{number:05d}-of-00002.json.gz").write_bytes(gzip.compress(lines(rows)))
    (folder / "c4-validation.00000-of-00001.json.gz").write_bytes(gzip.compress(lines(ROWS[:3])))
    return folder


def check(documents, rows=ROWS):
    assert [(d.text, d.url, d.date, d.language) for d in documents] == [
        (row["text"], row["url"], row["timestamp"], "en") for row in rows
    ]


def test_files_of_all_kinds(tmp_path, folder):
    check([d for path in c4.files(f"{folder}/c4-train*") for d in read("c4", path)[0]])
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c4.parquet")
    check(read("c4", tmp_path / "c4.parquet")[0])
    (tmp_path / "c4.jsonl").write_bytes(lines(ROWS))
    check(read("c4", tmp_path / "c4.jsonl")[0])


def test_broken_rows_are_counted(tmp_path):
    (tmp_path / "c4.jsonl").write_bytes(
        lines(ROWS[:1]) + b'{"text": 3}\n{"text\n[]\n\n' + b"[" * 100_000 + b"\n" + lines(ROWS[1:2])
    )
    documents, counts = read("c4", tmp_path / "c4.jsonl")
    check(documents, ROWS[:2])
    assert counts == {"bad_no_text": 1, "bad_broken_record": 3}
    whole = gzip.compress(lines(ROWS * 500))
    (tmp_path / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    documents, counts = read("c4", tmp_path / "cut.json.gz")
    assert documents and counts == {"bad_truncated": 1}


def test_a_local_data_set_is_streamed_by_shards(folder):
    names = c4.files(f"datasets:{folder}")
    assert names == [f"datasets:{folder}#0/2", f"datasets:{folder}#1/2"]
    shards = [read("c4", name)[0] for name in names]
    assert [len(shard) for shard in shards] == [12, 8]
    assert [d.text for shard in shards for d in shard] == [row["text"] for row in ROWS]
    assert [d.url for d in shards[0]] == [row["url"] for row in ROWS[:12]]
    assert len(read("c4", c4.files(f"datasets:{folder}::validation")[0])[0]) == 3
    assert len({c4.prints(name) for name in names}) == 2 and c4.prints(names[0]) == c4.prints(names[0])


def test_files_are_streamed_over_http(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        check(read("c4", f"http://127.0.0.1:{server.server_port}/c4-train.00000-of-00002.json.gz")[0], ROWS[:12])
        server.shutdown()


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="can't be streamed"):
        c4.files(f"datasets:{tmp_path}/none")
