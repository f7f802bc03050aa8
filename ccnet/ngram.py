"""N-gram language models in KenLM's binary format: word numbers in, the log10 probability of each word out.

The file is mapped into memory, never copied, and the kernels read it in place. They give exactly the numbers that the
kenlm module gives, faster, since a word is looked up once per model and not at every occurrence.

Source: Heafield, "KenLM: Faster and Smaller Language Model Queries" (WMT 2011), and the files of its build_binary, format
version 5: `probing`, and `trie` without quantisation and array compression.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np

_MAGIC = b"mmap lm http://kheafield.com/code format version 5\n\0"
_SANITY = struct.pack("<56s3f3IQ", _MAGIC, 0.0, 1.0, -0.5, 1, 0xFFFFFFFF, 0, 1)
_FIXED = struct.Struct("<B3xfI?3xI")  # order, probing multiplier, kind, whether it has the words, version of the tables
_PROBING = (0, 0)  # kind and version
_TRIE = (2, 1)

# A back-off of -0.0 says that no longer n-gram begins with this one; a probability whose sign bit is not set, in probing
# tables, that a longer one ends with it.
_SIGN = np.uint32(0x80000000)


class NgramModel:
    """A model file of the two kinds; `read_ngram_model` makes it."""

    def __init__(self, octets: np.ndarray, trie: bool, begin: int, slots: int, unigrams: int, tables: np.ndarray, types: int):
        self._octets = octets
        self._trie = trie
        self._vocabulary = begin, slots  # where it begins, and its size in entries
        self._unigrams = unigrams
        self._tables = tables
        self._types = types
        self._begin, self._end = self.spelled([b"<s>", b"</s>"])

    def words(self, octets: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The numbers of the words that are spelled octets[starts[i]:ends[i]]; 0 for those that the model does not know.

        Args: octets uint8, starts and ends int64[words]. Returns: int32[words].
        """
        return _words(self._octets, self._trie, *self._vocabulary, octets, starts, ends)

    def spelled(self, spellings: Sequence[bytes]) -> np.ndarray:
        """`words` of a list."""
        ends = np.cumsum([0, *map(len, spellings)])
        return self.words(np.frombuffer(b"".join(spellings), np.uint8), ends[:-1], ends[1:])

    def score(self, words: np.ndarray) -> tuple[float, np.ndarray]:
        """log10 of a sentence's probability, exactly `kenlm.Model.score`, and of what it is made of.

        Args: words int32[n].
        Returns: the sum; and float32[n + 1], of each word after those before it, and of the sentence's end.
        """
        sentence = np.empty(len(words) + 2, np.uint32)
        sentence[0], sentence[1:-1], sentence[-1] = self._begin, words, self._end
        if self._trie:
            return _trie_scores(self._octets, self._unigrams, self._tables, self._types, sentence)
        return _probing_scores(self._octets, self._unigrams, self._tables, sentence)


def read_ngram_model(path: Path) -> NgramModel | None:
    """The model of a file, or None where it is of another kind: ARPA, quantised, compressed, with rest costs."""
    with open(path, "rb") as file:
        header = file.read(len(_SANITY) + _FIXED.size)
        if len(header) < len(_SANITY) + _FIXED.size or not header.startswith(_SANITY):
            return None
        order, multiplier, kind, _, version = _FIXED.unpack_from(header, len(_SANITY))
        counts = [int.from_bytes(file.read(8), "little") for _ in range(order)]
        if order < 2 or (kind, version) not in (_PROBING, _TRIE):
            return None
        begin = (len(header) + 8 * order + 7) // 8 * 8
        trie = (kind, version) == _TRIE
        layout = _trie_layout if trie else _probing_layout
        slots, unigrams, tables, size = layout(begin, counts, multiplier)
        if os.fstat(file.fileno()).st_size < size:
            return None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return NgramModel(np.frombuffer(mapped, np.uint8), trie, begin + 8, slots, unigrams, tables, counts[0])


def _probing_layout(begin: int, counts: list[int], multiplier: float) -> tuple[int, int, np.ndarray, int]:
    """Entries of the vocabulary, byte where the unigrams begin, uint64[order - 1, 2] where the table of each longer
    n-gram begins and how many entries it has, and the end."""

    def entries(count: int) -> int:
        return max(count + 1, int(np.float32(multiplier) * np.float32(count)))

    unigrams = begin + 8 + 12 * entries(counts[0])
    tables = np.empty((len(counts) - 1, 2), np.uint64)
    end = unigrams + 8 * (counts[0] + 1)
    for n, count in enumerate(counts[1:]):
        tables[n] = end, entries(count)
        end += (16 if n < len(tables) - 1 else 12) * entries(count)
    return entries(counts[0]), unigrams, tables, end


