"""Hash, mark and apply against the rule in plain Python, on small crawls; and cc_net's own line ids on real pages."""

import gzip
import hashlib
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from wet_files import write_wet

import ccnet.dedup
from ccnet.dedup import (
    KeyFiles,
    SegmentMarks,
    first_in_document,
    hash_segment,
    mark_partition,
    most_frequent,
    segment_offsets,
)
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


# Few values, so that they repeat; 0 marks an empty slot inside; the low 32 bits decide the slot, the top ones the partition.
some_key = st.sampled_from([0, 1, 2, 2**32, 2**64 - 1, 2**63, 2**32 - 1, 2**33 - 1, 0xFFFFFFFE, 7 << 32, 3 << 60, 5 << 60])
segment_keys = st.lists(st.one_of(some_key, st.integers(0, 2**64 - 1)), max_size=30)  # a document's keys differ: each is one
crawl_keys = st.lists(segment_keys, min_size=1, max_size=5)
some_partitions = st.sampled_from([1, 2, 4, 8, 16])


def write_keys(folder: Path, segments: list[list[int]], partitions: int) -> KeyFiles:
    """Key files as `hash_segment` writes them, by sorting and counting."""
    folder.mkdir()
    paths, partition_keys = [], []
    for number, segment in enumerate(segments):
        of = [key * partitions >> 64 for key in segment]
        paths.append(folder / f"{number}.keys")
        np.array([key for _, key in sorted(zip(of, segment, strict=True), key=lambda p: p[0])], "<u8").tofile(paths[-1])
        partition_keys.append([of.count(partition) for partition in range(partitions)])
    return KeyFiles(paths, np.array(partition_keys, np.int64))


def read_marks(path: Path, counts: list[int]) -> list[list[bool]]:
    """The marks of each segment in one partition."""
    bits = np.unpackbits(np.fromfile(path, np.uint8), bitorder="little")
    starts = np.cumsum([0, *((count + 7) // 8 * 8 for count in counts)])
    assert len(bits) == starts[-1]
    assert not any(bits[start + count : end].any() for (start, end), count in zip(pairwise(starts), counts, strict=True))
    return [(bits[start : start + count] == 1).tolist() for start, count in zip(starts, counts, strict=False)]


@given(
    crawl_keys,
    some_partitions,
    st.sampled_from(["first", "none"]),
    st.lists(st.tuples(crawl_keys, some_partitions), max_size=2),
    st.sampled_from([1, 3, 1 << 20]),
)
@settings(max_examples=300, deadline=None)
def test_any_keys(tmp_path_factory, crawl, partitions, keep, earlier, streamed):
    folder = tmp_path_factory.mktemp("keys")
    own = write_keys(folder / "own", crawl, partitions)
    seen = [write_keys(folder / f"seen-{n}", *run) for n, run in enumerate(earlier)]
    documents = Counter(key for segment in crawl for key in segment)
    gone = {key for segments, _ in earlier for segment in segments for key in segment}
    known = len(gone & set(documents))
    if keep == "none":
        gone |= {key for key, count in documents.items() if count > 1}
    frequent: list[list[list[Any]]] = []
    totals = Counter[str]()
    wanted: list[list[list[bool]]] = []  # partition, segment
    marks: list[list[list[bool]]] = []
    for partition in range(partitions):
        wanted.append([])
        for segment in crawl:
            wanted[-1].append([])
            for key in segment:
                if key * partitions >> 64 == partition:
                    wanted[-1][-1].append(key not in gone)
                    if keep == "first":
                        gone.add(key)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ccnet.dedup, "STREAMED_KEYS", streamed)
            counts = mark_partition(own.paths, partition, own.partition_keys, keep, folder / "marks", folder / "digests", seen)
        frequent.append(counts.pop("frequent"))
        totals.update(counts)
        marks.append(read_marks(folder / "marks", own.partition_keys[:, partition].tolist()))
        check_digests(folder / "marks", folder / "digests", own.partition_keys[:, partition])
    assert marks == wanted
    kept = sum(sum(map(sum, segments)) for segments in wanted)
    assert totals == {"keys": documents.total(), "distinct": len(documents), "kept": kept, "seen": known}
    often = sorted((-count, key) for key, count in documents.items() if count > 1)
    assert most_frequent(frequent) == [[str(key), -count] for count, key in often]


def test_most_frequent_keys_are_counted_exactly(tmp_path):
    """Counts around the byte that holds them, more keys than the list takes, ties, and key 0."""
    counts = {0: 700, 1: 255, 2: 256, 3: 257, 4: 383, 5: 384, 6: 385, 7: 100_000} | {1000 + n: 2 for n in range(300)} | {99: 1}
    own = write_keys(tmp_path / "own", [[key] * count for key, count in counts.items()], 1)
    wanted = sorted((-count, key) for key, count in counts.items())[:200]
    for keep in ("first", "none"):
        found = mark_partition(own.paths, 0, own.partition_keys, keep, tmp_path / "m", tmp_path / "d")
        assert found["frequent"] == [[str(key), -count] for count, key in wanted]
        assert found["kept"] == (len(counts) if keep == "first" else 1)
    assert most_frequent([found["frequent"], [["6", 9], ["1500", 2]]])[8] == ["6", 9]


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
    with pytest.raises(ValueError, match="2 keys from key 0 on, expected 9"):
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
