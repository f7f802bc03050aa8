"""Hash, mark and apply against the rule in plain Python, on small crawls; and cc_net's own line ids on real pages."""

import gzip
import hashlib
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from wet_files import write_wet

from ccnet.dedup import SegmentMarks, first_in_document, hash_segment, mark_partition, segment_offsets
from ccnet.normalize import paragraph_keys
from ccnet.wet import read_pages

Crawl = list[list[list[str]]]  # segments of documents of lines


def slow_kept(crawl: Crawl, keep: str) -> list[list[list[int]]]:
    """The kept line ids of every document."""

    def key(line: str) -> str:
        return re.sub(r"\d", "0", line.strip().lower())

    documents = Counter(found for segment in crawl for lines in segment for found in set(map(key, lines)))
    seen: set[str] = set()
    kept = []
    for segment in crawl:
        kept.append([])
        for lines in segment:
            mine: set[str] = set()
            kept[-1].append([])
            for number, line in enumerate(lines):
                taken = documents[key(line)] > 1 if keep == "none" else key(line) in seen
                if not taken and key(line) not in mine:
                    kept[-1][-1].append(number)
                mine.add(key(line))
            seen |= mine
    return kept


def kept_lines(
    sources: list[Path], folder: Path, partitions: int, keep: str, min_length: int, batch_bytes: int = 16 << 20
) -> list[dict[tuple[str, str], list[int]]]:
    """For each segment, url and digest of its pages and the ids of their kept lines."""
    folder.mkdir(exist_ok=True)
    key_files = [folder / f"{number}.keys" for number in range(len(sources))]
    hashed = [
        hash_segment(str(source), target, partitions=partitions, min_length=min_length)
        for source, target in zip(sources, key_files, strict=True)
    ]
    partition_keys = np.array([counts["partition_keys"] for counts in hashed], np.int64)
    assert [counts["keys"] for counts in hashed] == partition_keys.sum(axis=1).tolist()
    assert [path.stat().st_size for path in key_files] == [8 * counts["keys"] for counts in hashed]
    marks_files = [folder / f"{partition}.marks" for partition in range(partitions)]
    for partition, marks in enumerate(marks_files):
        counts = mark_partition(key_files, partition, partition_keys, keep, marks, folder / "digests")
        assert counts["keys"] == partition_keys[:, partition].sum()
        check_digests(marks, folder / "digests", partition_keys[:, partition])
    kept = []
    for source, offsets, keys in zip(sources, segment_offsets(partition_keys), partition_keys, strict=True):
        marks = SegmentMarks(marks_files, offsets, keys)
        pages = {}
        for batch in read_pages(str(source), Counter(), min_length=min_length, batch_bytes=batch_bytes):
            line_keys, ends = paragraph_keys(batch.column("raw_content"))
            keep_line = marks.apply(line_keys, ends)
            for page, (start, end) in zip(batch.to_pylist(), pairwise(ends), strict=True):
                pages[page["url"], page["digest"]] = np.flatnonzero(keep_line[start:end]).tolist()
        marks.finish()
        kept.append(pages)
    return kept


