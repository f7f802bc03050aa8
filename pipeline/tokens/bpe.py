"""SentencePiece's BPE as a kernel: the UTF-8 of many documents in, their ids out, without a Python object per word.

The rule (SentencePiece, src/bpe_model.cc): a text begins as its characters; of all neighbours that together are a piece,
those with the best score become one, the leftmost where scores are equal, until none are left.

**Segments.** A merge makes a piece, and its two sides meet inside that piece. So where two characters stand side by side in
no piece, nothing ever merges across, and neither side has a part in what becomes of the other. There the text is cut.
`joins` holds the neighbours of every piece; a few others share their places, which only makes segments longer. So the cuts
are right for any vocabulary, by construction.

**Memory.** The ids of a segment are looked up in a table of fixed size, by all of its bytes. A segment that is not there is
merged, and takes the place of one that was. So memory is bounded, and the frequent segments are mostly there.

Symbols: the ids of pieces and, from the number of pieces on, characters that are no piece but part of one. Spaces are ▁.
"""

from typing import Any

import numba
import numpy as np
import sentencepiece

SPACE = 0x2581  # ▁
REMEMBERED = 1 << 18  # segments that an encoder keeps: 16 MB
LONGEST = 24  # bytes of a segment that is kept
MOST = 8  # ids of a segment that is kept
SCANNED = 128  # characters of a segment up to which its best merge is looked for one by one, and not in a heap

