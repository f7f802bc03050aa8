"""A file in parts gives what it gives as a whole: every record once, in order, whatever lies across the cuts."""

import gzip
import json
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wet_files import wet_record, write_wet

from ccnet import gzip_members, parts
from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks, hash_segment, mark_partition, segment_offsets
from ccnet.filter import Rules, Tally, surviving_documents
from ccnet.language import LanguageIdentifier, default_model
from ccnet.parts import split
from ccnet.schema import PAGE
from ccnet.stats import merge
from ccnet.wet import read_pages


def rows(source, counts=None):
    counts = Counter() if counts is None else counts
    return pa.Table.from_batches(read_pages(source, counts, min_length=0), PAGE).to_pylist()


def rows_in_parts(path, split_bytes, counts=None):
    found = split(str(path), split_bytes)
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])] and found[-1][1] == path.stat().st_size
    return [row for part in found for row in rows(Source(str(path), part), counts)], len(found)


def record(number, size=3000):
    noise = random.Random(number)
    return wet_record(f"http://{number}/", f"title {number}", [noise.randbytes(noise.randrange(size)).hex(), "", "end"])


RECORDS = [record(number) for number in range(60)]
GZIPPED = b"".join(gzip.compress(r, mtime=0) for r in RECORDS)
TEXTS = [{"url": f"http://{n}/" if n % 2 else None, "text": random.Random(n).randbytes(500).hex() + "\nüß"} for n in range(300)]


def write_parquet(path):
    pq.write_table(pa.Table.from_pylist(TEXTS), path, row_group_size=20)


@pytest.mark.parametrize("kind", ["gzip members", "plain", "json lines", "parquet"])
@pytest.mark.parametrize("split_bytes", [1500, 5000, 20_011, 10**9])
def test_parts_are_the_whole(tmp_path, kind, split_bytes):
    path = tmp_path / "a"
    if kind == "parquet":
        write_parquet(path)
    else:
        lines = "".join(json.dumps(text) + "\n" for text in TEXTS).encode()
        path.write_bytes({"gzip members": GZIPPED, "plain": b"".join(RECORDS), "json lines": lines}[kind])
    whole, in_parts = Counter(), Counter()
    expected = rows(str(path), whole)
    found, number = rows_in_parts(path, split_bytes, in_parts)
    if kind in ("json lines", "parquet"):
        assert [row["raw_content"] for row in expected] == [text["text"] for text in TEXTS]
    assert found == expected and in_parts == whole
    if split_bytes == 10**9:
        assert number == 1
    elif split_bytes <= 5000:
        assert number >= 15


@pytest.mark.parametrize("data", [gzip.compress(b"".join(RECORDS)), b"", b"x" * 50_000, gzip.compress(b"{}" * 50_000)], ids=len)
def test_a_file_that_cannot_be_cut_is_one_part(tmp_path, data):
    path = tmp_path / "a"
    path.write_bytes(data)
    assert split(str(path), 1000) == [(0, len(data))]


def test_a_crawl_file_stored_in_a_record_is_no_place_to_cut(tmp_path):
    """Gzip stores what it cannot compress as it is, so members lie in the bytes of a member."""
    inner = b"".join(gzip.compress(record(n), mtime=0) for n in range(100, 110))
    body = b"WARC/1.0\r\nWARC-Type: resource\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(inner), inner)
    members = [gzip.compress(r, mtime=0) for r in RECORDS[:5]]
    outer = gzip.compress(body, compresslevel=0, mtime=0)
    assert gzip.compress(record(105), mtime=0) in outer
    path = tmp_path / "a"
    path.write_bytes(b"".join([*members[:3], outer, *members[3:]]))
    for split_bytes in (500, 2000, 9000):
        assert rows_in_parts(path, split_bytes)[0] == rows(str(path))
    assert len(rows(str(path))) == 5


def test_a_body_that_looks_like_a_record_is_no_place_to_cut(tmp_path):
    fakes = [f"{record(n, 50).decode()}" for n in range(100, 130)]
    path = tmp_path / "a"
    path.write_bytes(b"".join([RECORDS[0], wet_record("http://fakes/", "t", fakes), *RECORDS[1:4]]))
    expected = rows(str(path))
    assert len(expected) == 5
    for split_bytes in (100, 1000, 3000):
        assert rows_in_parts(path, split_bytes)[0] == expected


@given(st.integers(2000, 30_000), st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=200)), max_size=4))
@example(2000, [(0.0, b"{")])  # begins like JSON lines
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("compressed", [True, False])
def test_bad_bytes_lose_and_double_nothing_across_parts(tmp_path_factory, compressed, split_bytes, breaks):
    data = bytearray(GZIPPED if compressed else b"".join(RECORDS))
    for place, junk in breaks:
        at = int(place * len(data))
        data[at : at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(data)
    whole, in_parts = Counter(), Counter()
    expected = rows(str(path), whole)
    assert rows_in_parts(path, split_bytes, in_parts)[0] == expected
    assert in_parts["pages_read"] == whole["pages_read"]
    bad = [sum(n for name, n in counts.items() if name.startswith("bad_")) for counts in (whole, in_parts)]
    assert (bad[0] > 0) == (bad[1] > 0)


def test_members_that_begin_far_before_the_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(gzip_members, "LOOK_BACK", 10)
    monkeypatch.setattr(parts, "LOOK_BACK", 10)
    path = write_wet(tmp_path / "a", [(f"http://{n}/", "t", [random.Random(n).randbytes(900).hex()]) for n in range(50)])
    found, number = rows_in_parts(path, 3000)
    assert found == rows(str(path)) and number > 10


def test_the_real_segments(shared_data):
    for path in sorted((shared_data / "crawl/segments").glob("*.gz")):
        whole, in_parts = Counter(), Counter()
        expected = rows(str(path), whole)
        found, number = rows_in_parts(path, 300_000, in_parts)
        assert found == expected and in_parts == whole and number in (6, 7)


def test_parts_go_through_deduplication_and_filters_as_the_whole_does(tmp_path, shared_data):
    path = shared_data / "crawl/segments/seg-00000.warc.wet.gz"
    identifier = LanguageIdentifier(default_model())

    def documents(sources):
        keys = [tmp_path / f"{len(sources)}-{number}.keys" for number in range(len(sources))]
        counts = [hash_segment(s, k, partitions=2)["partition_keys"] for s, k in zip(sources, keys, strict=True)]
        partition_keys = np.array(counts, np.int64)
        marks = [tmp_path / f"{len(sources)}-{partition}.marks" for partition in range(2)]
        for partition in range(2):
            mark_partition(keys, partition, partition_keys, "first", marks[partition], tmp_path / "digests")
        offsets = segment_offsets(partition_keys)
        tallies = [Tally() for _ in sources]
        found = [
            {name: list(value) if name == "line_ids" else value for name, value in document.items()}
            for number, source in enumerate(sources)
            for document in surviving_documents(
                source,
                SegmentMarks(marks, offsets[number], partition_keys[number]),
                identifier,
                Rules(),
                tallies[number],
                held_out=False,
            )
        ]
        return found, merge([tally.statistics() for tally in tallies])

    parted = [Source(str(path), part) for part in split(str(path), 300_000)]
    assert len(parted) > 4 and documents(parted) == documents([Source(str(path))])
