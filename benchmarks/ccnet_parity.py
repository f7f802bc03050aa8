"""Parity with cc_net 1.0: the stages with `corpus=ccnet` beside what cc_net itself kept of the same two segments.

In: the test data in `../shared/data`, or in the folder that SHARED_DATA names. Out: counts of what is equal, every
difference, and exit code 1 for one that `EXPLAINED` does not give a reason for.
`python -m benchmarks.ccnet_parity`
"""

import gzip
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from pipeline.__main__ import run
from pipeline.config import load

STAGES = ("fetch", "hash", "dedup", "lm", "mine", "regroup")
EQUAL = {
    "line_ids": "line_ids",
    "texts (SHA-1)": "raw_content_sha1",
    "lines": "nlines",
    "lines of the page": "original_nlines",
    "characters": "length",
    "languages": "language",
    "language scores": "language_score",
    "perplexities": "perplexity",
    "buckets": "bucket",
}
Key = tuple[str, str, str]  # segment, URL, digest
EXPLAINED: Mapping[tuple[Key, str], str] = {}  # (document, what differs): why that is right here


def read_gold(path: Path) -> dict[Key, dict[str, Any]]:
    """cc_net's documents."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {(row["segment"], row["url"], row["digest"]): row for row in map(json.loads, lines)}


def read_files(folder: Path) -> dict[Key, dict[str, Any]]:
    """The documents of `corpus/{language}_{bucket}_{n}.json.gz`. A file's name must say what is in it."""
    found = {}
    for path in sorted(folder.glob("*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                assert path.name.startswith(f"{row['language']}_{row['bucket']}_"), path
                row["raw_content_sha1"] = hashlib.sha1(row["raw_content"].encode()).hexdigest()
                found[row["cc_segment"], row["url"], row["digest"]] = row
    return found


def differences(gold: Mapping[Key, Any], found: Mapping[Key, Any]) -> Iterator[tuple[Key, str, str]]:
    """(document, what differs, in words)."""
    for key in gold.keys() - found.keys():
        yield key, "document", "only cc_net has it"
    for key in found.keys() - gold.keys():
        yield key, "document", "cc_net does not have it"
    for key in gold.keys() & found.keys():
        for name, column in EQUAL.items():
            theirs, ours = gold[key].get(column), found[key].get(column)
            if theirs != ours:
                yield key, name, f"cc_net has {theirs}, here it is {ours}"


def main() -> int:
    """Prints the table; returns the exit code."""
    data = Path(os.environ.get("SHARED_DATA", "../shared/data"))
    gold_file = data / "gold" / "ccnet_segments_0_1.jsonl.gz"
    if not gold_file.is_file():
        print(f"{gold_file}: no such file; the test data is needed, SHARED_DATA names its folder")
        return 0
    segments = ",".join(f"'{path}'" for path in sorted((data / "crawl" / "segments").glob("seg-0000[01].*")))
    with tempfile.TemporaryDirectory() as folder:
        config = load(["corpus=ccnet", f"crawl.files=[{segments}]", f"lm.dir={data / 'lm'}", f"out={folder}"])
        for stage in STAGES:
            start = time.perf_counter()
            run(stage, config)
            print(f"{stage:<20} {time.perf_counter() - start:6.1f} s")
        found = read_files(Path(folder) / "corpus")
    gold = read_gold(gold_file)
    listed = sorted(differences(gold, found))
    both = gold.keys() & found.keys()
    print(f"{'documents':<20} {len(both)} of cc_net's {len(gold)}, {len(found)} here")
    for name in EQUAL:
        print(f"{name:<20} {len(both) - sum(what == name for _, what, _ in listed)} of {len(both)} equal")
    for key, what, words in listed:
        print(f"{' '.join(key)}: {what}: {words} ({EXPLAINED.get((key, what), 'NOT EXPLAINED')})")
    unexplained = sum((key, what) not in EXPLAINED for key, what, _ in listed)
    print(f"{'differences':<20} {len(listed)}, {unexplained} of them without a reason")
    print(f"{'machine':<20} {machine()}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
