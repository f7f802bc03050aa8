"""Pages out of good, odd and broken crawl files; whatever breaks, the other pages are all there."""

import base64
import gzip
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wet_files import wet_record, write_wet

from ccnet import gzip_members, records, wet
from ccnet.schema import PAGE
from ccnet.wet import read_pages, statistics

INFO = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 9\r\n\r\nrobots: x\r\n\r\n"
PAGES = [(f"http://site{i}.org/", f"Title {i}", [f"line {i} of", "", f"page {i} " * i]) for i in range(6)]
URLS = [url for url, _, _ in PAGES]


def read(path: Path | str, **options: int) -> tuple[list[dict], Counter[str]]:
    counts: Counter[str] = Counter()
    batches = list(read_pages(str(path), counts, **{"min_length": 0, **options}))
    assert all(batch.schema == PAGE and len(batch) for batch in batches)
    return (pa.Table.from_batches(batches, PAGE).to_pylist(), counts)


def read_bytes(data: bytes, tmp_path: Path) -> tuple[list[str], dict[str, int]]:
    """The URLs of the pages, and the faults."""
    path = tmp_path / "crawl"
    path.write_bytes(data)
    rows, counts = read(path)
    return [row["url"] for row in rows], statistics(counts)["bad"]


def digest(body: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(body).digest()).decode()


def test_columns_and_counts(tmp_path):
    path = write_wet(tmp_path / "a.warc.wet.gz", [("http://a.org/x", " Ti tle ", ["one", " two\t", "", "drei ü"])])
    (row,), counts = read(path)
    assert row == {
        "url": "http://a.org/x",
        "date_download": "2024-05-18T01:58:10Z",
        "digest": digest(" Ti tle \none\n two\t\n\ndrei ü\n".encode()),
        "cc_segment": "a.warc.wet.gz",
        "title": "Ti tle",
        "raw_content": "one\ntwo\n\ndrei ü",
        "original_nlines": 4,
        "original_length": 28,
    }
    assert counts == {"pages_read": 1, "bytes_read": 28, "chars_read": 21, "lines_read": 5}


def test_segment_name_has_no_local_path(tmp_path):
    folder = tmp_path / "crawl-data/CC-MAIN-2024-22/segments/1/wet"
    folder.mkdir(parents=True)
    (row,), _ = read(write_wet(folder / "b.gz", [("http://a/", "t", ["x"])]))
    assert row["cc_segment"] == "crawl-data/CC-MAIN-2024-22/segments/1/wet/b.gz"


def test_short_pages_are_dropped_and_counted(tmp_path):
    pages = [("http://a/", "t", ["x" * 299]), ("http://b/", "t", ["ü" * 150, "y" * 149]), ("http://c/", "t", [])]
    rows, counts = read(write_wet(tmp_path / "a", pages), min_length=300)
    assert [row["url"] for row in rows] == ["http://b/"]
    assert (counts["dropped_short"], counts["dropped_short_chars"], counts["pages_read"]) == (2, 299, 3)
    assert [row["url"] for row in read(tmp_path / "a")[0]] == ["http://a/", "http://b/"]


def test_batches_hold_about_what_is_asked(tmp_path):
    path = write_wet(tmp_path / "a", [(f"http://{i}/", "t", ["x" * 1000]) for i in range(100)])
    sizes = [len(batch) for batch in read_pages(str(path), Counter(), batch_bytes=10_000)]
    assert sizes == [10] * 10


def test_line_ends_and_white_space(tmp_path):
    body = "t\r\na\rb\n\n\xa0 c\u2028d \x1c\u3000\n\x0ce\x0bf\n".encode()
    header = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: <u>\r\nContent-Length: {len(body)}\r\n\r\n"
    (tmp_path / "a").write_bytes(header.encode() + body + b"\r\n\r\n")
    (row,), _ = read(tmp_path / "a")
    assert row["raw_content"].split("\n") == ["a", "b", "", "c\u2028d", "e\x0bf"]
    assert row["original_nlines"] == 5 and row["url"] == "u" and row["date_download"] == ""
    assert row["digest"] == digest(body)


def test_every_packing_gives_the_same_pages(tmp_path):
    records = [INFO, *(wet_record(*page) for page in PAGES)]
    members = b"".join(map(gzip.compress, records))
    plain = b"".join(records)
    wanted, _ = read(write_wet(tmp_path / "wanted", PAGES))
    for name, data in {
        "members": members,
        "one stream": gzip.compress(plain),
        "plain": plain,
        "LF only": gzip.compress(plain.replace(b"\r\n", b"\n")),
        "no language header": plain.replace(b"WARC-Identified-Content-Language: eng\r\n", b""),
        "names in lower case": plain.replace(b"Content-Length", b"content-length"),
        "zeros at the end": members + bytes(1000),
        "no line ends at the end": plain.removesuffix(b"\r\n\r\n"),
    }.items():
        (tmp_path / "crawl").write_bytes(data)
        rows, counts = read(tmp_path / "crawl")
        assert [row | {"cc_segment": "wanted"} for row in rows] == wanted, name
        assert not statistics(counts)["bad"], name