def _trie_layout(begin: int, counts: list[int], _: float) -> tuple[int, int, np.ndarray, int]:
    """The same for tries; the second number of a table is the bits of its pointers into the next one."""
    unigrams = begin + 8 + 8 * counts[0]
    tables = np.empty((len(counts) - 1, 2), np.uint64)
    end = unigrams + 16 * (counts[0] + 2)
    for n, count in enumerate(counts[1:]):
        longest = n == len(tables) - 1
        pointer = 0 if longest else counts[n + 2].bit_length()
        tables[n] = end, pointer
        bits = counts[0].bit_length() + (31 if longest else 63) + pointer
        end += ((1 + count) * bits + 7) // 8 + 8
    return counts[0], unigrams, tables, end


@numba.njit(cache=True, nogil=True)
def _u32(octets, i):  # type: ignore[no-untyped-def]
    value = np.uint64(octets[i])
    for n in range(1, 4):
        value |= np.uint64(octets[i + np.uint64(n)]) << np.uint64(8 * n)
    return np.uint32(value)


@numba.njit(cache=True, nogil=True)
def _u64(octets, i):  # type: ignore[no-untyped-def]
    """Compiled to one load."""
    value = np.uint64(octets[i])
    for n in range(1, 8):
        value |= np.uint64(octets[i + np.uint64(n)]) << np.uint64(8 * n)
    return value


