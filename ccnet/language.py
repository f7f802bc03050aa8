"""Language identification: a document's text in, (language, score) of the most probable language out.

A fastText model's file is read here and evaluated by kernels: the vectors of a text's words (each the sum of the word's
own and of its character n-grams) are remembered, so that words that come again cost next to nothing.

Source: CCNet (arXiv 1911.00359, section 3.3), which uses fastText's lid.176 on the text without its newlines; the model is
that of Joulin et al. (arXiv 1607.01759), its compressed form that of arXiv 1612.03651, n-grams as in arXiv 1607.04606.
"""

import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np

LABEL = b"__label__"
UNKNOWN = "und"  # BCP 47: undetermined
MAGIC = 793712314
CENTROIDS = 256  # of a product quantizer
SUPERVISED = 3
HIERARCHICAL, SOFTMAX = 1, 3  # the losses whose output is a distribution over the labels
PART = 2000  # characters of a long text that are looked at first
CLEAR = 0.95  # score of the part from which on the rest is not looked at
REMEMBERED = 1 << 17  # words; a power of two
LONGEST = 32  # bytes of a word that is remembered


def default_model() -> Path:
    """The lid.176.ftz that set-up installs. Raises ValueError where it is missing."""
    path = Path(sys.prefix) / "share" / "llama-pretrain" / "lid.176.ftz"
    if not path.is_file():
        raise ValueError(f"{path}: no language model there: run `make setup`, or give language.model")
    return path


class LanguageIdentifier:
    """A fastText language model, any that has labels `__label__xx`, quantized or not.

    `whole`: all of a text is looked at, as CCNet does. Otherwise the first PART characters are, and the whole only where
    these score less than CLEAR: half the time, and the same languages (`benchmarks/language_id.py`).
    Raises ValueError, in one line, for a file that is no such model, or only the beginning of one.
    """

    def __init__(self, model: Path, *, whole: bool = False) -> None:
        self._whole = whole
        if not model.is_file():
            raise ValueError(f"{model}: no such language model")
        self._model = _read(model)
        dim = self._model.rows.shape[1]
        self._memory = _Memory(
            np.zeros(REMEMBERED, np.int32),
            np.zeros((REMEMBERED, LONGEST), np.uint8),
            np.zeros((REMEMBERED, dim), np.float32),
            np.zeros(REMEMBERED, np.int32),
        )

    def predict(self, text: str) -> tuple[str, float]:
        """The language with the highest score, and the score (0 to 1). Newlines are deleted, as in CCNet.

        A text in which the model knows nothing at all is of language "und", with score 0.
        """
        if not self._whole and len(text) > PART:
            language, score = self._top(text[:PART])
            if score >= CLEAR:
                return language, score
        return self._top(text)

    def _top(self, text: str) -> tuple[str, float]:
        data = np.frombuffer(text.replace("\n", "").encode(), np.uint8)
        hidden, count = _hidden(data, self._model.words, self._model.ngrams, self._model.rows, self._memory)
        if not count:
            return UNKNOWN, 0.0
        label, score = _best(hidden, count, self._model.output, self._model.tree)
        return (self._model.labels[label], float(score)) if label >= 0 else (UNKNOWN, 0.0)


class _Words(NamedTuple):
    """The words of the dictionary: their bytes, where each begins, and a hash table of their numbers (-1: empty)."""

    data: np.ndarray  # uint8
    starts: np.ndarray  # int64[words + labels + 1]
    table: np.ndarray  # int32, a power of two
    labels_from: int  # the numbers of labels begin here
    end: int  # number of the word that ends a text, or -1


class _Ngrams(NamedTuple):
    """The n-grams of characters: lengths, and the row of each hash (-1: pruned), or none where each hash has its own."""

    shortest: int
    longest: int
    buckets: int
    kept: np.ndarray  # int32[buckets] or int32[0]
    bits: np.ndarray  # uint8, a bit for each of `kept`: most are pruned, and this fits a cache


class _Memory(NamedTuple):
    """Words that were seen, each at the place that its hash says: length (0: none), bytes, the sum of its rows, how many."""

    lengths: np.ndarray
    words: np.ndarray
    sums: np.ndarray
    counts: np.ndarray


