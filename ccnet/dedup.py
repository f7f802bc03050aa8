"""Duplicate lines over a whole crawl: paragraph keys of each segment in, one keep mark per key out.

`hash_segment` writes a segment's keys (a line repeated inside its document counts once) grouped by partition, the top
bits of the key. `mark_partition` takes one partition of all segments and decides each key: a bit, 1 = keep. A key is in
one partition only, so partitions are independent and memory is that of one partition's keys; those of earlier runs, which
may count as copies too, are streamed past them. `SegmentMarks` reads the pages of a segment again and gives each line its
mark.

Source: CCNet (arXiv 1911.00359, section 3.2) and its released code, which removes every copy of a line that occurs in
two documents of a block of 50 shards (`keep="none"` is that rule, over the whole crawl).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numba
import numpy as np
import xxhash

from ccnet.crawl import Source
from ccnet.normalize import paragraph_keys
from ccnet.wet import read_pages, statistics

KEY = np.dtype("<u8")
MAX_PARTITIONS = 4096
MAX_PARTITION_KEYS = 2_400_000_000  # 32 bits of a key choose its slot; 34 GB of memory
FREQUENT = 200
CARRY = 128  # copies of a key that stand for one entry of a list where its byte is full
STREAMED_KEYS = 1 << 20


def partition_of(keys: np.ndarray, partitions: int) -> np.ndarray:
    """uint64[n]: the partition of each key of uint64[n], which is its top bits.

    Raises: ValueError unless `partitions` is a power of two from 1 to 4096.
    """
    return keys >> np.uint64(_shift(partitions))  # NumPy makes a shift by 64 zero


def first_in_document(keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Which keys occur for the first time in their document.

    Args: keys uint64[n]; offsets int64[documents + 1], document d has keys[offsets[d]:offsets[d + 1]].
    Returns: bool[n].
    """
    return _first_in_document(keys, offsets)


def hash_segment(source: str | Source, target: Path, *, partitions: int, min_length: int = 300) -> dict[str, Any]:
    """Write the paragraph keys of one segment to `target`: uint64 little-endian, grouped by partition, in crawl order.

    Args: source: a crawl file or a part of one; partitions: a power of two up to 4096; min_length: as in `read_pages`.
    Returns: the counts of `read_pages`, `keys` (written) and `partition_keys` (a list: keys of each partition).
    """
    _partition_bits(partitions)
    counts: Counter[str] = Counter()
    unique = [np.empty(0, KEY)]
    for batch in read_pages(source, counts, min_length=min_length):
        keys, offsets = paragraph_keys(batch.column("raw_content"))
        unique.append(keys[first_in_document(keys, offsets)])
    grouped, partition_keys = _group(np.concatenate(unique), _shift(partitions), partitions)
    with open(target, "wb") as file:
        file.write(grouped.astype(KEY, copy=False).data)
    return {**statistics(counts), "keys": len(grouped), "partition_keys": partition_keys.tolist()}