def test_body_that_looks_like_a_record(tmp_path):
    fake = wet_record("http://fake/", "t", ["x"]).decode()
    path = write_wet(tmp_path / "a", [("http://a/", "t", [fake]), *PAGES])
    rows, counts = read(path)
    assert [row["url"] for row in rows] == ["http://a/", *URLS] and not statistics(counts)["bad"]


def test_cut_anywhere_keeps_what_is_before(tmp_path):
    members = [gzip.compress(record) for record in [INFO, *(wet_record(*page) for page in PAGES)]]
    ends = [sum(map(len, members[:n])) for n in range(1, len(members) + 1)]
    data = b"".join(members)
    for cut in range(3, len(data)):
        urls, bad = read_bytes(data[:cut], tmp_path)
        whole = sum(end <= cut for end in ends) - 1
        assert urls[: max(whole, 0)] == URLS[: max(whole, 0)] and urls == URLS[: len(urls)] and len(urls) <= whole + 1
        assert bad == ({} if cut in ends else {"truncated": 1})


def test_cut_of_one_stream_keeps_what_is_before(tmp_path):
    pages = [(f"http://{i}/", "t", [f"{i * 7919 % 10007}" * 40]) for i in range(200)]
    data = gzip.compress(b"".join(wet_record(*page) for page in pages))
    found = []
    for cut in (100, len(data) // 2, len(data) - 9, len(data) - 1):
        urls, bad = read_bytes(data[:cut], tmp_path)
        assert urls == [url for url, _, _ in pages][: len(urls)] and bad == {"truncated": 1}
        found.append(len(urls))
    assert found == sorted(found) and found[1] > 60 and found[-1] == 200


def test_cut_of_a_plain_file(tmp_path):
    data = b"".join(wet_record(*page) for page in PAGES)
    assert read_bytes(data[:-30], tmp_path) == (URLS[:-1], {"truncated": 1})


def test_flipped_byte_costs_one_member(tmp_path):
    members = [gzip.compress(record) for record in [INFO, *(wet_record(*page) for page in PAGES)]]
    start = 0
    for number, member in enumerate(members):
        others = [url for i, url in enumerate(URLS, 1) if i != number]
        for position in range(max(start, 3), start + len(member), 3):
            data = bytearray(b"".join(members))
            data[position] ^= 0xA5
            urls, bad = read_bytes(bytes(data), tmp_path)
            assert [url for url in urls if url in others] == others
            assert urls == URLS or bad, position
        start += len(member)


@pytest.mark.parametrize(
    "old, new, bad",
    [
        (b"Content-Length: ", b"Content-Lxngth: ", "broken_record"),
        (b"Content-Length: ", b"Content-Length: -", "broken_record"),
        (b"Content-Length: ", b"Content-Length: 1", "broken_record"),
        (b"Content-Length: ", b"Content-Length: 9999", "broken_record"),
        (b"Content-Length: ", b"Content-Length: 99999999999999", "too_large"),
        (b"Content-Length: ", b"Content-Length: 9999999999999999999999999999", "broken_record"),
        (b"line 2 of", b"ne 2", "broken_record"),
        (b"line 2 of", b"line 2 of and more", "broken_record"),
        (b"WARC-Target-URI", b"WARC-Target", "broken_record"),
        (b"WARC-Type: conversion", b"WARC-Type:", "broken_record"),
        (b"WARC/1.0", b"WXRC/1.0", "broken_record"),
        (b"WARC/1.0", b"junk\r\njunkWARC/1.0", "broken_record"),
        (b"WARC/1.0", b"WARC/1.0\r\nX: " + b"y" * 70_000, "broken_record"),
    ],
)
def test_broken_record_costs_itself_only(old, new, bad, tmp_path):
    records = [INFO, *(wet_record(*page) for page in PAGES)]
    assert old in records[3]
    records[3] = records[3].replace(old, new, 1)
    urls, faults = read_bytes(b"".join(records), tmp_path)
    kept = [url for url in URLS if url != URLS[2]]
    # What comes before a record's start costs the record before it; its body cannot be told from the junk.
    if new.startswith((b"WXRC", b"junk")):
        assert faults == {bad: 1} or faults == {bad: 2}
        assert [url for url in urls if url in kept] == [url for url in kept if url in urls] and len(urls) >= 4
    else:
        assert (urls, faults) == (kept, {bad: 1})


def test_body_too_large_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_BODY", 1000)
    pages = [PAGES[0], ("http://large/", "t", ["x" * 5000]), *PAGES[1:]]
    urls, bad = read_bytes(b"".join(wet_record(*page) for page in pages), tmp_path)
    assert (urls, bad) == (URLS, {"too_large": 1})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n\n",
        b"<!DOCTYPE html><title>404</title>\n" * 9,
        bytes(range(256)) * 100,
        gzip.compress(b"hello"),
        gzip.compress(b""),
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        b"x" * 3_000_000,
    ],
    ids=["empty", "line ends", "html", "bytes", "gzip", "empty gzip", "png", "large"],
)
def test_not_a_crawl_file(data, tmp_path):
    assert read_bytes(data, tmp_path) == ([], {"not_a_crawl_file": 1})