class _Model(NamedTuple):
    words: _Words
    ngrams: _Ngrams
    rows: np.ndarray  # float32[rows, dim]
    output: np.ndarray  # float32[labels, dim]
    tree: np.ndarray  # int32[2 labels - 1, 2], the children of each node; empty where the loss is softmax
    labels: list[str]


def _read(path: Path) -> _Model:
    """A model file, format version 12 (or 11, which has no n-grams): arguments, dictionary, input and output matrix."""
    buffer, at = path.read_bytes(), 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{layout}", buffer, at)
        at += struct.calcsize(f"<{layout}")
        return values

    def array(dtype: Any, count: int) -> np.ndarray:
        nonlocal at
        size = np.dtype(dtype).itemsize * count
        if count < 0:
            raise struct.error
        if at + size > len(buffer):
            raise EOFError
        at += size
        return np.frombuffer(buffer[at - size : at], dtype)

    def quantizer() -> tuple[int, int, np.ndarray]:
        dim, parts, width, last = take("4i")
        if not (0 < width <= dim and 0 < last <= width and (parts - 1) * width + last == dim):
            raise struct.error
        return parts, width, array("<f4", dim * CENTROIDS)

    def matrix(quantized: bool) -> np.ndarray:
        if not quantized:
            rows, columns = take("2q")
            if rows < 0:
                raise struct.error
            return array("<f4", rows * columns).reshape(rows, columns)
        has_norms, rows, columns, size = take("?2qi")
        codes = array(np.uint8, size)
        parts, width, centroids = quantizer()
        if rows < 0 or size != rows * parts:
            raise struct.error
        codes = codes.reshape(rows, parts)
        pieces = np.split(centroids, np.arange(1, parts) * CENTROIDS * width)
        dense = np.concatenate([p.reshape(CENTROIDS, -1)[codes[:, n]] for n, p in enumerate(pieces)], axis=1)
        if has_norms:
            norm_codes = array(np.uint8, rows)
            dense *= quantizer()[2][norm_codes][:, None]
        return dense

    try:
        magic, version = take("2i")
        if magic != MAGIC:
            raise struct.error
        dim, _, _, _, _, word_ngrams, loss, kind, buckets, shortest, longest, _, _ = take("12id")
        if kind != SUPERVISED:
            raise ValueError(f"{path}: a fastText model without language labels")
        if word_ngrams > 1 or loss not in (HIERARCHICAL, SOFTMAX):
            raise ValueError(f"{path}: a fastText model of n-grams of words, or without softmax: not one of languages")
        longest = longest if version >= 12 else 0
        if dim < 1 or (longest > 0 and buckets < 1):
            raise struct.error
        entries, count, labels, _, pruned = take("3i2q")
        words, counts = [], []
        for _ in range(entries):
            end = buffer.find(b"\0", at)
            if end < 0:
                raise EOFError
            words.append(buffer[at:end])
            at = end + 1
            counts.append(take("qb")[0])
        kept = np.empty(0, np.int32)
        if pruned >= 0:
            pairs = array("<i4", 2 * pruned).reshape(-1, 2)
            kept = np.full(buckets, -1, np.int32)
            kept[pairs[:, 0]] = pairs[:, 1]
        (quantized,) = take("?")
        rows = matrix(quantized)
        (output_quantized,) = take("?")
        output = matrix(quantized and output_quantized)
        if count < 0 or rows.shape[1] != dim or output.shape != (labels, dim) or count + labels != entries:
            raise struct.error
        if len(rows) < count + (kept.max(initial=-1) + 1 if pruned >= 0 else buckets * (longest > 0)):
            raise struct.error
    except EOFError:
        raise ValueError(f"{path}: a fastText model cut off after {len(buffer)} bytes") from None
    except (struct.error, IndexError, OverflowError, MemoryError, TypeError):
        raise ValueError(f"{path}: not a fastText model, or not all of one ({len(buffer)} bytes)") from None
    if not labels or not all(word.startswith(LABEL) for word in words[count:]):
        raise ValueError(f"{path}: a fastText model without language labels")
    return _Model(
        _words(words, count),
        _Ngrams(shortest, longest, max(buckets, 1), kept, np.packbits(kept >= 0, bitorder="little")),
        np.ascontiguousarray(rows),
        np.ascontiguousarray(output),
        _tree(counts[count:]) if loss == HIERARCHICAL else np.empty((0, 2), np.int32),
        [word.decode(errors="replace").removeprefix(LABEL.decode()) for word in words[count:]],
    )


