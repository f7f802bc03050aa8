"""The words of texts: UTF-8 in, 64-bit hashes of words and of sequences of them out.

A text is split at white space (`str.isspace`), and every character of a script that is written without spaces (Han, Kana,
Thai, Lao, Khmer, Burmese, Tibetan) is a word of its own. Words are normalised as lines are for paragraph keys (lower case,
decimal digits to "0", CCNet's punctuation and control characters deleted), and those of which nothing is left don't count.
"""

import functools
import sys

import numba
import numpy as np
import pyarrow as pa

from ccnet.normalize import SPACE, decode, key_tables, normalize_line

# Blocks of scripts written without spaces between words: first and last code point.
_UNSPACED = [
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF),
    (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
]  # fmt: skip


def text_buffers(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a string array without nulls (uint8), and where each text begins in them (int32[texts + 1])."""
    assert text.type == pa.string() and not text.null_count
    _, offsets, data = text.buffers()
    starts = np.frombuffer(offsets, np.int32, len(text) + 1, 4 * text.offset) if len(text) else np.zeros(1, np.int32)
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), starts


@functools.cache
def word_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `hash_words` looks characters up in: `ccnet.normalize.key_tables`, and bool[code points]: a word by itself."""
    unspaced = np.zeros(sys.maxunicode + 1, np.bool_)
    for start, end in _UNSPACED:
        unspaced[start : end + 1] = True
    return *key_tables(), unspaced


@numba.njit(cache=True, nogil=True)
def word_buffers(starts):  # type: ignore[no-untyped-def]
    """Memory for `hash_words`, enough for the longest of the texts: for a normalised word, and for the hashes."""
    longest = 0
    for text in range(len(starts) - 1):
        longest = max(longest, starts[text + 1] - starts[text])
    return np.empty(longest + longest // 2 + 3, np.uint8), np.empty(longest + 1, np.uint64)


@numba.njit(cache=True, nogil=True)
def hash_words(octets, start, end, table, ascii_bytes, unspaced, normal, words):  # type: ignore[no-untyped-def]
    """Writes the hash of each word of octets[start:end] to `words`; returns their number."""
    count = 0
    i = start
    while i <= end:
        code, width = decode(octets, i) if i < end else (np.uint32(0x20), 1)
        alone = unspaced[code]
        if not alone and not table[code] & SPACE:
            i += width
            continue
        # A word ends before i, and where the character at i is one of its own, another ends behind it.
        for word_start, word_end in ((start, i), (i, i + width)) if alone else ((start, i), (i, i)):
            if word_start == word_end:
                continue
            size = normalize_line(octets, word_start, word_end, table, ascii_bytes, normal)
            if size == 0:
                continue
            hashed = np.uint64(0xCBF29CE484222325)
            for n in range(size):
                hashed = (hashed ^ np.uint64(normal[n])) * np.uint64(0x100000001B3)  # FNV-1a
            words[count] = hashed
            count += 1
        i += width
        start = i
    return count


@numba.njit(cache=True, nogil=True)
def sequence_hash(words, first, last):  # type: ignore[no-untyped-def]
    """The hash of the words first … last - 1."""
    hashed = np.uint64(last - first)
    for i in range(first, last):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + words[i]
    return mix(hashed)


@numba.njit(cache=True, nogil=True)
def mix(x):  # type: ignore[no-untyped-def]
    """A bijection of 64 bits that spreads each over all (the finalizer of MurmurHash3)."""
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ x >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ x >> np.uint64(33)
