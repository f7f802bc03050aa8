"""Near-duplicate documents: filtered segments in, the documents to drop out, each with the one that is kept.

`sign_documents` gives every document of a segment a MinHash signature, and spills the hashes of its bands by partition,
the top bits of the hash. `link_partition` takes one partition of all segments and links documents that share a band and
whose signatures are alike. `pair_documents` joins the links to clusters, of which the first document in crawl order (in
the order of the segments, then of their rows) stays.

A document is the set of its 5-grams of words (`ccnet.words`); one with one to four words is the set of that one sequence;
one without words is no near-duplicate of anything.

Source: Broder, "On the resemblance and containment of documents" (1997); bands: Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.dedup import partition_of
from ccnet.words import hash_words, mix, sequence_hash, text_buffers, word_buffers, word_tables

SHINGLE = 5  # words
PERMUTATIONS = 256
RECALL = 0.99  # of a pair at the threshold, by the bands alone
COMPARED = 1000  # documents of a bucket that one is compared with; more only where that many unlike ones share a band
BATCH = 1 << 16  # documents whose signatures are in memory together, 32 MB
BAND = np.dtype([("hash", "<u8"), ("row", "<u4")])
SIGNATURE = np.dtype(("<u2", PERMUTATIONS))
PAIRS = pa.schema(
    [
        pa.field("segment", pa.string(), nullable=False),  # of the dropped document
        pa.field("row", pa.int64(), nullable=False),  # in its segment's file
        pa.field("url", pa.string(), nullable=False),
        pa.field("kept_segment", pa.string(), nullable=False),  # of the first document of its cluster
        pa.field("kept_row", pa.int64(), nullable=False),
        pa.field("kept_url", pa.string(), nullable=False),
        pa.field("similarity", pa.float64(), nullable=False),  # of these two: their Jaccard index by their signatures
    ]
)


def banding(threshold: float) -> tuple[int, int]:
    """(bands, rows): as many rows a band as let a pair at `threshold` share a band with probability 0.99 or more.

    A pair with Jaccard index s shares one of b bands of r rows with probability 1 - (1 - s^r)^b. For 0.8 these are 32
    bands of 8 rows: 0.2 % at s = 0.3, 12 % at 0.5, 42 % at 0.6, 85 % at 0.7, 99.7 % at 0.8, 100.0 % at 0.9. The estimate
    of the pair's index, which must reach the threshold then, leaves 0.02 % at 0.7, 3 % at 0.75, half at 0.8, 98.6 % at 0.85
    and 99.9 % at 0.87.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def signatures(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """MinHash signatures: the share of equal entries of two estimates the Jaccard index of their sets of 5-grams.

    The standard error of that estimate is sqrt(s (1 - s) / 256): 0.025 at s = 0.8.

    Args: text: string array without nulls, documents long.
    Returns: uint32[documents, 256], and bool[documents]: whether it has any words.
    """
    return _signatures(*text_buffers(text), *word_tables(), *_permutations())


def sign_documents(source: Path, signature_file: Path, band_file: Path, *, threshold: float, partitions: int) -> dict[str, Any]:
    """Signs the documents of one segment.

    Args:
        source: Parquet file with a column `raw_content`.
        signature_file: written: for each row the low 16 bits of its signature's entries, uint16[256] little-endian.
        band_file: written: the hash of each band and its row (`BAND`), grouped by partition, in the order of the rows.
        threshold: of `banding`; partitions: a power of two up to 4096.
    Returns: `documents`, `without_words`, `bytes` of text, and `partition_bands` (a list: entries of each partition).
    """
    bands, rows = banding(threshold)
    spilled = [np.empty(0, BAND)]
    documents = without_words = size = 0
    with pq.ParquetFile(source) as file, signature_file.open("wb") as target:
        for batch in file.iter_batches(256, columns=["raw_content"]):
            text = batch.column(0)
            found, has_words = signatures(text)
            target.write(found.astype("<u2").data)
            signed = np.flatnonzero(has_words)
            entries = np.empty(len(signed) * bands, BAND)
            entries["hash"] = _band_hashes(found[signed], bands, rows).ravel()
            entries["row"] = np.repeat(documents + signed, bands)
            spilled.append(entries)
            documents += len(text)
            without_words += len(text) - len(signed)
            size += text.nbytes
    entries = np.concatenate(spilled)
    of = partition_of(entries["hash"], partitions).astype(np.uint16)
    with band_file.open("wb") as target:
        target.write(entries[np.argsort(of, kind="stable")].data)
    counts = np.bincount(of, minlength=partitions).tolist()
    return {"documents": documents, "without_words": without_words, "bytes": size, "partition_bands": counts}


def link_partition(
    band_files: Sequence[Path],
    signature_files: Sequence[Path],
    documents: np.ndarray,
    partition_bands: np.ndarray,
    partition: int,
    target: Path,
    *,
    threshold: float,
) -> dict[str, int]:
    """Links the near-duplicates among those documents that share a band hash of one partition.

    Each document of a bucket (of equal hashes) is compared with the earlier ones that it isn't yet linked to, through
    others of the bucket, up to 1,000 of them.

    Args:
        band_files, signature_files: the outputs of `sign_documents`, in crawl order; documents: int64[segments] and
        partition_bands: int64[segments, partitions], what it returned.
        target: written: int64[links, 2] little-endian, (later, earlier) document, sorted, each once. Documents are
            numbered over all segments.
        threshold: Jaccard index, by their signatures, from which on two documents are near-duplicates.
    Returns: `links`, `compared` (pairs).
    Memory: about 40 bytes per entry of the partition, 512 per document of its largest bucket, and 32 MB.
    """
    starts = np.cumsum(partition_bands, axis=1)[:, partition] - partition_bands[:, partition]
    entries = np.concatenate(
        [
            np.empty(0, BAND),
            *(
                np.fromfile(path, BAND, int(counts[partition]), offset=BAND.itemsize * int(start))
                for path, start, counts in zip(band_files, starts, partition_bands, strict=True)
            ),
        ]
    )
    assert len(entries) == partition_bands[:, partition].sum(), f"{band_files}: too short"
    first = np.cumsum(documents) - documents
    numbers = entries["row"] + np.repeat(first, partition_bands[:, partition])
    order = np.argsort(entries["hash"], kind="stable")  # so a bucket's documents stay in crawl order
    hashes, numbers = entries["hash"][order], numbers[order]
    del entries, order
    same = np.zeros(len(hashes) + 1, np.bool_)  # as the one before
    same[1:-1] = hashes[1:] == hashes[:-1]
    shared = same[:-1] | same[1:]
    starts = np.flatnonzero(~same[:-1][shared])
    members = numbers[shared]
    ends = np.append(starts[1:], len(members))
    del hashes, numbers, same, shared
    links = [np.empty((0, 2), np.int64)]
    compared = bucket = 0
    needed = math.ceil(threshold * PERMUTATIONS - 1e-9)
    while bucket < len(starts):
        start = starts[bucket]
        after = max(bucket + 1, int(np.searchsorted(ends, start + BATCH, side="right")))
        some = members[start : ends[after - 1]]
        found, count = _link(_gather(signature_files, first, some), some, ends[bucket:after] - start, needed)
        links.append(found)
        compared += count
        bucket = after
    _distinct_rows(np.concatenate(links)).astype("<i8").tofile(target)
    return {"links": target.stat().st_size // 16, "compared": compared}


def pair_documents(
    link_files: Sequence[Path],
    signature_files: Sequence[Path],
    sources: Sequence[Path],
    segments: Sequence[str],
    documents: np.ndarray,
    target: Path,
) -> dict[str, int]:
    """Writes a row (`PAIRS`) for each document that is dropped, in crawl order.

    A cluster is what links connect; its first document is kept, and every other one is paired with that. The similarity
    is that of the pair, so it is below the threshold where only documents in between connect the two.

    Args: link_files: of `link_partition`, all partitions; signature_files, documents: as there; sources: the Parquet
        files that were signed, with a column `url`; segments: their names; target: written.
    Returns: `dropped`, `clusters`. Memory: the URLs of the clusters' documents.
    """
    links = np.concatenate([np.empty((0, 2), "<i8"), *(np.fromfile(path, "<i8").reshape(-1, 2) for path in link_files)])
    members = np.unique(links)
    roots = _roots(np.searchsorted(members, links), len(members))
    dropped = np.flatnonzero(roots != np.arange(len(members)))
    kept = roots[dropped]
    first = np.cumsum(documents) - documents
    of = np.searchsorted(first, members, side="right") - 1
    rows = members - first[of]
    urls = pa.concat_arrays([pa.array([], pa.string()), *_urls(sources, of, rows)])
    names = pa.array(segments, pa.string())
    with pq.ParquetWriter(target, PAIRS, compression="zstd") as writer:
        for start in range(0, len(dropped), BATCH):
            pair = [some[start : start + BATCH] for some in (dropped, kept)]
            left, right = (_gather(signature_files, first, members[some]) for some in pair)
            similarity = (left == right).mean(axis=1)
            columns = [
                column for some in pair for column in (names.take(pa.array(of[some])), rows[some], urls.take(pa.array(some)))
            ]
            writer.write_table(pa.table([*columns, similarity], schema=PAIRS))
    return {"dropped": len(dropped), "clusters": len(np.unique(kept))}


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors uint32[256] for the two halves of a hash."""
    factors = np.array([mix(np.uint64(i)) for i in range(1, 2 * PERMUTATIONS + 1)], np.uint64) | np.uint64(1)
    return factors[:PERMUTATIONS].astype(np.uint32), factors[PERMUTATIONS:].astype(np.uint32)


def _gather(signature_files: Sequence[Path], first: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """uint16[n, 256]: the signatures of documents, which are numbered over all segments."""
    gathered = np.empty((len(numbers), PERMUTATIONS), np.uint16)
    of = np.searchsorted(first, numbers, side="right") - 1
    for segment in np.unique(of):
        mine = np.flatnonzero(of == segment)
        gathered[mine] = np.memmap(signature_files[segment], SIGNATURE, "r")[numbers[mine] - first[segment]]
    return gathered


def _urls(sources: Sequence[Path], of: np.ndarray, rows: np.ndarray) -> Iterator[pa.Array]:
    for segment in np.unique(of):
        column = pq.read_table(sources[segment], columns=["url"]).column(0)
        yield column.take(pa.array(rows[of == segment])).combine_chunks().cast(pa.string())


def _distinct_rows(links: np.ndarray) -> np.ndarray:
    links = links[np.lexsort((links[:, 1], links[:, 0]))]
    return links[np.concatenate([[True], (links[1:] != links[:-1]).any(axis=1)])[: len(links)]]


@numba.njit(cache=True, nogil=True)
def _sign(shingle, low, high, signature):  # type: ignore[no-untyped-def]
    x = np.uint32(shingle)
    y = np.uint32(shingle >> np.uint64(32))
    for i in range(PERMUTATIONS):
        value = np.uint32(x * low[i] + y * high[i])
        signature[i] = min(signature[i], value)


@numba.njit(cache=True, nogil=True)
def _signatures(octets, starts, table, ascii_bytes, unspaced, low, high):  # type: ignore[no-untyped-def]
    found = np.full((len(starts) - 1, PERMUTATIONS), 0xFFFFFFFF, np.uint32)
    has_words = np.zeros(len(starts) - 1, np.bool_)
    normal, words = word_buffers(starts)
    for document in range(len(starts) - 1):
        count = hash_words(octets, starts[document], starts[document + 1], table, ascii_bytes, unspaced, normal, words)
        for last in range(min(count, SHINGLE), count + 1):
            if count:
                _sign(sequence_hash(words, last - min(count, SHINGLE), last), low, high, found[document])
        has_words[document] = count > 0
    return found, has_words


@numba.njit(cache=True, nogil=True)
def _band_hashes(signatures, bands, rows):  # type: ignore[no-untyped-def]
    hashes = np.empty((len(signatures), bands), np.uint64)
    for document in range(len(signatures)):
        for band in range(bands):
            hashed = np.uint64(band)
            for i in range(band * rows, (band + 1) * rows):
                hashed = mix(hashed * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(signatures[document, i]))
            hashes[document, band] = hashed
    return hashes


@numba.njit(cache=True, nogil=True)
def _link(signatures, members, ends, needed):  # type: ignore[no-untyped-def]
    """Links of near-duplicates in each bucket members[ends[n - 1]:ends[n]], and how many pairs were compared.

    The documents of a bucket that are linked so far are lists (heads, tails, following): one that matches any document
    of a list need not be compared with its others.
    """
    links = np.empty((len(members), 2), np.int64)
    size = 0
    total = 0
    following = np.empty(len(members), np.int64)
    heads = np.empty(len(members), np.int64)
    tails = np.empty(len(members), np.int64)
    start = 0
    for end in ends:
        lists = 0
        for i in range(start, end):
            compared = 0
            joined = -1
            n = 0
            while n < lists and compared < COMPARED:
                other = heads[n]
                while other != -1 and compared < COMPARED:
                    compared += 1
                    if _equal(signatures[i], signatures[other]) >= needed:
                        break
                    other = following[other] if compared < COMPARED else -1
                if other == -1:
                    n += 1
                    continue
                links[size, 0], links[size, 1] = members[i], members[other]
                size += 1
                if joined == -1:
                    joined = n
                    n += 1
                else:
                    following[tails[joined]] = heads[n]
                    tails[joined] = tails[n]
                    lists -= 1
                    heads[n], tails[n] = heads[lists], tails[lists]
            following[i] = -1
            if joined == -1:
                heads[lists] = tails[lists] = i
                lists += 1
            else:
                following[tails[joined]] = i
                tails[joined] = i
            total += compared
        start = end
    return links[:size], total


@numba.njit(cache=True, nogil=True)
def _equal(left, right):  # type: ignore[no-untyped-def]
    count = 0
    for i in range(PERMUTATIONS):
        count += left[i] == right[i]
    return count


@numba.njit(cache=True, nogil=True)
def _roots(links, size):  # type: ignore[no-untyped-def]
    """int64[size]: the lowest number that each is connected with by links int64[n, 2]."""
    roots = np.arange(size)
    for left, right in links:
        while roots[left] != left:
            roots[left] = roots[roots[left]]
            left = roots[left]
        while roots[right] != right:
            roots[right] = roots[roots[right]]
            right = roots[right]
        roots[max(left, right)] = min(left, right)
    for i in range(size):
        roots[i] = roots[roots[i]]
    return roots