def _words(words: list[bytes], count: int) -> _Words:
    starts = np.zeros(len(words) + 1, np.int64)
    starts[1:] = np.cumsum([len(word) for word in words])
    data = np.frombuffer(b"".join(words), np.uint8)
    table = np.full(1 << (2 * len(words)).bit_length(), -1, np.int32)
    _fill(data, starts, table)
    return _Words(data, starts, table, count, words.index(b"</s>") if b"</s>" in words[:count] else -1)


def _tree(counts: list[int]) -> np.ndarray:
    """The Huffman tree of the labels, which are sorted by falling counts: leaves first, the root last."""
    size = len(counts)
    totals = counts + [10**15] * (size - 1)
    children = np.full((2 * size - 1, 2), -1, np.int32)
    leaf, node = size - 1, size
    for parent in range(size, 2 * size - 1):
        for side in range(2):
            if leaf >= 0 and totals[leaf] < totals[node]:
                children[parent, side] = leaf
                leaf -= 1
            else:
                children[parent, side] = node
                node += 1
        totals[parent] = totals[children[parent, 0]] + totals[children[parent, 1]]
    return children


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(h, byte):  # type: ignore[no-untyped-def]
    """One step of 32-bit FNV-1a as fastText computes it: bytes are signed."""
    value = np.uint64(byte) if byte < 128 else np.uint64(byte) | np.uint64(0xFFFFFF00)
    return ((h ^ value) * np.uint64(16777619)) & np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True, inline="always")
def _add(total, rows, row):  # type: ignore[no-untyped-def]
    for d in range(len(total)):
        total[d] += rows[row, d]


@numba.njit(cache=True, nogil=True)
def _find(data, low, high, h, words, starts, table):  # type: ignore[no-untyped-def]
    """The slot of a word with hash h: that of its number, or the empty one where it belongs."""
    mask = len(table) - 1
    slot = np.int64(h) & mask
    while table[slot] >= 0:
        start = starts[table[slot]]
        if starts[table[slot] + 1] - start == high - low:
            n = 0
            while n < high - low and words[start + n] == data[low + n]:
                n += 1
            if n == high - low:
                break
        slot = (slot + 1) & mask
    return slot


@numba.njit(cache=True, nogil=True)
def _fill(data, starts, table):  # type: ignore[no-untyped-def]
    for number in range(len(starts) - 1):
        h = np.uint64(2166136261)
        for at in range(starts[number], starts[number + 1]):
            h = _mix(h, data[at])
        table[_find(data, starts[number], starts[number + 1], h, data, starts, table)] = number


@numba.njit(cache=True, nogil=True)
def _add_word(data, low, high, h, words, ngrams, rows, total):  # type: ignore[no-untyped-def]
    """Adds the rows of a word to `total`: its own, where it is in the dictionary, and its n-grams'. Returns how many."""
    number = words.table[_find(data, low, high, h, words.data, words.starts, words.table)]
    if number >= words.labels_from:
        return 0  # a label
    if number < 0 and high - low >= 9:
        label = True
        for n, byte in enumerate((95, 95, 108, 97, 98, 101, 108, 95, 95)):  # __label__
            label &= data[low + n] == byte
        if label:
            return 0
    count = 0
    if number >= 0:
        _add(total, rows, number)
        count = 1
    inverse = 1.0 / ngrams.buckets
    end = high - low + 2
    word = np.empty(end, np.uint8)  # "<", the word, ">"
    word[0], word[end - 1] = 60, 62
    for n in range(low, high):
        word[n - low + 1] = data[n]
    for first in range(end):
        if word[first] & 0xC0 == 0x80:
            continue
        h = np.uint64(2166136261)
        at, n = first, 1
        while at < end and n <= ngrams.longest:
            h = _mix(h, word[at])
            at += 1
            while at < end and word[at] & 0xC0 == 0x80:  # the bytes of a character
                h = _mix(h, word[at])
                at += 1
            if n >= ngrams.shortest and not (n == 1 and (first == 0 or at == end)):
                hashed = np.int64(h)
                row = hashed - np.int64(np.float64(hashed) * inverse) * ngrams.buckets  # the quotient is rounded
                if row >= ngrams.buckets:
                    row -= ngrams.buckets
                if row < 0:
                    row += ngrams.buckets
                if len(ngrams.kept):
                    row = ngrams.kept[row] if ngrams.bits[row >> 3] >> (row & 7) & 1 else -1
                if row >= 0:
                    _add(total, rows, words.labels_from + row)
                    count += 1
            n += 1
    return count


