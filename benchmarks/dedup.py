"""Duplicates: marks of paragraphs, and signatures of documents, each beside the obvious version in one run.

In: WET files (arguments), or a segment of the demo crawl that is written here, for the documents; keys are made up, with
the duplicates of a crawl: half of them occur once, the others follow Zipf's law. They lie in a temporary folder, 8 bytes
a key. Out: keys, documents and MB a second of CPU time in one process, and peak memory a key (of a process that does
nothing else, less that of one with a handful of keys).
`python -m benchmarks.dedup [--keys 200000000] [--segments 20] [--folder /tmp] [FILE …]`
"""

import argparse
import hashlib
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine
from ccnet.dedup import mark_partition, partition_of
from ccnet.demo_crawl import plan, write_segment
from ccnet.near_duplicates import PERMUTATIONS, link_partition, pair_documents, sign_documents, signatures
from ccnet.wet import read_pages

PARTITIONS = 16
FEW = 16  # keys of a process that only shows what everything but the keys takes
OBVIOUS_KEYS = 10_000_000
OBVIOUS_DOCUMENTS = 300
THRESHOLD = 0.8


def write_keys(target: Path, segment: int, segments: int, total: int) -> list[int]:
    """A segment's share of `total` keys, grouped by partition; returns the keys of each."""
    random = np.random.default_rng(segment)
    count = total // segments
    once = np.arange(segment * count, (segment + 1) * count, dtype=np.uint64) + np.uint64(1 << 40)
    often = np.exp(random.random(count) * np.log(max(total // 5, 2))).astype(np.uint64)
    keys = np.where(random.random(count) < 0.5, once, often)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # as evenly spread as SHA-1's
        keys = (keys ^ keys >> np.uint64(30)) * np.uint64(factor)
    of = partition_of(keys, PARTITIONS).astype(np.uint16)
    keys[np.argsort(of, kind="stable")].tofile(target)
    return np.bincount(of, minlength=PARTITIONS).tolist()


def mark(files: list[Path], partition_keys: np.ndarray, keep: str, folder: Path) -> dict[str, Any]:
    """Marks all partitions, one after the other; the first call in a process loads the kernels."""
    total: Counter[str] = Counter()
    for partition in range(partition_keys.shape[1]):
        counts = mark_partition(files, partition, partition_keys, keep, folder / "marks", folder / "digests")
        total.update({name: counts[name] for name in ("keys", "distinct", "kept")})
    return dict(total)


def with_set(files: list[Path]) -> dict[str, Any]:
    """keep=first with a Python set."""
    seen: set[int] = set()
    keys = kept = 0
    for file in files:
        for key in np.fromfile(file, np.uint64).tolist():
            keys += 1
            if key not in seen:
                seen.add(key)
                kept += 1
    return {"keys": keys, "distinct": len(seen), "kept": kept}


def with_sort(files: list[Path]) -> dict[str, Any]:
    """keep=first with NumPy's unique."""
    keys = np.concatenate([np.fromfile(file, np.uint64) for file in files])
    marks = np.zeros(len(keys), np.bool_)
    marks[np.unique(keys, return_index=True)[1]] = True
    return {"keys": len(keys), "distinct": int(marks.sum()), "kept": int(marks.sum())}


def measured(work: Callable[..., dict[str, Any]], *arguments: Any) -> tuple[dict[str, Any], float, int]:
    """What work returns, its CPU seconds, and the peak memory of this process in bytes."""
    start = time.process_time()
    result = work(*arguments)
    seconds = time.process_time() - start
    return result, seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured_mark(files: list[Path], few: list[Path], partition_keys: np.ndarray, keep: str, folder: Path) -> Any:
    """`measured` for `mark`, without the time that loading its kernels takes."""
    mark(few, np.array([[FEW]]), keep, folder)
    return measured(mark, files, partition_keys, keep, folder)


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """`work` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def benchmark_marks(total: int, segments: int, folder: Path) -> None:
    """The table of paragraph marks."""
    files = [folder / f"{segment}.keys" for segment in range(segments)]
    partition_keys = np.array([alone(write_keys, file, n, segments, total) for n, file in enumerate(files)])
    few = folder / "few"
    np.arange(FEW, dtype=np.uint64).tofile(few)
    sample = files[: max(1, OBVIOUS_KEYS * segments // total)]
    whole = partition_keys.sum(axis=1, keepdims=True)

    def row(name: str, found: tuple[dict[str, Any], float, int], keys: int, empty: int, first: float = 0.0) -> float:
        result, seconds, peak = found
        rate = result["keys"] / seconds / 1e6
        ratio = f"{rate / first:8.1f}" if first else ""
        share = result["kept"] / result["keys"]
        print(f"{name:<34}{result['keys']:>13,}{share:>8.2f}{rate:>10.2f}{(peak - empty) / keys:>12.1f}{ratio}")
        return rate

    print(f"{'marks':<34}{'keys':>13}{'kept':>8}{'M keys/s':>10}{'bytes/key':>12}   ratio")
    for _ in range(2):  # the first time may compile the kernels
        empty = alone(measured_mark, [few], [few], np.array([[FEW]]), "none", folder)[2]
    base = alone(measured, with_set, [few])[2]
    obvious = alone(measured, with_set, sample)
    slow = row("Python set, first", obvious, obvious[0]["keys"], base)
    sorting = alone(measured, with_sort, sample)
    row("NumPy unique, first", sorting, sorting[0]["keys"], base, slow)
    kernel = alone(measured_mark, sample, [few], whole[: len(sample)], "first", folder)
    assert kernel[0] == obvious[0] == sorting[0]
    row("kernel, first, the same keys", kernel, kernel[0]["keys"], empty, slow)
    for keep in ("first", "none"):
        for counts, name in ((partition_keys, f"{PARTITIONS} partitions"), (whole, "1 partition")):
            found = alone(measured_mark, files, [few], counts, keep, folder)
            row(f"kernel, {keep}, {name}", found, int(counts.sum(axis=0).max()), empty, slow)


def obvious_signatures(texts: list[str]) -> np.ndarray:
    """MinHash with sets and NumPy, document by document: words as they are, SHA-1 of each 5-gram."""
    random = np.random.default_rng(0)
    a, b = random.integers(1, (1 << 61) - 1, (2, PERMUTATIONS), dtype=np.uint64)
    found = []
    for text in texts:
        words = text.lower().split()
        shingles = {" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))}
        hashes = np.array([int.from_bytes(hashlib.sha1(s.encode()).digest()[:4], "little") for s in shingles], np.uint64)
        found.append(((hashes[:, None] * a + b) >> np.uint64(32)).min(axis=0))
    return np.array(found)


def benchmark_documents(files: list[str], folder: Path) -> None:
    """The table of near-duplicate documents."""
    if not files:
        files = [str(folder / "demo.warc.wet.gz")]
        write_segment(plan(8)[0], Path(files[0]))
    texts = [
        text for file in files for batch in read_pages(file, Counter()) for text in batch.column("raw_content").to_pylist()
    ]
    texts = texts + [f"{text[: len(text) // 2]} and {text[len(text) // 2 :]}" for text in texts]  # a near-duplicate of each
    column = pa.array(texts)
    size = sum(len(text.encode()) for text in texts) / 1e6
    source, signed, bands, links = (folder / name for name in ("texts.parquet", "signatures", "bands", "links"))
    pq.write_table(pa.table({"url": [f"http://{n}/" for n in range(len(texts))], "raw_content": column}), source)
    sample = texts[:OBVIOUS_DOCUMENTS]
    for _ in range(2):  # the first time loads the kernels
        start = time.process_time()
        signatures(column)
        kernel = time.process_time() - start
        start = time.process_time()
        counts = sign_documents(source, signed, bands, threshold=THRESHOLD, partitions=1)
        signing = time.process_time() - start
        start = time.process_time()
        documents = np.array([counts["documents"]])
        link_partition([bands], [signed], documents, np.array([counts["partition_bands"]]), 0, links, threshold=THRESHOLD)
        dropped = pair_documents([links], [signed], [source], ["texts"], documents, folder / "pairs.parquet")["dropped"]
        linking = time.process_time() - start
    start = time.process_time()
    obvious_signatures(sample)
    obvious = time.process_time() - start
    obvious_size = sum(len(text.encode()) for text in sample) / 1e6
    slow = obvious_size / obvious
    print(f"\n{'documents':<34}{'documents':>13}{'MB':>8}{'MB/s':>10}{'documents/s':>12}   ratio")
    print(
        f"{'obvious Python, signatures':<34}{len(sample):>13,}{obvious_size:>8.1f}{slow:>10.1f}{len(sample) / obvious:>12,.0f}"
    )
    for name, seconds in (
        ("kernel, signatures", kernel),
        ("Parquet to signatures and bands", signing),
        ("links and pairs", linking),
    ):
        ratio = f"{size / seconds / slow:8.1f}" if seconds is kernel else ""
        print(f"{name:<34}{len(texts):>13,}{size:>8.1f}{size / seconds:>10.1f}{len(texts) / seconds:>12,.0f}{ratio}")
    print(f"dropped at threshold {THRESHOLD}: {dropped:,} of {len(texts):,}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=200_000_000, help="at least 1,000 a segment")
    parser.add_argument("--segments", type=int, default=20)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("files", nargs="*", help="WET files")
    options = parser.parse_args()
    print(machine(), end="\n\n")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        benchmark_marks(options.keys, options.segments, Path(folder))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        benchmark_documents(options.files, Path(folder))


if __name__ == "__main__":
    main()
