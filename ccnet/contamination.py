"""Evaluation sets in, the documents that have a piece of one out: pieces are 13 words in a row.

Source: GPT-3 (arXiv 2005.14165, appendix C), which takes 13-grams of lower-case words without punctuation; here words are
those of `ccnet.words`.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import fsspec
import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.quality import Verdict, count_lines
from ccnet.words import hash_words, sequence_hash, text_buffers, word_buffers, word_tables

WORDS = 13
BATCH = 1000  # texts that are hashed at a time


@dataclass(frozen=True)
class Contaminated:
    """A rule (`ccnet.quality.Rule`): documents go that have a piece of a text of these evaluation sets."""

    files: tuple[str, ...]
    reasons: ClassVar[tuple[str, ...]] = ("evaluation_set",)

    def __call__(self, text: pa.StringArray) -> Verdict:
        found = count_pieces(text, _known(self.files))
        return Verdict(np.zeros(count_lines(text), np.uint8), (found > 0).astype(np.uint8))


@functools.cache
def _known(files: tuple[str, ...]) -> np.ndarray:
    """Read once in a worker, which has many segments."""
    return evaluation_keys(files, Counter())


def evaluation_keys(files: Iterable[str], counts: Counter[str]) -> np.ndarray:
    """The keys of all runs of 13 words in the texts of evaluation sets: uint64, distinct, ascending.

    Files, at paths or URLs: Parquet, JSON lines (`.jsonl`, `.json`, also .gz), of which every string of a row, however deep,
    is a text; any other is one text. `counts` is added to: `texts`, and `short` (those of fewer than 13 words, which have no
    key).

    Raises: ValueError, in one line, for a file that can't be read as what its name says.
    """
    keys = [np.empty(0, np.uint64)]
    for file in files:
        texts: list[str] = []
        for text in _texts(file):
            texts.append(text)
            if len(texts) == BATCH:
                keys.append(_keys(texts, counts))
                texts = []
        keys.append(_keys(texts, counts))
    return np.unique(np.concatenate(keys))


def count_pieces(text: pa.StringArray, keys: np.ndarray) -> np.ndarray:
    """int64[texts]: how many runs of 13 words of each text are among `keys`."""
    return _count(*text_buffers(text), *word_tables(), _table(keys))


def _keys(texts: list[str], counts: Counter[str]) -> np.ndarray:
    found, sizes = _pieces(
        *text_buffers(pa.array([text.encode(errors="replace").decode() for text in texts], pa.string())), *word_tables()
    )
    counts["texts"] += len(texts)
    counts["short"] += int((sizes == 0).sum())
    return np.unique(found)


def _texts(file: str) -> Iterator[str]:
    name = file.removesuffix(".gz")
    try:
        with fsspec.open(file, "rb", compression="infer") as opened:
            if name.endswith(".parquet"):
                for batch in pq.ParquetFile(opened).iter_batches(BATCH):
                    for row in batch.to_pylist():
                        yield from _strings(row)
            elif name.endswith((".jsonl", ".json")):
                for number, line in enumerate(opened, 1):
                    try:
                        yield from _strings(json.loads(line))
                    except (ValueError, RecursionError):
                        raise ValueError(f"{file}: line {number} is no JSON") from None
            else:
                yield opened.read().decode("utf-8", "replace")
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise ValueError(f"{file}: can't be read: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


@numba.njit(cache=True, nogil=True)
def _pieces(octets, starts, table, ascii_bytes, unspaced):  # type: ignore[no-untyped-def]
    """The keys of all texts, and how many each has."""
    normal, words = word_buffers(starts)
    sizes = np.zeros(len(starts) - 1, np.int64)
    keys = np.empty(starts[-1] - starts[0] + 1, np.uint64)
    size = 0
    for text in range(len(starts) - 1):
        count = hash_words(octets, starts[text], starts[text + 1], table, ascii_bytes, unspaced, normal, words)
        for last in range(WORDS, count + 1):
            keys[size] = sequence_hash(words, last - WORDS, last)
            size += 1
        sizes[text] = max(0, count - WORDS + 1)
    return keys[:size], sizes


def _table(keys: np.ndarray) -> np.ndarray:
    """Keys by their low bits, in the next free place; 0 is an empty one."""
    slots = np.zeros(1 << max(4, (2 * len(keys)).bit_length()), np.uint64)
    _fill(keys, slots)
    return slots


@numba.njit(cache=True, nogil=True)
def _fill(keys, slots):  # type: ignore[no-untyped-def]
    for key in keys:
        place = key & np.uint64(len(slots) - 1)
        while slots[place]:
            place = (place + np.uint64(1)) & np.uint64(len(slots) - 1)
        slots[place] = key


@numba.njit(cache=True, nogil=True)
def _count(octets, starts, table, ascii_bytes, unspaced, slots):  # type: ignore[no-untyped-def]
    normal, words = word_buffers(starts)
    found = np.zeros(len(starts) - 1, np.int64)
    for text in range(len(starts) - 1):
        count = hash_words(octets, starts[text], starts[text + 1], table, ascii_bytes, unspaced, normal, words)
        for last in range(WORDS, count + 1):
            key = sequence_hash(words, last - WORDS, last)
            place = key & np.uint64(len(slots) - 1)
            while slots[place] and slots[place] != key:
                place = (place + np.uint64(1)) & np.uint64(len(slots) - 1)
            found[text] += slots[place] == key and key != 0
    return found
