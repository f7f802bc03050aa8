"""Where segments come from: own files, standard input, snapshots; and what is left alone when more of them come."""

import gzip
import io
import json
import os
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_server import CrawlServer
from wet_files import wet_record, write_wet

from pipeline.__main__ import main
from pipeline.outputs import read_json
from pipeline.stages.fetch import _names

MIB = 1 << 20


def run(stage, out, *overrides):
    assert main([stage, f"out={out}", "dedup.partitions=2", "executor.workers=2", *overrides]) == 0


def fails(capsys, stage, out, *overrides):
    assert main([stage, f"out={out}", *overrides]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def segments(out):
    return read_json(out / "records/fetch.json")["result"]["segments"]


def hashed(out):
    """(units that were done, statistics) of hash."""
    return read_json(out / "records/hash.json")["result"]["statistics"]


def record_times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "records/hash/hash").glob("*/*.json")}


def pages(first, number, size=400):
    return [(f"http://{n}/", f"t{n}", [random.Random(n).randbytes(size).hex()]) for n in range(first, first + number)]


def texts(first, number):
    return [{"text": random.Random(n).randbytes(400).hex(), "content": "other " * 100} for n in range(first, first + number)]


@pytest.fixture
def server():
    files = {}
    for year, number in (("2024-10", 3), ("2023-06", 2)):
        dump = f"crawl-data/CC-MAIN-{year}"
        paths = [f"{dump}/segments/{n}/wet/CC-MAIN-{year[:4]}0101-{n:05d}.warc.wet.gz" for n in range(number)]
        files[f"{dump}/wet.paths.gz"] = gzip.compress("\n".join(paths).encode())
        for n, path in enumerate(paths):
            records = [wet_record(*page) for page in pages(1000 * int(year[:4]) + 10 * n, 10)]
            files[path] = b"".join(gzip.compress(record, mtime=0) for record in records)
    with CrawlServer(files) as running:
        yield running


def snapshot(server, *dumps):
    return ["crawl=common_crawl", f"crawl.root={server.root}", f"crawl.dump=[{','.join(f'CC-MAIN-{d}' for d in dumps)}]"]


@pytest.mark.slow
def test_a_folder_has_all_its_crawl_files(tmp_path):
    folder = tmp_path / "crawl"
    (folder / "b").mkdir(parents=True)
    write_wet(folder / "b" / "x.warc.wet.gz", pages(0, 3))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(10, 4)))
    (folder / "c.json.gz").write_bytes(gzip.compress(json.dumps(texts(20, 1)[0]).encode()))
    pq.write_table(pa.Table.from_pylist(texts(30, 5)), folder / "d.parquet")
    (folder / "notes.txt").write_text("no crawl")
    run("fetch", tmp_path / "out", f"crawl.files=[{folder}]")
    assert [s["name"] for s in segments(tmp_path / "out")] == ["a", "x", "c", "d"]
    run("hash", tmp_path / "out", f"crawl.files=[{folder}]")
    found = hashed(tmp_path / "out")
    assert found["pages_read"] == 13 and found["keys"] == 13 and not found["bad"]


def test_a_folder_without_crawl_files(tmp_path, capsys):
    assert "no file with a suffix of crawl files" in fails(capsys, "fetch", tmp_path / "out", f"crawl.files=[{tmp_path}]")


@pytest.mark.slow
def test_another_text_column_reads_the_files_again(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(0, 4)))
    out, files = tmp_path / "out", f"crawl.files=[{tmp_path}/a.jsonl]"
    for column, keys in (("text", 4), ("content", 4)):
        run("fetch", out, files, f"crawl.text_column={column}")
        run("hash", out, files, f"crawl.text_column={column}")
        assert hashed(out)["keys"] == keys
    run("dedup", out, files, "crawl.text_column=content")
    assert read_json(out / "records/dedup.json")["result"]["statistics"]["kept"] == 1