@numba.njit(cache=True, nogil=True)
def _f32(octets, i):  # type: ignore[no-untyped-def]
    return np.uint32(_u32(octets, i)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def _murmur(octets, start, end):  # type: ignore[no-untyped-def]
    """MurmurHash64A (Austin Appleby) with seed 0 of octets[start:end]."""
    m = np.uint64(0xC6A4A7935BD1E995)
    h = np.uint64(end - start) * m
    i = np.uint64(start)
    while i + np.uint64(8) <= np.uint64(end):
        k = _u64(octets, i) * m
        k = (k ^ k >> np.uint64(47)) * m
        h = (h ^ k) * m
        i += np.uint64(8)
    if i < np.uint64(end):
        tail = np.uint64(0)
        for n in range(np.int64(np.uint64(end) - i)):
            tail |= np.uint64(octets[i + np.uint64(n)]) << np.uint64(8 * n)
        h = (h ^ tail) * m
    h = (h ^ h >> np.uint64(47)) * m
    return h ^ h >> np.uint64(47)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _slot(octets, start, slots, width, key):  # type: ignore[no-untyped-def]
    """Where the entry of a key is in a hash table with linear probing, or 0 where it is not. Key 0: an empty entry."""
    end = start + slots * width
    at = start + key % slots * width
    while True:
        found = _u64(octets, at)
        if found == key:
            return at
        if found == np.uint64(0):
            return np.uint64(0)
        at += width
        if at == end:
            at = start


@numba.njit(cache=True, nogil=True)
def _words(model, trie, vocabulary, slots, octets, starts, ends):  # type: ignore[no-untyped-def]
    vocabulary = np.uint64(vocabulary)
    words = np.zeros(len(starts), np.int32)
    for word in range(len(starts)):
        key = _murmur(octets, starts[word], ends[word])
        if trie:  # sorted hashes, without the unknown word, whose number is 0
            low, high = np.uint64(0), _u64(model, vocabulary - np.uint64(8))
            while low < high:
                middle = (low + high) >> np.uint64(1)
                found = _u64(model, vocabulary + np.uint64(8) * middle)
                if found == key:
                    words[word] = np.int32(middle) + 1
                    break
                if found < key:
                    low = middle + np.uint64(1)
                else:
                    high = middle
        else:
            at = _slot(model, vocabulary, np.uint64(slots), np.uint64(12), key)
            if at:
                words[word] = _u32(model, at + np.uint64(8))
    return words


@numba.njit(cache=True, nogil=True)
def _extends(backoff):  # type: ignore[no-untyped-def]
    return np.float32(backoff).view(np.uint32) != _SIGN


@numba.njit(cache=True, nogil=True)
def _probing_scores(model, unigrams, tables, sentence):  # type: ignore[no-untyped-def]
    unigrams = np.uint64(unigrams)
    longest = len(tables) - 1
    backoff, following = np.zeros(longest + 1, np.float32), np.zeros(longest + 1, np.float32)
    scores = np.empty(len(sentence) - 1, np.float32)
    total = np.float32(0)
    context = 1  # words before this one that matter to it
    backoff[0] = _f32(model, unigrams + np.uint64(8) * np.uint64(sentence[0]) + np.uint64(4))
    for i in range(1, len(sentence)):
        at = unigrams + np.uint64(8) * np.uint64(sentence[i])
        bits = _u32(model, at)
        following[0] = _f32(model, at + np.uint64(4))
        extent = 1 if _extends(following[0]) else 0
        matched = 0  # words of the context in the longest n-gram that was found
        key = np.uint64(sentence[i])
        while matched < context and not bits & _SIGN:
            factor = np.uint64(sentence[i - 1 - matched]) + np.uint64(1)
            key = key * np.uint64(8978948897894561157) ^ factor * np.uint64(17894857484156487943)
            if matched == longest:
                at = _slot(model, tables[matched, 0], tables[matched, 1], np.uint64(12), key)
                if at:
                    bits = _u32(model, at + np.uint64(8))
                    matched += 1
                break
            at = _slot(model, tables[matched, 0], tables[matched, 1], np.uint64(16), key)
            if not at:
                break
            bits = _u32(model, at + np.uint64(8))
            matched += 1
            following[matched] = _f32(model, at + np.uint64(12))
            if _extends(following[matched]):
                extent = matched + 1
        score = np.uint32(bits | _SIGN).view(np.float32)
        for n in range(matched, context):
            score += backoff[n]
        scores[i - 1] = score
        total += score
        backoff, following = following, backoff
        context = extent
    return total, scores


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _entry(model, start, word_bits, bits, begin, end, types, word):  # type: ignore[no-untyped-def]
    """Which of the entries [begin, end) of a trie's table is that of a word; `end` where none is.

    An entry begins with the word's number; they are sorted by it and the numbers are spread evenly.
    """
    mask = (np.uint64(1) << word_bits) - np.uint64(1)
    low, high = begin, end
    below, above = np.uint64(0), types  # numbers of the entries before low, and of high
    while high - low > np.uint64(8):
        at = low + (word - below) * (high - low) // (above - below + np.uint64(1))
        bit = at * bits
        found = _u64(model, start + (bit >> np.uint64(3))) >> (bit & np.uint64(7)) & mask
        if found == word:
            return at
        if found < word:
            low, below = at + np.uint64(1), found
        else:
            high, above = at, found
    bit = low * bits
    while low < high:
        found = _u64(model, start + (bit >> np.uint64(3))) >> (bit & np.uint64(7)) & mask
        if found >= word:
            return low if found == word else end
        low += np.uint64(1)
        bit += bits
    return end


@numba.njit(cache=True, nogil=True)
def _bits(model, start, bit, mask):  # type: ignore[no-untyped-def]
    return _u64(model, start + (bit >> np.uint64(3))) >> (bit & np.uint64(7)) & mask


@numba.njit(cache=True, nogil=True)
def _trie_scores(model, unigrams, tables, types, sentence):  # type: ignore[no-untyped-def]
    unigrams, types = np.uint64(unigrams), np.uint64(types)
    word_bits = np.uint64(0)
    while types >> word_bits:
        word_bits += np.uint64(1)
    longest = len(tables) - 1
    backoff, following = np.zeros(longest + 1, np.float32), np.zeros(longest + 1, np.float32)
    scores = np.empty(len(sentence) - 1, np.float32)
    total = np.float32(0)
    context = 1
    backoff[0] = _f32(model, unigrams + np.uint64(16) * np.uint64(sentence[0]) + np.uint64(4))
    for i in range(1, len(sentence)):
        at = unigrams + np.uint64(16) * np.uint64(sentence[i])
        score = _f32(model, at)
        following[0] = _f32(model, at + np.uint64(4))
        extent = 1 if _extends(following[0]) else 0
        begin, end = _u64(model, at + np.uint64(8)), _u64(model, at + np.uint64(24))
        matched = 0
        while matched < context and begin != end:
            start, pointer = tables[matched, 0], tables[matched, 1]
            last = matched == longest
            bits = word_bits + (np.uint64(31) if last else np.uint64(63) + pointer)
            word = np.uint64(sentence[i - 1 - matched])
            found = _entry(model, start, word_bits, bits, begin, end, types, word)
            if found == end:
                break
            bit = found * bits + word_bits
            score = np.uint32(_bits(model, start, bit, np.uint64(0x7FFFFFFF)) | np.uint64(_SIGN)).view(np.float32)
            matched += 1
            if last:
                break
            bit += np.uint64(31)
            following[matched] = np.uint32(_bits(model, start, bit, np.uint64(0xFFFFFFFF))).view(np.float32)
            if _extends(following[matched]):
                extent = matched + 1
            mask = (np.uint64(1) << pointer) - np.uint64(1)
            bit += np.uint64(32)
            begin, end = _bits(model, start, bit, mask), _bits(model, start, bit + bits, mask)
        for n in range(matched, context):
            score += backoff[n]
        scores[i - 1] = score
        total += score
        backoff, following = following, backoff
        context = extent
    return total, scores