# A row of what is remembered, a cache line: bytes; their number (8 bits) and that of the ids; the ids, two a word.
_COUNTS, _IDS, _ROW = LONGEST // 8, LONGEST // 8 + 1, LONGEST // 8 + 1 + MOST // 2
_SYMBOL, _BEFORE, _AFTER, _MERGED, _PLACE = range(5)
_LOW = np.int64(2**32 - 1)
_NONE = np.int64(2**63 - 1)  # where two symbols don't merge
_EMPTY = np.uint64(2**64 - 1)
_BYTES = np.array([2 ** (8 * count) - 1 for count in range(9)], np.uint64)  # masks: the first bytes of a word
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Bpe:
    """A vocabulary as the kernel reads it, and the segments it remembers.

    `proto`, `processor`: a model of which `pipeline.tokens.tokenizer.unlike_llama` has nothing to say. `remembered`:
    segments, a power of 2.
    """

    def __init__(self, proto: Any, processor: sentencepiece.SentencePieceProcessor, remembered: int = REMEMBERED) -> None:
        normal = [(piece.piece, i, piece.score) for i, piece in enumerate(proto.pieces) if piece.type == piece.NORMAL]
        symbol_of = {text: i for text, i, _ in normal}
        self._pieces, self._eos = len(proto.pieces), processor.eos_id()
        # int32 [0x110000]: the symbol of a character, -1 where no piece has it.
        self._symbols = np.full(0x110000, -1, np.int32)
        for number, character in enumerate(sorted({character for text, _, _ in normal for character in text})):
            self._symbols[ord(character)] = symbol_of.setdefault(character, self._pieces + number)
        self._symbols[ord(" ")] = self._symbols[SPACE]
        several = [(text, i, score) for text, i, score in normal if len(text) > 1]
        pairs = {text[at : at + 2] for text, _, _ in several for at in range(len(text) - 1)}
        neighbours = np.array([[symbol_of[character] for character in pair] for pair in pairs], np.int64).reshape(-1, 2)
        # bool: by the hash of two symbols, whether some piece has these two characters side by side.
        self._joins = np.zeros(_power_of_2(32 * len(neighbours)), np.bool_)
        _fill_joins(self._joins, neighbours)
        ranks = {score: rank for rank, score in enumerate(sorted({score for _, _, score in several}, reverse=True))}
        splits = [
            (symbol_of[text[:at]] << 32 | symbol_of[text[at:]], ranks[score] << 32 | i)
            for text, i, score in several
            for at in range(1, len(text))
            if text[:at] in symbol_of and text[at:] in symbol_of
        ]
        # uint64 [rows, 2], by the hash of two symbols: left << 32 | right, rank << 32 | piece; the best score has rank 0.
        self._merges = np.full((_power_of_2(2 * len(splits)), 2), _EMPTY)
        _fill_merges(self._merges, np.array(splits, np.uint64).reshape(-1, 2))
        self._octets = np.array([processor.piece_to_id(f"<0x{octet:02X}>") for octet in range(256)], np.int32)
        self._remembered = np.zeros((remembered, _ROW), np.uint64)

    def encode(self, octets: np.ndarray, starts: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Documents to ids, the same as SentencePiece's.

        Args: octets: uint8, valid UTF-8. starts: integers [documents + 1]; document d is octets[starts[d]:starts[d + 1]].
        Returns: ids of `dtype`, documents end to end, each with eos behind it; int64 [documents + 1], where each begins.
        """
        first, last = int(starts[0]), int(starts[-1])
        # Keys are read a word at a time, some beyond the end of the text.
        words = np.zeros((last - first) // 8 + 2 + LONGEST // 8, np.uint64)
        words.view(np.uint8)[: last - first] = octets[first:last]
        # A byte is one id at most, and a document has a space and eos besides; MOST are written at a time.
        ids = np.empty(last - first + 2 * len(starts) + MOST, dtype)
        ends = np.zeros(len(starts), np.int64)
        tables = self._pieces, self._symbols, self._joins, self._merges, self._octets
        _encode(words, words.view(np.uint8), starts - first, self._eos, *tables, self._remembered, ids, ends)
        return ids[: ends[-1]], ends


def _power_of_2(least: int) -> int:
    return 1 << max(4, least - 1).bit_length()


@numba.njit(cache=True, nogil=True)
def _hash(left, right, size):  # type: ignore[no-untyped-def]
    """A place in a table of `size`, a power of 2, for two symbols."""
    mixed = (np.uint64(left) << np.uint64(32) | np.uint64(right)) * _MULTIPLIER
    return np.int64((mixed ^ mixed >> np.uint64(29)) >> np.uint64(16)) & (size - 1)


@numba.njit(cache=True, nogil=True)
def _fill_joins(joins, neighbours):  # type: ignore[no-untyped-def]
    for left, right in neighbours:
        joins[_hash(left, right, len(joins))] = True


@numba.njit(cache=True, nogil=True)
def _fill_merges(merges, splits):  # type: ignore[no-untyped-def]
    for key, merged in splits:
        at = _hash(key >> np.uint64(32), key & np.uint64(_LOW), len(merges))
        while merges[at, 0] != _EMPTY:
            at = (at + 1) & (len(merges) - 1)
        merges[at, 0], merges[at, 1] = key, merged


@numba.njit(cache=True, nogil=True)
def _merged(left, right, merges):  # type: ignore[no-untyped-def]
    """rank << 32 | piece of two symbols together, or _NONE."""
    if left < 0 or right < 0:
        return _NONE
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    at = _hash(left, right, len(merges))
    while merges[at, 0] != key:
        if merges[at, 0] == _EMPTY:
            return _NONE
        at = (at + 1) & (len(merges) - 1)
    return np.int64(merges[at, 1])


@numba.njit(cache=True, nogil=True)
def _character(octets, i):  # type: ignore[no-untyped-def]
    """The code point that begins at byte i of valid UTF-8, and its length in bytes."""
    first = np.int64(octets[i])
    if first < 0x80:
        return first, 1
    second = np.int64(octets[i + 1] & 0x3F)
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, 2
    third = np.int64(octets[i + 2] & 0x3F)
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(octets[i + 3] & 0x3F), 4


@numba.njit(cache=True, nogil=True)
def _encode(  # type: ignore[no-untyped-def]
    words, octets, starts, eos, pieces, symbols, joins, merges, fallback, remembered, ids, ends
):
    size = np.int64(0)
    cuts, chain, heap = np.empty(1024, np.int64), np.empty((5, 256), np.int64), np.empty(3 * 256, np.int64)
    for document in range(len(starts) - 1):
        begin, end = np.int64(starts[document]), np.int64(starts[document + 1])
        if end - begin >= len(cuts):
            cuts = np.empty(end - begin + 1, np.int64)
        # SentencePiece puts a space before the text: it is in no byte, but in the first segment, which has `prefix` = 1.
        prefix = 1
        # The segments are found first, so that the processor fetches many of their rows at once.
        for cut in range(_cut(octets, begin, end, symbols, joins, cuts)):
            i = cuts[cut]
            length = i - begin + prefix
            key = _key(words, begin, length)
            row = _first_row(key, length, len(remembered))
            alone = symbols[SPACE if prefix else octets[begin]] if length == 1 else -1
            if 0 <= alone < pieces:
                ids[size] = alone
                size += 1
            elif prefix or length > LONGEST:
                if length > chain.shape[1]:
                    chain, heap = np.empty((5, 2 * length), np.int64), np.empty(6 * length, np.int64)
                size = _merge(octets, begin, i, prefix, pieces, symbols, merges, fallback, chain, heap, ids, size)
            else:
                if not _holds(remembered, row, key, length):
                    row += 1
                if _holds(remembered, row, key, length):
                    for n in range(MOST):  # always all of them: a loop of known length is faster
                        ids[size + n] = remembered[row, _IDS + (n >> 1)] >> np.uint64(32 * (n & 1)) & np.uint64(_LOW)
                    size += np.int64(remembered[row, _COUNTS] >> np.uint64(8))
                else:
                    new = _merge(octets, begin, i, prefix, pieces, symbols, merges, fallback, chain, heap, ids, size)
                    if new - size <= MOST:
                        _remember(remembered, row - 1, key, length, ids, size, new - size)
                    size = new
            begin, prefix = i, 0
        ids[size] = eos
        size += 1
        ends[document + 1] = size


@numba.njit(cache=True, nogil=True)
def _cut(octets, begin, end, symbols, joins, cuts):  # type: ignore[no-untyped-def]
    """Write where the segments of a text end. Returns how many there are."""
    count, i, last = 0, begin, np.int64(symbols[SPACE])
    while i < end:
        code, width = _character(octets, i)
        symbol = np.int64(symbols[code])
        if last < 0 or symbol < 0 or not joins[_hash(last, symbol, len(joins))]:
            cuts[count] = i
            count += 1
        last = symbol
        i += width
    if begin < end:
        cuts[count] = end
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _key(words, begin, length):  # type: ignore[no-untyped-def]
    """The `length` bytes from byte `begin` on as three little-endian numbers."""
    return (
        _word(words, begin) & _BYTES[min(length, 8)],
        _word(words, begin + 8) & _BYTES[min(max(length - 8, 0), 8)],
        _word(words, begin + 16) & _BYTES[min(max(length - 16, 0), 8)],
    )


@numba.njit(cache=True, nogil=True)
def _word(words, i):  # type: ignore[no-untyped-def]
    """The 8 bytes from byte i on."""
    at, shift = i >> 3, np.uint64(8 * (i & 7))
    return words[at] >> shift | words[at + 1] << np.uint64(1) << (np.uint64(63) - shift)


@numba.njit(cache=True, nogil=True)
def _first_row(key, length, rows):  # type: ignore[no-untyped-def]
    """The first of the two rows in which a segment may be."""
    mixed = (key[0] ^ np.uint64(length)) * _MULTIPLIER
    mixed = (mixed ^ mixed >> np.uint64(32) ^ key[1]) * _MULTIPLIER
    mixed = (mixed ^ mixed >> np.uint64(32) ^ key[2]) * _MULTIPLIER
    return np.int64(mixed >> np.uint64(20)) & (rows - 2)


@numba.njit(cache=True, nogil=True)
def _holds(remembered, row, key, length):  # type: ignore[no-untyped-def]
    """Whether a row is that of a segment."""
    other = (remembered[row, 0] ^ key[0]) | (remembered[row, 1] ^ key[1]) | (remembered[row, 2] ^ key[2])
    return other | (remembered[row, _COUNTS] & np.uint64(0xFF) ^ np.uint64(length)) == 0


@numba.njit(cache=True, nogil=True)
def _remember(remembered, row, key, length, ids, start, count):  # type: ignore[no-untyped-def]
    """Put a segment into the first of its two rows; what was there moves to the second."""
    for i in range(_ROW):
        remembered[row + 1, i] = remembered[row, i]
        remembered[row, i] = 0
    remembered[row, 0], remembered[row, 1], remembered[row, 2] = key
    remembered[row, _COUNTS] = np.uint64(count << 8 | length)
    for n in range(count):
        remembered[row, _IDS + (n >> 1)] |= np.uint64(ids[start + n]) << np.uint64(32 * (n & 1))


@numba.njit(cache=True, nogil=True)
def _merge(octets, begin, end, prefix, pieces, symbols, merges, fallback, chain, heap, ids, size):  # type: ignore[no-untyped-def]
    """Write the ids of a segment at ids[size:], by merging. Returns the new size.

    `chain`: the symbols, each with those before and after it, with what it and the next would become, and its first byte.
    """
    chain[_SYMBOL, 0], chain[_PLACE, 0] = symbols[SPACE], begin
    count, i = prefix, begin
    while i < end:
        code, width = _character(octets, i)
        chain[_SYMBOL, count], chain[_PLACE, count] = symbols[code], i
        count += 1
        i += width
    heaped, waiting = count > SCANNED, 0
    for i in range(count):
        chain[_BEFORE, i], chain[_AFTER, i] = i - 1, i + 1
        chain[_MERGED, i] = _merged(chain[_SYMBOL, i], chain[_SYMBOL, i + 1], merges) if i + 1 < count else _NONE
        if heaped:
            waiting = _push(heap, waiting, chain[_MERGED, i], i)
    while True:
        best = _NONE  # rank << 32 | left
        if not heaped:
            for i in range(count):
                best = min(best, chain[_MERGED, i] & ~_LOW | i)
        elif waiting:
            best = heap[0]
            waiting = _pop(heap, waiting)
        if best >> 32 == _NONE >> 32:
            break
        left = best & _LOW
        if chain[_MERGED, left] >> 32 != best >> 32:
            continue  # it merged otherwise since the heap was told; of equal rank it would be the same merge
        right = chain[_AFTER, left]
        chain[_SYMBOL, left] = chain[_MERGED, left] & _LOW
        chain[_AFTER, left] = chain[_AFTER, right]
        chain[_MERGED, left] = chain[_MERGED, right] = _NONE
        if chain[_AFTER, left] < count:
            chain[_BEFORE, chain[_AFTER, left]] = left
            chain[_MERGED, left] = _merged(chain[_SYMBOL, left], chain[_SYMBOL, chain[_AFTER, left]], merges)
        if heaped:
            waiting = _push(heap, waiting, chain[_MERGED, left], left)
        if left:
            last = chain[_BEFORE, left]
            chain[_MERGED, last] = _merged(chain[_SYMBOL, last], chain[_SYMBOL, left], merges)
            if heaped:
                waiting = _push(heap, waiting, chain[_MERGED, last], last)
    i = 0
    while i < count:
        if 0 <= chain[_SYMBOL, i] < pieces:
            ids[size] = chain[_SYMBOL, i]
            size += 1
        else:
            _, width = _character(octets, chain[_PLACE, i])
            for at in range(chain[_PLACE, i], chain[_PLACE, i] + width):
                ids[size] = fallback[octets[at]]
                size += 1
        i = chain[_AFTER, i]
    return size


@numba.njit(cache=True, nogil=True)
def _push(heap, size, merged, left):  # type: ignore[no-untyped-def]
    """Add a merge to the heap of the best, heap[:size], if it is one. Returns the new size."""
    if merged == _NONE:
        return size
    value, at = merged & ~_LOW | left, size
    while at and heap[(at - 1) >> 1] > value:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = value
    return size + 1


@numba.njit(cache=True, nogil=True)
def _pop(heap, size):  # type: ignore[no-untyped-def]
    """Remove heap[0], the best. Returns the new size."""
    size -= 1
    value, at = heap[size], 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
    return size