@dataclass(frozen=True)
class KeyFiles:
    """The keys of one run: the outputs of `hash_segment`, and int64[segments, partitions] that it returned for them."""

    paths: Sequence[Path]
    partition_keys: np.ndarray

    def segment(self, number: int, partition: int) -> np.ndarray:
        """The keys of a segment in one partition. Raises: ValueError if the file is shorter than it should be."""
        counts = self.partition_keys[number]
        return _read_keys(self.paths[number], int(counts[:partition].sum()), int(counts[partition]))

    def stream(self, partition: int, partitions: int) -> Iterator[np.ndarray]:
        """All keys of partition `partition` of `partitions`, which need not be how many the files have, in small arrays."""
        theirs = self.partition_keys.shape[1]
        first = partition * theirs // partitions
        last = max(first + 1, (partition + 1) * theirs // partitions)
        for path, counts in zip(self.paths, self.partition_keys, strict=True):
            start, count = int(counts[:first].sum()), int(counts[first:last].sum())
            for done in range(0, count, STREAMED_KEYS):
                keys = _read_keys(path, start + done, min(STREAMED_KEYS, count - done))
                yield keys if theirs >= partitions else keys[partition_of(keys, partitions) == partition]


def mark_partition(
    key_files: Sequence[Path],
    partition: int,
    partition_keys: np.ndarray,
    keep: Literal["first", "none"],
    marks: Path,
    digests: Path,
    seen: Sequence[KeyFiles] = (),
) -> dict[str, Any]:
    """Decide every key of one partition, over all segments.

    Args:
        key_files: the outputs of `hash_segment`, in crawl order.
        partition_keys: int64[segments, partitions], what `hash_segment` returned for them.
        keep: "first": the first document (in crawl order) that has a line keeps it; "none": a line that two documents
            have is kept by neither.
        marks: written: for each segment a bit per key (1 = keep, lowest bit first), each segment from a new byte on.
        digests: written: for each segment the xxh3-64 of its bytes in `marks`, uint64 little-endian.
        seen: keys of earlier runs, in any number of partitions: a line with one of them is kept by no document.
    Returns: `keys`, `distinct`, `kept`; `seen`, the distinct keys that earlier runs have; `frequent`, the keys that most
        documents of this run have: [key as decimal text, documents], at most 200 with at least two documents, by falling
        number of documents, then by key.
    Memory: 12.7 bytes per key of the partition, 14.1 with `seen` or `keep="none"`, and one segment's keys.
    Raises: ValueError if `keep` is unknown, the partition has too many keys (2.4 billion), or a key file is shorter
        than `partition_keys` says.
    """
    if keep not in ("first", "none"):
        raise ValueError(f"dedup.keep is {keep!r}: it must be 'first' or 'none'")
    own = KeyFiles(key_files, np.asarray(partition_keys, np.int64))
    total = int(own.partition_keys[:, partition].sum())
    if total > MAX_PARTITION_KEYS:
        raise ValueError(f"partition {partition} has {total} keys, more than {MAX_PARTITION_KEYS}: use more partitions")
    table = np.zeros(total + total * 2 // 5 + 1, np.uint64)  # load at most 5/7; 0 is an empty slot
    copies = np.zeros(len(table) + 1, np.uint8)
    carries = np.empty(total // CARRY + 1, np.int64)
    state = np.zeros(2, np.int64)
    decided_at_once = keep == "first" and not seen
    gone = np.zeros(0 if decided_at_once else len(table) + 1, np.bool_)
    distinct = already = kept = 0
    if not decided_at_once:
        for segment in range(len(key_files)):
            distinct += _insert(table, copies, carries, state, own.segment(segment, partition)).sum()
        for run in seen:
            for keys in run.stream(partition, own.partition_keys.shape[1]):
                already += _flag(table, state, gone, keys)
        if keep == "none":
            np.logical_or(gone, copies, out=gone)
    with open(marks, "wb") as marks_file, open(digests, "wb") as digests_file:
        for segment in range(len(key_files)):
            keys = own.segment(segment, partition)
            if decided_at_once:
                keep_key = _insert(table, copies, carries, state, keys)
                distinct += keep_key.sum()
            else:
                keep_key = _keep(table, gone, keys, keep == "first")
            kept += keep_key.sum()
            packed = np.packbits(keep_key, bitorder="little").tobytes()
            marks_file.write(packed)
            digests_file.write(xxhash.xxh3_64_intdigest(packed).to_bytes(8, "little"))
    carried = np.sort(carries[: state[1]])
    frequent = [[str(key), int(n)] for key, n in zip(*_most_copied(table, copies, carried, FREQUENT), strict=True)]
    return {"keys": total, "distinct": int(distinct), "kept": int(kept), "seen": int(already), "frequent": frequent}


def most_frequent(partitions: Iterable[Sequence[tuple[str, int]]]) -> list[list[Any]]:
    """The `frequent` of all partitions as one list, which has the same order and at most 200 entries."""
    ranked = sorted((-documents, int(key)) for frequent in partitions for key, documents in frequent)
    return [[str(key), -documents] for documents, key in ranked[:FREQUENT]]


class SegmentMarks:
    """The keep marks of one segment, given out in the order in which its pages are read again.

    Args:
        marks_files: the marks of each partition, as `mark_partition` wrote them.
        segment_offsets: int64[partitions], where this segment's bytes begin in each of them.
        partition_keys: int64[partitions], how many marks it has in each.
    Raises: ValueError if a marks file is too short.
    """

    def __init__(self, marks_files: Sequence[Path], segment_offsets: np.ndarray, partition_keys: np.ndarray):
        partitions = len(marks_files)
        self._shift = _shift(partitions)
        self._limits = np.asarray(partition_keys, np.int64)
        sizes = (self._limits + 7) // 8
        self._starts = np.zeros(partitions, np.int64)
        self._starts[1:] = np.cumsum(sizes)[:-1]
        self._taken = np.zeros(partitions, np.int64)
        self._bits = np.empty(int(sizes.sum()), np.uint8)
        for path, offset, size, start in zip(marks_files, segment_offsets, sizes, self._starts, strict=True):
            read = np.fromfile(path, np.uint8, int(size), offset=int(offset))
            if len(read) != size:
                raise ValueError(f"{path}: {len(read)} bytes of marks at {offset}, expected {size}")
            self._bits[start : start + size] = read

    def apply(self, keys: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Which lines of the next batch are kept.

        Args: keys uint64[n] and offsets int64[documents + 1], from `paragraph_keys`.
        Returns: bool[n]. Raises: ValueError if the segment has other lines than when it was hashed.
        """
        first = first_in_document(keys, offsets)
        if not _take(keys, first, self._shift, self._bits, self._starts, self._limits, self._taken):
            raise ValueError("this segment has more lines than when its keys were written: hash it again")
        return first

    def finish(self) -> None:
        """After the last batch. Raises: ValueError if marks are left, so the segment has changed."""
        left = int((self._limits - self._taken).sum())
        if left:
            raise ValueError(f"this segment has {left} lines fewer than when its keys were written: hash it again")


def segment_offsets(partition_keys: np.ndarray) -> np.ndarray:
    """Where each segment's bytes begin in the marks file of each partition.

    Args: partition_keys int[segments, partitions]. Returns: int64[segments, partitions].
    """
    sizes = (np.asarray(partition_keys, np.int64) + 7) // 8
    return np.cumsum(sizes, axis=0) - sizes


def _read_keys(path: Path, start: int, count: int) -> np.ndarray:
    keys = np.fromfile(path, KEY, count, offset=8 * start)
    if len(keys) != count:
        raise ValueError(f"{path}: {len(keys)} keys from key {start} on, expected {count}: hash that segment again")
    return keys


def _partition_bits(partitions: int) -> int:
    if not 1 <= partitions <= MAX_PARTITIONS or partitions & (partitions - 1):
        raise ValueError(f"dedup.partitions is {partitions}: it must be a power of two from 1 to {MAX_PARTITIONS}")
    return partitions.bit_length() - 1


def _shift(partitions: int) -> int:
    """key >> shift is the partition; 64 (one partition) stands for no bits at all."""
    return 64 - _partition_bits(partitions)


@numba.njit(cache=True, nogil=True)
def _first_in_document(keys, offsets):  # type: ignore[no-untyped-def]
    first = np.empty(len(keys), np.bool_)
    longest = 0
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    size = 16
    while size < 2 * longest:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.empty(size, np.uint64)
    owner = np.full(size, -1, np.int64)  # the document that filled a slot; slots of earlier documents are free
    for document in range(len(offsets) - 1):
        for i in range(offsets[document], offsets[document + 1]):
            slot = keys[i] & mask
            while owner[slot] == document and table[slot] != keys[i]:
                slot = (slot + np.uint64(1)) & mask
            first[i] = owner[slot] != document
            owner[slot] = document
            table[slot] = keys[i]
    return first


@numba.njit(cache=True, nogil=True)
def _partition(key, shift):  # type: ignore[no-untyped-def]
    return np.int64(key >> np.uint64(shift)) if shift < 64 else np.int64(0)


@numba.njit(cache=True, nogil=True)
def _group(keys, shift, partitions):  # type: ignore[no-untyped-def]
    counts = np.zeros(partitions, np.int64)
    for key in keys:
        counts[_partition(key, shift)] += 1
    cursor = np.cumsum(counts) - counts
    grouped = np.empty_like(keys)
    for key in keys:
        partition = _partition(key, shift)
        grouped[cursor[partition]] = key
        cursor[partition] += 1
    return grouped, counts


@numba.njit(cache=True, nogil=True)
def _slot(key, size):  # type: ignore[no-untyped-def]
    """The low 32 bits of the key (the top bits are the same all over a partition), scaled to the table's size."""
    return np.int64(((key & np.uint64(0xFFFFFFFF)) * np.uint64(size)) >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _find(table, key):  # type: ignore[no-untyped-def]
    """The slot that holds the key, or the empty one where it belongs."""
    slot = _slot(key, len(table))
    while table[slot] != key and table[slot] != 0:
        slot += 1
        if slot == len(table):
            slot = 0
    return slot


@numba.njit(cache=True, nogil=True)
def _insert(table, copies, carries, state, keys):  # type: ignore[no-untyped-def]
    """Put keys into the table and count them. Returns which are new.

    `copies` has, for each slot, how often its key came again. A byte that is full goes back by CARRY and puts its slot
    on the list `carries`, which so has room for any number of keys. Key 0, the mark of an empty slot, is kept outside
    the table: it has the last byte of `copies`. `state` is [whether key 0 came, length of `carries`].
    """
    new = np.empty(len(keys), np.bool_)
    for i, key in enumerate(keys):
        if key == 0:
            slot = len(table)
            new[i] = state[0] == 0
            state[0] = 1
        else:
            slot = _find(table, key)
            new[i] = table[slot] != key
            table[slot] = key
        if not new[i]:
            if copies[slot] == 255:
                copies[slot] = 255 - CARRY
                carries[state[1]] = slot
                state[1] += 1
            copies[slot] += 1
    return new


@numba.njit(cache=True, nogil=True)
def _flag(table, state, gone, keys):  # type: ignore[no-untyped-def]
    """Set the flags of those keys that the table has. Returns how many were set newly."""
    count = 0
    for key in keys:
        slot = len(table) if key == 0 else _find(table, key)
        known = state[0] != 0 if key == 0 else table[slot] == key
        if known and not gone[slot]:
            gone[slot] = True
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _keep(table, gone, keys, once):  # type: ignore[no-untyped-def]
    """Which keys are not gone; with `once`, a key is gone after it was kept."""
    keep = np.empty(len(keys), np.bool_)
    for i, key in enumerate(keys):
        slot = len(table) if key == 0 else _find(table, key)
        keep[i] = not gone[slot]
        if once:
            gone[slot] = True
    return keep


@numba.njit(cache=True, nogil=True)
def _most_copied(table, copies, carried, limit):  # type: ignore[no-untyped-def]
    """The at most `limit` keys that came most often, and how often; `carried` is sorted."""
    keys = np.empty(limit, np.uint64)
    counts = np.empty(limit, np.int64)
    size = 0
    at = 0
    for slot in range(len(copies)):
        if copies[slot] == 0:
            continue
        count = np.int64(copies[slot]) + 1
        while at < len(carried) and carried[at] == slot:
            count += CARRY
            at += 1
        key = table[slot] if slot < len(table) else np.uint64(0)
        place = size
        while place > 0 and (counts[place - 1] < count or (counts[place - 1] == count and keys[place - 1] > key)):
            place -= 1
        if place == limit:
            continue
        size = min(size + 1, limit)
        for i in range(size - 1, place, -1):
            keys[i], counts[i] = keys[i - 1], counts[i - 1]
        keys[place], counts[place] = key, count
    return keys[:size], counts[:size]


@numba.njit(cache=True, nogil=True)
def _take(keys, first, shift, bits, starts, limits, taken):  # type: ignore[no-untyped-def]
    """Replace each True of `first` by the next mark of its key's partition. False when a partition has none left."""
    for i in range(len(keys)):
        if first[i]:
            partition = _partition(keys[i], shift)
            position = taken[partition]
            if position == limits[partition]:
                return False
            first[i] = (bits[starts[partition] + (position >> 3)] >> (position & 7)) & 1
            taken[partition] = position + 1
    return True