@numba.njit(cache=True, nogil=True)
def _hidden(data, words, ngrams, rows, memory):  # type: ignore[no-untyped-def]
    """The sum of the rows of all words of a text, word by word, and how many rows these are.

    Words end at ASCII white space and NUL; the word `</s>` ends the text, or is added at its end.
    """
    hidden = np.zeros(rows.shape[1], np.float32)
    total = np.zeros(rows.shape[1], np.float32)
    count = 0
    at = 0
    while at < len(data):
        if data[at] <= 32 and (data[at] == 32 or 9 <= data[at] <= 13 or data[at] == 0):
            at += 1
            continue
        low = at
        h = np.uint64(2166136261)
        while at < len(data) and not (data[at] <= 32 and (data[at] == 32 or 9 <= data[at] <= 13 or data[at] == 0)):
            h = _mix(h, data[at])
            at += 1
        size = at - low
        if size == 4 and data[low] == 60 and data[low + 1] == 47 and data[low + 2] == 115 and data[low + 3] == 62:
            break
        slot = np.int64(h ^ (h >> np.uint64(16))) & (len(memory.lengths) - 1)
        known = memory.lengths[slot] == size
        n = 0
        while known and n < size:
            known = memory.words[slot, n] == data[low + n]
            n += 1
        if known:
            _add(hidden, memory.sums, slot)
            count += memory.counts[slot]
            continue
        total[:] = 0
        added = _add_word(data, low, at, h, words, ngrams, rows, total)
        for d in range(len(hidden)):
            hidden[d] += total[d]
        count += added
        if size <= LONGEST:
            memory.lengths[slot] = size
            for n in range(size):
                memory.words[slot, n] = data[low + n]
            for d in range(len(total)):
                memory.sums[slot, d] = total[d]
            memory.counts[slot] = added
    if words.end >= 0:
        _add(hidden, rows, words.end)
        count += 1
    return hidden, count


@numba.njit(cache=True, nogil=True)
def _log(x):  # type: ignore[no-untyped-def]
    return np.float32(np.log(np.float64(x) + 1e-5))


@numba.njit(cache=True, nogil=True)
def _best(hidden, count, output, tree):  # type: ignore[no-untyped-def]
    """The label with the highest probability, and that (as fastText gives it, a little above the true one); -1: none."""
    hidden = hidden * np.float32(1.0 / count)
    best, label = np.float32(-np.inf), -1
    if not len(tree):
        scores = np.zeros(len(output), np.float32)
        for n in range(len(output)):
            for d in range(len(hidden)):
                scores[n] += output[n, d] * hidden[d]
        scores = np.exp(scores - scores.max())
        label = int(np.argmax(scores))
        return label, np.exp(_log(scores[label] / scores.sum()))
    nodes = np.empty(len(tree), np.int64)
    scores = np.empty(len(tree), np.float32)
    nodes[0], scores[0] = len(tree) - 1, 0
    left = 1
    while left:
        left -= 1
        node, score = nodes[left], scores[left]
        if score < _log(0.0) or score <= best:
            continue
        if tree[node, 0] < 0:
            best, label = score, node
            continue
        f = np.float32(0)
        for d in range(len(hidden)):
            f += output[node - len(output), d] * hidden[d]
        f = np.float32(1.0 / (1.0 + np.exp(-np.float64(f))))
        nodes[left], scores[left] = tree[node, 1], score + _log(f)
        nodes[left + 1], scores[left + 1] = tree[node, 0], score + _log(np.float32(1.0 - f))
        left += 2
    return label, np.exp(best)