@pytest.mark.slow
def test_standard_input_is_kept(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    data = b"".join(wet_record(*page) for page in pages(0, 5))

    def piped(data):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    piped(b"")
    assert "nothing comes from standard input" in fails(capsys, "fetch", out, "crawl.files=[-]")
    piped(data)
    run("fetch", out, "crawl.files=[-]")
    run("hash", out, "crawl.files=[-]")
    assert hashed(out)["pages_read"] == 5
    before, times = segments(out), record_times(out)
    piped(b"")
    run("fetch", out, "crawl.files=[-]")
    assert segments(out) == before
    piped(data + wet_record(*pages(9, 1)[0]))
    run("fetch", out, "crawl.files=[-]")
    run("hash", out, "crawl.files=[-]")
    assert hashed(out)["pages_read"] == 6 and record_times(out) != times
    assert len(list((out / "crawl").iterdir())) == 1


@pytest.mark.slow
def test_a_large_file_is_shared_and_gives_the_same(tmp_path):
    path = write_wet(tmp_path / "large.warc.wet.gz", [*pages(0, 3000, 700), *pages(100, 50, 700)])
    files = f"crawl.files=[{path}]"
    assert path.stat().st_size > 2 * MIB
    for out, split_bytes in ((tmp_path / "whole", 256 * MIB), (tmp_path / "parts", MIB)):
        for stage in ("fetch", "hash", "dedup"):
            run(stage, out, files, f"crawl.split_bytes={split_bytes}")
    parts = segments(tmp_path / "parts")
    assert len(segments(tmp_path / "whole")) == 1 and [s["name"] for s in parts] == [
        f"large.{n:04d}" for n in range(len(parts))
    ]
    assert [s["part"][0] for s in parts] == [0, *(s["part"][1] for s in parts[:-1])] and len(parts) >= 2
    whole, shared = hashed(tmp_path / "whole"), hashed(tmp_path / "parts")
    assert whole == shared
    results = [
        read_json(out / "records/dedup.json")["result"]["statistics"] for out in (tmp_path / "whole", tmp_path / "parts")
    ]
    assert results[0] == results[1] and results[0]["kept"] == 3000


@pytest.mark.slow
def test_new_files_are_taken_in_and_only_they(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "b").mkdir()
    first = write_wet(tmp_path / "x.warc.wet.gz", pages(0, 3))
    run("fetch", out, f"crawl.files=[{first}]")
    run("hash", out, f"crawl.files=[{first}]")
    times = record_times(out)
    second = write_wet(tmp_path / "b" / "x.warc.wet.gz", pages(10, 3))  # of the same name
    run("fetch", out, f"crawl.files=[{first},{second}]")
    run("hash", out, f"crawl.files=[{first},{second}]")
    assert hashed(out)["pages_read"] == 6 and len(record_times(out)) == 2
    assert {name: record_times(out)[name] for name in times} == times


def test_names():
    assert _names(["/a/x.gz", "y.wet", "/b/x.gz"])[:2] == ["x", "y"]
    assert len(set(_names(["/a/x.gz", "/b/x.gz", "/c/x.gz"]))) == 3


@pytest.mark.slow
def test_a_snapshot_is_downloaded_through_faults(tmp_path, server):
    out = tmp_path / "out"
    paths = [path for path in server.files if path.endswith(".wet.gz")]
    server.faults[paths[0]] = ["503", "cut"]
    server.faults[paths[1]] = ["reset"]
    server.faults["crawl-data/CC-MAIN-2024-10/wet.paths.gz"] = ["503"]
    options = snapshot(server, "2024-10", "2023-06")
    run("fetch", out, *options)
    found = segments(out)
    assert [s["source"] for s in found] == [f"crawl/{path}" for path in paths]
    assert all((out / "crawl" / path).read_bytes() == server.files[path] for path in paths)
    run("hash", out, *options)
    assert hashed(out)["pages_read"] == 50 and not hashed(out)["bad"]
    server.requests.clear()
    run("fetch", out, *options)
    assert not server.requests and segments(out) == found


@pytest.mark.slow
def test_more_of_a_snapshot_is_taken_in_and_only_it(tmp_path, server):
    out = tmp_path / "out"
    run("fetch", out, *snapshot(server, "2024-10"), "crawl.segments=[0:2]")
    run("hash", out, *snapshot(server, "2024-10"))
    first, times = segments(out), record_times(out)
    server.requests.clear()
    run("fetch", out, *snapshot(server, "2024-10", "2023-06"), "crawl.segments=[0:2]")
    assert segments(out)[:2] == first and len(segments(out)) == 4
    assert all("2023-06" in path for path, _ in server.requests) and len(server.requests) == 3
    run("hash", out, *snapshot(server, "2024-10", "2023-06"))
    assert len(record_times(out)) == 4 and {name: record_times(out)[name] for name in times} == times
    run("fetch", out, *snapshot(server, "2023-06"))
    assert len(segments(out)) == 2 and not list(out.glob("crawl/crawl-data/CC-MAIN-2024-10/segments/*/wet/*"))


@pytest.mark.slow
def test_a_snapshot_is_streamed(tmp_path, server):
    out = tmp_path / "out"
    options = [*snapshot(server, "2024-10"), "crawl.download=false", "crawl.segments=[2,0]"]
    run("fetch", out, *options)
    paths = [path for path in server.files if "2024-10" in path and path.endswith(".wet.gz")]
    assert [s["source"] for s in segments(out)] == [server.root + paths[2], server.root + paths[0]]
    server.faults[paths[2]] = ["503", "cut"]
    run("hash", out, *options)
    assert hashed(out)["pages_read"] == 20
    assert not list(out.glob("crawl/**/*.wet.gz"))


def test_no_more_connections_than_wanted(tmp_path, server):
    run("fetch", tmp_path / "out", *snapshot(server, "2024-10"), "crawl.connections=1", "executor.workers=3")
    assert server.most == 1


def test_mistakes_are_one_line(tmp_path, server, capsys):
    out = tmp_path / "out"
    assert "crawl.dump is empty" in fails(capsys, "fetch", out, "crawl=common_crawl")
    line = fails(capsys, "fetch", out, *snapshot(server, "2099-01"))
    assert "there is no snapshot CC-MAIN-2099-01 at http://127.0.0.1" in line
    assert "no name of a snapshot" in fails(capsys, "fetch", out, *snapshot(server, "latest"))
    assert "there is no segment 9" in fails(capsys, "fetch", out, *snapshot(server, "2024-10"), "crawl.segments=[9]")
    assert "neither a number nor a slice" in fails(capsys, "fetch", out, *snapshot(server, "2024-10"), "crawl.segments=[x]")


def test_one_file_that_is_gone_costs_itself(tmp_path, server, capsys):
    out = tmp_path / "out"
    gone = [path for path in server.files if path.endswith(".wet.gz")][1]
    server.faults[gone] = ["404"] * 3  # as often as it is tried
    line = fails(capsys, "fetch", out, *snapshot(server, "2024-10"))
    assert "1 of 3 units failed, the others are done" in line and "there is no such file (HTTP 404)" in line
    server.requests.clear()
    run("fetch", out, *snapshot(server, "2024-10"))
    assert [path for path, _ in server.requests] == [gone]


def test_relative_paths_are_made_absolute(tmp_path, monkeypatch):
    write_wet(tmp_path / "a.wet", pages(0, 1))
    monkeypatch.chdir(tmp_path)
    run("fetch", tmp_path / "out", "crawl.files=[a.wet]")
    [segment] = segments(tmp_path / "out")
    assert segment["source"] == os.path.abspath("a.wet") and Path(segment["source"]).exists()
