"""Paragraph keys: the kernel beside the obvious Python version, in one run on the same pages.

In: WET files (arguments), or a segment of the demo crawl that is written here. Out: MB of text a second of CPU time,
and the ratio.
`python -m benchmarks.paragraph_keys [FILE …]`
"""

import hashlib
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa

from benchmarks.machine import machine
from ccnet.demo_crawl import plan, write_segment
from ccnet.normalize import paragraph_keys
from ccnet.wet import read_pages

ROUNDS = 5
PUNCTUATION = "，。、„”“«»１」「《》´∶：？！（）；–—．～’…━〈〉【】％►"
DELETED = {ord(c): None for c in PUNCTUATION} | dict.fromkeys([*range(32), *range(127, 160)])


def obvious_keys(text: str) -> list[int]:
    """CCNet's rule, line by line."""
    keys = []
    for line in text.split("\n"):
        normal = "".join("0" if unicodedata.category(c) == "Nd" else c for c in line.strip().lower()).translate(DELETED)
        keys.append(int.from_bytes(hashlib.sha1(normal.encode()).digest()[:8], "little"))
    return keys


def main(files: list[str]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        if not files:
            files = [str(Path(folder) / "demo.warc.wet.gz")]
            write_segment(plan(8)[0], Path(files[0]))
        start = time.process_time()
        batches = [batch.column("raw_content") for file in files for batch in read_pages(file, Counter())]
        reading = time.process_time() - start
    text = pa.concat_arrays(batches)
    size = sum(len(page.as_py().encode()) for page in text) / 1e6
    paragraph_keys(text)  # compiles
    start = time.process_time()
    for _ in range(ROUNDS):
        keys, _ = paragraph_keys(text)
    kernel = (time.process_time() - start) / ROUNDS
    start = time.process_time()
    expected = [key for page in text.to_pylist() for key in obvious_keys(page)]
    obvious = time.process_time() - start
    assert keys.tolist() == expected
    print(machine())
    print(f"text            {size:8.1f} MB, {len(keys):,} paragraphs")
    print(f"reading the WET {size / reading:8.1f} MB/s")
    print(f"kernel          {size / kernel:8.1f} MB/s")
    print(f"obvious Python  {size / obvious:8.1f} MB/s")
    print(f"ratio           {obvious / kernel:8.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