def test_corrupt_gzip_from_the_first_byte_on(tmp_path):
    assert read_bytes(wet.GZIP + b"\x00" * 5000, tmp_path) == ([], {"corrupt_gzip": 1})


def test_undecodable_bytes_become_replacement_characters(tmp_path):
    data = wet_record("http://a/", "t", ["caf_ au lait"]).replace(b"caf_", b"caf\xe9") + wet_record(*PAGES[0])
    (tmp_path / "a").write_bytes(data)
    rows, counts = read(tmp_path / "a")
    assert [row["raw_content"].split("\n")[0] for row in rows] == ["caf\ufffd au lait", "line 0 of"]
    assert statistics(counts)["bad"] == {"undecodable": 1}


def test_other_records_are_skipped_and_counted(tmp_path):
    request = b"WARC/1.1\r\nWARC-Type: request\r\nWARC-Target-URI: http://r/\r\nContent-Length: 4\r\n\r\nHTTP\r\n\r\n"
    (tmp_path / "a").write_bytes(INFO + request + wet_record(*PAGES[0]) + request.replace(b"request", b"invented"))
    rows, counts = read(tmp_path / "a")
    assert [row["url"] for row in rows] == URLS[:1]
    assert statistics(counts)["skipped"] == {"request": 1, "other": 1} and not statistics(counts)["bad"]


def test_url_as_source(tmp_path):
    path = write_wet(tmp_path / "a", PAGES)
    with fsspec.open("memory://crawl/a.gz", "wb") as file:
        file.write(path.read_bytes())
    assert [row["url"] for row in read("memory://crawl/a.gz")[0]] == URLS


def test_missing_file_is_an_error():
    with pytest.raises(FileNotFoundError):
        read("no/such/file")


# A carriage return would end a line, and the last line may not be empty: its line end would be taken for the body's.
line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=30)
page = st.tuples(st.just("http://x/"), line, st.lists(line, max_size=5))


@given(st.lists(page, max_size=6), st.sampled_from([1, 3, 50, 100_000]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_pages_however_they_are_cut_into_chunks(tmp_path_factory, pages, chunk, compressed):
    path = write_wet(tmp_path_factory.getbasetemp() / "any.gz", pages)
    if not compressed:
        path.write_bytes(gzip.decompress(path.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wet, "CHUNK", chunk)
        patch.setattr(gzip_members, "CHUNK", chunk)
        rows, counts = read(path)
    contents = ["\n".join(map(str.strip, lines)) for _, _, lines in pages]
    assert [row["raw_content"] for row in rows] == [content for content in contents if content]
    assert not statistics(counts)["bad"] and counts["pages_read"] == len(pages)


def test_lines_as_ccnet_counts_them(shared_data):
    gold = {}
    with gzip.open(shared_data / "gold/ccnet_segments_0_1.jsonl.gz", "rt") as file:
        for document in map(json.loads, file):
            gold[document["segment"], document["url"], document["digest"]] = document["original_nlines"]
    found = {}
    for segment in ("seg-00000", "seg-00001"):
        rows, counts = read(shared_data / f"crawl/segments/{segment}.warc.wet.gz", min_length=300)
        assert not statistics(counts)["bad"]
        found |= {(row["cc_segment"], row["url"], row["digest"]): row["original_nlines"] for row in rows}
    assert {key: found[key] for key in gold} == gold


@pytest.mark.parametrize(
    "name, pages, dropped, skipped, bad",
    [
        ("whirlwind.warc.wet.gz", 1, 0, {}, {}),
        ("lf_only_whole_gzip.warc.wet.gz", 2, 0, {}, {}),
        ("old_headers.warc.wet", 2, 1, {}, {}),
        ("ipwb_sample-1.warc.gz", 63, 0, {"request": 75, "metadata": 75, "revisit": 10, "status": 1, "content_type": 6}, {}),
        ("sample-0000.warc.gz", 22, 0, {"request": 22, "metadata": 1, "resource": 2}, {}),
        ("giant_html.warc.gz", 0, 0, {}, {"too_large": 1}),
    ],
)
def test_odd_files(shared_data, name, pages, dropped, skipped, bad):
    rows, counts = read(shared_data / "crawl/odd" / name, min_length=300)
    found = statistics(counts)
    assert (len(rows), counts["dropped_short"], found["skipped"], found["bad"]) == (pages, dropped, skipped, bad)


def test_giant_record_in_little_memory(shared_data):
    script = (
        "import resource, sys; from collections import Counter; from ccnet.wet import read_pages; counts = Counter();"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; pages = list(read_pages(sys.argv[1], counts));"
        "print(len(pages), dict(counts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000)"
    )
    path = shared_data / "crawl/odd/giant_html.warc.gz"
    command = [sys.executable, "-c", script, str(path)]
    output = subprocess.run(command, cwd=Path(wet.__file__).parents[1], capture_output=True, text=True, check=True)
    assert output.stdout == "0 {'bad_too_large': 1} True\n"