def check_digests(marks: Path, digests: Path, keys: np.ndarray) -> None:
    data = marks.read_bytes()
    sizes = [(int(count) + 7) // 8 for count in keys]
    assert len(data) == sum(sizes)
    ends = np.cumsum([0, *sizes])
    wanted = [xxhash.xxh3_64_intdigest(data[start:end]) for start, end in pairwise(ends)]
    assert np.fromfile(digests, "<u8").tolist() == wanted


line = st.sampled_from(["", "a", "A ", "b", "b 1", "b 7", "c", "ü", "Ü", "a longer line", "d", "e", "f", "g"])
document = st.lists(line, min_size=1, max_size=7).filter(lambda lines: any(lines))
crawls = st.lists(st.lists(document, max_size=6), min_size=1, max_size=4)


@given(crawls, st.sampled_from([1, 2, 4, 16]), st.sampled_from(["first", "none"]), st.sampled_from([1, 50, 1 << 24]))
@settings(max_examples=150, deadline=None)
def test_small_crawls(tmp_path_factory, crawl, partitions, keep, batch_bytes):
    folder = tmp_path_factory.mktemp("crawl")
    sources = [
        write_wet(folder / f"{number}.gz", [(f"http://{i}/", "t", lines) for i, lines in enumerate(segment)])
        for number, segment in enumerate(crawl)
    ]
    kept = kept_lines(sources, folder, partitions, keep, 0, batch_bytes)
    assert [list(pages.values()) for pages in kept] == slow_kept(crawl, keep)


@pytest.mark.parametrize("keep", ["first", "none"])
def test_all_duplicates(tmp_path, keep):
    pages = [(f"http://{i}/", "t", ["same", "", "SAME", "lines"]) for i in range(50)]
    sources = [write_wet(tmp_path / f"{number}.gz", pages) for number in range(3)]
    kept = kept_lines(sources, tmp_path / "work", 4, keep, 0)
    ids = [ids for segment in kept for ids in segment.values()]
    assert ids == [[0, 1, 3] if keep == "first" else [], *[[]] * 149]


# Few values, so that they repeat; 0 marks an empty slot inside; the low 32 bits decide the slot.
some_key = st.sampled_from([0, 1, 2, 2**32, 2**64 - 1, 2**63, 2**32 - 1, 2**33 - 1, 0xFFFFFFFE, 7 << 32])


@given(st.lists(st.sets(st.one_of(some_key, st.integers(0, 2**64 - 1)), max_size=30), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_keys(tmp_path_factory, segments):
    folder = tmp_path_factory.mktemp("keys")
    keys = [np.array(sorted(segment), np.uint64) for segment in segments]
    files = [folder / str(number) for number in range(len(keys))]
    for path, values in zip(files, keys, strict=True):
        values.tofile(path)
    partition_keys = np.array([[len(values)] for values in keys])
    occurrences = Counter(key for segment in segments for key in segment)
    seen: set[int] = set()
    first = []
    for values in keys:
        first.append([key not in seen for key in values.tolist()])
        seen |= set(values.tolist())
    once = [[occurrences[key] == 1 for key in values.tolist()] for values in keys]
    for keep, wanted in (("first", first), ("none", once)):
        counts = mark_partition(files, 0, partition_keys, keep, folder / "marks", folder / "digests")
        assert counts == {"keys": sum(map(len, keys)), "distinct": len(seen), "kept": sum(map(sum, wanted))}
        data = (folder / "marks").read_bytes()
        for marks in wanted:
            size = (len(marks) + 7) // 8
            bits = np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little")[: len(marks)]
            assert bits.tolist() == marks
            data = data[size:]
        assert not data


@given(st.lists(st.lists(some_key, max_size=12), max_size=8))
@settings(max_examples=100, deadline=None)
def test_first_in_document(documents):
    keys = np.array([key for document in documents for key in document], np.uint64)
    offsets = np.cumsum([0, *map(len, documents)])
    wanted = [key not in document[:i] for document in documents for i, key in enumerate(document)]
    assert first_in_document(keys, offsets).tolist() == wanted


def test_marks_do_not_depend_on_the_number_of_partitions(tmp_path):
    lines = [hashlib.sha1(bytes([n % 251, n % 7])).hexdigest() for n in range(3000)]
    sources = [write_wet(tmp_path / f"{s}.gz", [(f"http://{i}/", "t", lines[s::3][i::7]) for i in range(7)]) for s in range(3)]
    one = kept_lines(sources, tmp_path / "1", 1, "first", 300)
    assert one == kept_lines(sources, tmp_path / "256", 256, "first", 300, batch_bytes=1000)
    assert 0 < sum(len(ids) for pages in one for ids in pages.values()) < 3000


def test_empty_and_broken_segments(tmp_path):
    (tmp_path / "broken").write_bytes(b"<html>")
    good = write_wet(tmp_path / "good", [("http://a/", "t", ["a", "b", "a"])])
    counts = hash_segment(str(tmp_path / "broken"), tmp_path / "k", partitions=8, min_length=0)
    assert counts["bad"] == {"not_a_crawl_file": 1} and counts["partition_keys"] == [0] * 8
    kept = kept_lines([tmp_path / "broken", good, write_wet(tmp_path / "none", [])], tmp_path / "work", 8, "none", 0)
    assert [list(pages.values()) for pages in kept] == [[], [[0, 1]], []]


def test_segment_that_has_changed(tmp_path):
    source = write_wet(tmp_path / "a", [("http://a/", "t", ["a", "b"])])
    counts = hash_segment(str(source), tmp_path / "keys", partitions=1, min_length=0)
    partition_keys = np.array([counts["partition_keys"]])
    mark_partition([tmp_path / "keys"], 0, partition_keys, "first", tmp_path / "marks", tmp_path / "digests")

    def marks() -> SegmentMarks:
        return SegmentMarks([tmp_path / "marks"], np.zeros(1, np.int64), partition_keys[0])

    with pytest.raises(ValueError, match="more lines"):
        marks().apply(np.arange(3, dtype=np.uint64), np.array([0, 3]))
    with pytest.raises(ValueError, match="1 lines fewer"):
        short = marks()
        short.apply(np.arange(1, dtype=np.uint64), np.array([0, 1]))
        short.finish()
    with pytest.raises(ValueError, match="expected 2"):
        SegmentMarks([tmp_path / "marks"], np.zeros(1, np.int64), np.array([16]))
    with pytest.raises(ValueError, match="expected 9"):
        mark_partition([tmp_path / "keys"], 0, np.array([[9]]), "first", tmp_path / "marks", tmp_path / "digests")


@pytest.mark.parametrize("partitions", [0, 3, 8192, -1])
def test_partitions_out_of_range(partitions, tmp_path):
    with pytest.raises(ValueError, match=f"{partitions}: it must be a power of two"):
        hash_segment("a", tmp_path / "k", partitions=partitions)


def test_partition_too_large(tmp_path):
    with pytest.raises(ValueError, match="partition 0 has 3000000000 keys"):
        mark_partition([tmp_path / "k"], 0, np.array([[3 * 10**9]]), "first", tmp_path / "m", tmp_path / "d")


def test_unknown_keep(tmp_path):
    with pytest.raises(ValueError, match="'all'"):
        mark_partition([], 0, np.zeros((0, 1)), "all", tmp_path / "m", tmp_path / "d")  # type: ignore[arg-type]


def test_line_ids_of_cc_net(shared_data, tmp_path):
    sources = [shared_data / f"crawl/segments/seg-0000{n}.warc.wet.gz" for n in (0, 1)]
    kept = kept_lines(sources, tmp_path / "work", 16, "none", 300)
    with gzip.open(shared_data / "gold/ccnet_segments_0_1.jsonl.gz", "rt") as file:
        gold = [json.loads(document) for document in file]
    assert len(gold) == 803
    for document in gold:
        segment = int(document["segment"][8])
        assert kept[segment][document["url"], document["digest"]] == document["line_ids"]
