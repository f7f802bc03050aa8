"""SentencePiece's unigram model as kernels over UTF-8: text in, pieces out, exactly those of the library.

Pieces are chosen by the best sum of scores along the whole text, in float32, so rounding in what comes before can decide
between two ways to split a word. Still most words are split only once. Where two bytes meet that no piece has side by side,
every way to split the text has a piece end; what lies between two such places, a word, is split for itself; and if the best
way is better than the second best by more than rounding can make up for, it is the best after any text up to some score.

Source: Kudo, "Subword Regularization" (arXiv 1804.10959); the behaviour of sentencepiece 0.2.3, whose `Encode` takes the
best path from left to right and begins to count anew where a score passes 100,000; and its precompiled normalisation
rules, a double array (Yata et al., darts-clone) of UTF-8 prefixes, the longest of which is replaced.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from sentencepiece import sentencepiece_model_pb2

from ccnet.ngram import _u64

_UNKNOWN_PENALTY = np.float32(10)
_RESET = np.float32(100_000)

# A word that was split, in one cache line: in the first number the word's length, the number of its pieces and, above, the
# negative of the score down to which the text before it may fall (float32); the word's bytes; its pieces (uint16).
_SLOT_BITS = 16
_WORD_BYTES = 40
_WORD_PIECES = 8
_FIRST_PIECES = 1 + _WORD_BYTES // 8

# What `_normalize` returns in place of a size.
_IN_A_CHARACTER = -1
_TOO_SMALL = -2

# The end of a character of a word: the best score up to there, where its last piece begins and which it is; and the two
# best sums of scores from the word's beginning, exact but for double precision's own rounding.
_NODE = np.dtype([("first", "f8"), ("second", "f8"), ("best", "f4"), ("piece", "i4"), ("origin", "i4")])


class Pieces(NamedTuple):
    """A text in pieces.

    `ids` int32[n]; neighbouring unknown characters are one piece. `starts` int64[n + 1], where in `normal` each begins,
    and the end. `normal` uint8, the text as SentencePiece normalises it. `lines` int64, where in it each line begins.
    """

    ids: np.ndarray
    starts: np.ndarray
    normal: np.ndarray
    lines: np.ndarray


class _Rules(NamedTuple):
    units: np.ndarray  # uint32, the double array; empty where there are no rules
    replacements: np.ndarray  # uint8, each ends with a 0
    longest: int  # bytes of a replacement
    plain: np.ndarray  # bool[128], characters that no rule changes if another ASCII character follows
    dummy_prefix: bool
    remove_extra: bool


class _Trie(NamedTuple):
    units: np.ndarray  # uint64, see `_build_trie`
    scores: np.ndarray  # float32[pieces]
    widths: np.ndarray  # int32[pieces], bytes
    unknown: int
    unknown_score: np.float32
    joined: np.ndarray  # bool[256, 256], pairs of bytes that a piece has side by side, or a character


class Unigram:
    """A unigram model of the usual kind; `read_unigram` makes it. Not for several threads at once."""

    def __init__(self, spellings: list[bytes], rules: _Rules, trie: _Trie) -> None:
        self.spellings = spellings
        self.unknown = trie.unknown
        self._rules = rules
        self._trie = trie
        self._cache = np.zeros((1 << _SLOT_BITS, _FIRST_PIECES + _WORD_PIECES // 4), np.uint64)

    def encode(self, octets: np.ndarray, lines: np.ndarray) -> Pieces | None:
        """The pieces of a text, or None where a rule of the model cuts a character in two.

        Args: octets uint8, UTF-8; lines int64, where in it each line begins, ascending.
        """
        size, room = _TOO_SMALL, 2 * len(octets) + 1024
        while size == _TOO_SMALL:
            normal, starts_of_lines = np.empty(room, np.uint8), np.zeros(len(lines), np.int64)
            size = _normalize(octets, lines, *self._rules, normal, starts_of_lines)
            room *= 2
        if size == _IN_A_CHARACTER:
            return None
        ids, starts = _encode(normal, size, *self._trie, self._cache)
        return Pieces(ids, starts, normal[:size], starts_of_lines)


def read_unigram(model: bytes) -> Unigram | None:
    """The model that a file of SentencePiece holds, or None where it is of another kind.

    That is: no unigram model, pieces that a user defined or for bytes, spaces that are not marked or are behind words,
    scores above 0, more than 65,536 pieces, rules that give control characters.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    spellings, kinds = [piece.piece.encode() for piece in proto.pieces], [piece.type for piece in proto.pieces]
    normal, unknown, control, unused = (getattr(proto.SentencePiece, k) for k in ("NORMAL", "UNKNOWN", "CONTROL", "UNUSED"))
    rules = _rules(normalizer)
    scores = np.array([piece.score for piece in proto.pieces], np.float32)
    if (
        rules is None
        or trainer.model_type != trainer.UNIGRAM
        or trainer.treat_whitespace_as_suffix
        or trainer.byte_fallback
        or not normalizer.escape_whitespaces
        or not {normal, unknown} <= set(kinds) <= {normal, unknown, control, unused}
        or (scores > 0).any()
        or len(scores) > 1 << 16
    ):
        return None
    used = sorted((spelling, piece) for piece, spelling in enumerate(spellings) if kinds[piece] == normal)
    ends = np.cumsum([len(spelling) for spelling, _ in used])
    octets = np.frombuffer(b"".join(spelling for spelling, _ in used), np.uint8)
    order = np.array([piece for _, piece in used])
    trie = _Trie(
        _build_trie(octets, np.concatenate([[0], ends[:-1]]), ends, order),
        scores=scores,
        widths=np.array([len(spelling) for spelling in spellings], np.int32),
        unknown=kinds.index(unknown),
        unknown_score=scores[order].min() - _UNKNOWN_PENALTY,
        joined=_joined(octets, ends),
    )
    return Unigram(spellings, rules, trie)


def _rules(normalizer: Any) -> _Rules | None:
    charsmap = normalizer.precompiled_charsmap
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + size], np.uint32)
    replacements = charsmap[4 + size :]
    try:
        texts = replacements.decode().split("\0")
    except UnicodeDecodeError:
        return None
    if any(c in text for text in texts for c in "\t\n\v\f\r"):
        return None
    longest = max(len(text.replace(" ", "\u2581").encode()) for text in texts)
    flags = normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces
    return _Rules(units, np.frombuffer(replacements, np.uint8), longest, _plain(units), *flags)


@numba.njit(cache=True, nogil=True)
def _child(units, node, octet):  # type: ignore[no-untyped-def]
    """Where a byte leads in the double array, or -1. The root is 0."""
    unit = units[node]
    node ^= np.int64((unit >> np.uint32(10)) << ((unit & np.uint32(512)) >> np.uint32(6))) ^ np.int64(octet)
    return node if units[node] & np.uint32(0x800000FF) == octet else -1


@numba.njit(cache=True, nogil=True)
def _value(units, node):  # type: ignore[no-untyped-def]
    """What the key that ends at a node stands for, or -1."""
    unit = units[node]
    if not unit & np.uint32(256):
        return -1
    leaf = node ^ np.int64((unit >> np.uint32(10)) << ((unit & np.uint32(512)) >> np.uint32(6)))
    return np.int64(units[leaf] & np.uint32(0x7FFFFFFF))


@numba.njit(cache=True, nogil=True)
def _plain(units):  # type: ignore[no-untyped-def]
    plain = np.ones(128, np.bool_)
    if len(units):
        for octet in range(128):
            node = _child(units, 0, octet)
            if node >= 0:
                plain[octet] = _value(units, node) < 0
                for following in range(128):
                    plain[octet] &= _child(units, node, following) < 0
    return plain


@numba.njit(cache=True, nogil=True)
def _rule(units, octets, i):  # type: ignore[no-untyped-def]
    """The longest key that the text has at byte i: its length and value, or 0 and -1."""
    length, value = 0, -1
    if len(units):
        node = 0
        for j in range(i, len(octets)):
            node = _child(units, node, octets[j])
            if node < 0:
                break
            found = _value(units, node)
            if found >= 0:
                length, value = j + 1 - i, found
    return length, value


@numba.njit(cache=True, nogil=True)
def _width(octet):  # type: ignore[no-untyped-def]
    """Bytes of the character that begins with this one."""
    if octet < 0xC0:
        return 1
    if octet < 0xE0:
        return 2
    return 3 if octet < 0xF0 else 4


@numba.njit(cache=True, nogil=True)
def _put_space(out, size):  # type: ignore[no-untyped-def]
    out[size] = 0xE2
    out[size + 1] = 0x96
    out[size + 2] = 0x81
    return size + 3


@numba.njit(cache=True, nogil=True)
def _put(source, start, stop, out, size, after_space, remove_extra):  # type: ignore[no-untyped-def]
    """Write source[start:stop] with marked spaces, not those that follow a space before it if extra ones are removed."""
    while start < stop and after_space and source[start] == 0x20:
        start += 1
    for i in range(start, stop):
        if source[i] == 0x20:
            size = _put_space(out, size)
        else:
            out[size] = source[i]
            size += 1
    if start < stop:
        after_space = remove_extra and source[stop - 1] == 0x20
    return size, after_space


@numba.njit(cache=True, nogil=True)
def _is_space_mark(octets, i):  # type: ignore[no-untyped-def]
    return octets[i] == 0xE2 and octets[i + 1] == 0x96 and octets[i + 2] == 0x81


@numba.njit(cache=True, nogil=True)
def _normalize(octets, lines, units, replacements, longest, plain, dummy_prefix, remove_extra, out, starts):  # type: ignore[no-untyped-def]
    """Write the text to `out` and where its lines begin to `starts`, all 0 before.

    Returns: the text's size, at least 8 less than the array's, or what it is that hinders.
    """
    end = len(octets)
    i = 0
    while remove_extra and i < end:
        length, value = _rule(units, octets, i)
        if length == 0 and octets[i] == 0x20:
            length = 1
        elif length == 0 or replacements[value] != 0x20 or replacements[value + 1] != 0:
            break
        i += length
    if i == end:
        return 0
    line = 0
    size = _put_space(out, 0) if dummy_prefix else 0
    after_space = remove_extra
    first = True
    while i < end:
        while line < len(lines) and lines[line] <= i:
            starts[line] = 0 if first else size
            line += 1
        first = False
        next_line = min(lines[line], end) if line < len(lines) else end
        room = (len(out) - size - longest - 16) // 3
        if room <= 0:
            return _TOO_SMALL
        i, size, after_space = _put_plain(octets, i, min(next_line, i + room), plain, out, size, after_space, remove_extra)
        if i == next_line or (octets[i] < 0x80 and plain[octets[i]] and (i + 1 == end or octets[i + 1] < 0x80)):
            continue
        length, value = _rule(units, octets, i)
        if length == 0:
            length = _width(octets[i])
            size, after_space = _put(octets, i, i + length, out, size, after_space, remove_extra)
        elif (i + length < end and octets[i + length] & 0xC0 == 0x80) or replacements[value] & 0xC0 == 0x80:
            return _IN_A_CHARACTER
        else:
            stop = value
            while replacements[stop] != 0:
                stop += 1
            size, after_space = _put(replacements, value, stop, out, size, after_space, remove_extra)
        i += length
    while remove_extra and size >= 3 and _is_space_mark(out, size - 3):
        size -= 3
    starts[line:] = size
    return size


@numba.njit(cache=True, nogil=True)
def _put_plain(octets, start, end, plain, out, size, after_space, remove_extra):  # type: ignore[no-untyped-def]
    """Write ASCII characters that no rule changes. Returns where they end, and the size and `after_space` there."""
    size = np.uint64(size)
    for i in range(start, end):
        octet = octets[i]
        if octet >= 0x80 or not plain[octet] or (i + 1 < len(octets) and octets[i + 1] >= 0x80):
            return i, np.int64(size), after_space
        if octet != 0x20:
            out[size] = octet
            size += np.uint64(1)
            after_space = False
        elif not after_space:
            out[size] = 0xE2
            out[size + np.uint64(1)] = 0x96
            out[size + np.uint64(2)] = 0x81
            size += np.uint64(3)
            after_space = remove_extra
    return end, np.int64(size), after_space


@numba.njit(cache=True, nogil=True)
def _build_trie(octets, starts, ends, pieces):  # type: ignore[no-untyped-def]
    """The trie of sorted, different spellings as a double array: uint64[nodes and gaps].

    The child of a node by a byte is at the node's base plus the byte, if the byte is in the lowest 8 bits there. Above them
    are 28 bits for the base, 0 in a leaf and else not another node's, and 28 bits for 1 + the piece that ends at the node.
    """
    units = np.zeros(4 * len(octets) + 1024, np.uint64)
    is_base = np.zeros(len(units), np.bool_)
    nodes = np.empty((len(octets) + 1, 4), np.int64)  # a node, the first and last + 1 of its spellings, their common bytes
    nodes[0] = 0, 0, len(starts), 0
    labels = np.empty(257, np.int64)
    firsts = np.empty(257, np.int64)
    count = free = size = 1
    done = 0
    while done < count:
        node, first, last, depth = nodes[done]
        done += 1
        if starts[first] + depth == ends[first]:
            units[node] |= np.uint64(pieces[first] + 1) << np.uint64(36)
            first += 1
        children = 0
        for i in range(first, last):
            label = octets[starts[i] + depth]
            if children == 0 or label != labels[children - 1]:
                labels[children], firsts[children] = label, i
                children += 1
        if children == 0:
            continue
        firsts[children] = last
        while units[free]:
            free += 1
        base = max(free - labels[0], 1)
        fits = False
        while not fits:
            fits = not is_base[base]
            for child in range(children):
                fits &= not units[base + labels[child]]
            base += not fits
        is_base[base] = True
        free = max(free, base - 16)  # or the gaps that are too small would be tried again and again
        units[node] |= np.uint64(base) << np.uint64(8)
        for child in range(children):
            units[base + labels[child]] = labels[child]
            nodes[count] = base + labels[child], firsts[child], firsts[child + 1], depth + 1
            count += 1
        size = max(size, base + 256)
    return units[:size].copy()


@numba.njit(cache=True, nogil=True)
def _joined(octets, ends):  # type: ignore[no-untyped-def]
    joined = np.zeros((256, 256), np.bool_)
    joined[:, 0x80:0xC0] = True  # a character goes on
    start = 0
    for end in ends:
        for i in range(start + 1, end):
            joined[octets[i - 1], octets[i]] = True
        start = end
    return joined


@numba.njit(cache=True, nogil=True)
def _encode(octets, end, units, scores, widths, unknown, unknown_score, joined, cache):  # type: ignore[no-untyped-def]
    ids = np.empty(end, np.int32)
    starts = np.empty(end + 1, np.int64)
    path = np.empty(end, np.int32)
    nodes = np.empty(end + 1, _NODE)
    count = 0
    score = np.float32(0)  # of the best path up to `start`
    start = 0
    while start < end:
        length = _next_word(octets, start, end, joined) - start
        if score < -_RESET:
            score = np.float32(0)
        slot = _word_slot(octets, start, length) if length <= _WORD_BYTES else np.uint64(0)
        if _holds(cache, slot, octets, start, length) and -score < _limit(cache, slot):
            for n in range(_steps(cache, slot)):
                piece = _piece(cache, slot, n)
                score += unknown_score if piece == unknown else scores[piece]
                count = _append(ids, starts, count, piece, start, unknown)
                start += _width(octets[start]) if piece == unknown else widths[piece]
        else:
            score, count = _split(
                octets, start, length, score, units, scores, widths, unknown, unknown_score, nodes, path, cache, slot,
                ids, starts, count,
            )  # fmt: skip
            start += length
    starts[count] = end
    return ids[:count], starts[: count + 1]


@numba.njit(cache=True, nogil=True, inline="always")
def _split(  # type: ignore[no-untyped-def]
    octets, start, length, score, units, scores, widths, unknown, unknown_score, nodes, path, cache, slot, ids, starts, count
):
    """Append the best path through a word, and remember it. Returns the score at its end, and the new count."""
    before = score
    score, limit = _best_path(octets, start, length, score, units, scores, unknown, unknown_score, nodes)
    steps, at = 0, length
    while at > 0:
        path[steps] = nodes[at].piece
        steps += 1
        at = nodes[at].origin
    if length <= _WORD_BYTES and steps <= _WORD_PIECES and -before < limit:
        _store(cache, slot, octets, start, length, limit, path, steps)
    for n in range(steps - 1, -1, -1):
        piece = path[n]
        count = _append(ids, starts, count, piece, start, unknown)
        start += _width(octets[start]) if piece == unknown else widths[piece]
    return score, count


@numba.njit(cache=True, nogil=True)
def _append(ids, starts, count, piece, start, unknown):  # type: ignore[no-untyped-def]
    """Write a piece, unless it is an unknown one that continues another. Returns the new count."""
    if piece == unknown and count and ids[count - 1] == unknown:
        return count
    ids[count] = piece
    starts[count] = start
    return count + 1


@numba.njit(cache=True, nogil=True)
def _next_word(octets, start, end, joined):  # type: ignore[no-untyped-def]
    for i in range(np.uint64(start + 1), np.uint64(end)):
        if not joined[octets[i - np.uint64(1)], octets[i]]:
            return np.int64(i)
    return end


@numba.njit(cache=True, nogil=True)
def _reach(nodes, start, end, piece, score, here):  # type: ignore[no-untyped-def]
    """Take a piece from one node to another, if that is better than what leads there."""
    candidate = np.float32(score + here)
    node = nodes[end]
    if node.origin == -1 or candidate > node.best:
        node.best, node.origin, node.piece = candidate, start, piece
    first, second = nodes[start].first + score, nodes[start].second + score
    if first > node.first:
        node.second = max(node.first, second)
        node.first = first
    elif first > node.second:
        node.second = first


@numba.njit(cache=True, nogil=True, inline="always")
def _best_path(octets, start, length, score, units, scores, unknown, unknown_score, nodes):  # type: ignore[no-untyped-def]
    """The best path through a word, in `nodes`.

    Returns: the score at its end, and down to which negative of a score before the word it is certain.
    """
    for at in range(length + 1):
        nodes[at].origin = -1
        nodes[at].first = nodes[at].second = -np.inf
    nodes[0].best, nodes[0].first = score, 0.0
    characters = at = reached = 0
    while at < length:
        here = nodes[at].best
        if here < -_RESET:
            for end in range(at, reached + 1):
                if end == at or nodes[end].origin != -1:
                    nodes[end].best -= here
            here = np.float32(0)
        width = min(_width(octets[start + at]), length - at)
        alone = False  # whether the character is a piece
        unit = units[0]
        for end in range(at + 1, length + 1):
            octet = np.uint64(octets[start + end - 1])
            unit = units[(unit >> np.uint64(8) & np.uint64(0xFFFFFFF)) + octet]
            if unit & np.uint64(0xFF) != octet:
                break
            piece = np.int64(unit >> np.uint64(36)) - 1
            if piece >= 0:
                reached = max(reached, end)
                alone |= end == at + width
                _reach(nodes, at, end, piece, scores[piece], here)
        if not alone:
            reached = max(reached, at + width)
            _reach(nodes, at, at + width, unknown, unknown_score, here)
        at += width
        characters += 1
    # A sum of n float32 is wrong by at most n 2^-24 times the largest partial sum, so two are in the right order if they
    # differ by n 2^-23 times the one nearer to 0 and a little. And nowhere in the word may the count begin anew.
    margin = nodes[length].first - nodes[length].second
    certain = 0.999 * margin * 2.0**23 / characters + nodes[length].first
    return nodes[length].best, np.float32(min(certain, _RESET + (characters + 1) * unknown_score - 1))


@numba.njit(cache=True, nogil=True)
def _chunk(octets, start, length, n):  # type: ignore[no-untyped-def]
    """Bytes 8 n to 8 n + 8 of a word."""
    chunk = _u64(octets, np.uint64(start + 8 * n))
    left = length - 8 * n
    return chunk if left >= 8 else chunk & (np.uint64(1) << np.uint64(8 * left)) - np.uint64(1)


@numba.njit(cache=True, nogil=True)
def _word_slot(octets, start, length):  # type: ignore[no-untyped-def]
    value = np.uint64(length)
    for n in range((length + 7) // 8):
        value = (value ^ value >> np.uint64(32) ^ _chunk(octets, start, length, n)) * np.uint64(0x9E3779B97F4A7C15)
    return value >> np.uint64(64 - _SLOT_BITS)


@numba.njit(cache=True, nogil=True)
def _holds(cache, slot, octets, start, length):  # type: ignore[no-untyped-def]
    if cache[slot, 0] & np.uint64(0xFF) != length:
        return False
    for n in range((length + 7) // 8):  # noqa: SIM110
        if cache[slot, 1 + n] != _chunk(octets, start, length, n):
            return False
    return True


@numba.njit(cache=True, nogil=True)
def _limit(cache, slot):  # type: ignore[no-untyped-def]
    return np.uint32(cache[slot, 0] >> np.uint64(32)).view(np.float32)


@numba.njit(cache=True, nogil=True)
def _steps(cache, slot):  # type: ignore[no-untyped-def]
    return np.int64(cache[slot, 0] >> np.uint64(8) & np.uint64(0xFF))


@numba.njit(cache=True, nogil=True)
def _piece(cache, slot, n):  # type: ignore[no-untyped-def]
    return np.int64(cache[slot, _FIRST_PIECES + n // 4] >> np.uint64(16 * (n % 4)) & np.uint64(0xFFFF))


@numba.njit(cache=True, nogil=True)
def _store(cache, slot, octets, start, length, limit, path, steps):  # type: ignore[no-untyped-def]
    """`path` has the last piece first."""
    bits = np.uint64(np.float32(limit).view(np.uint32))
    cache[slot, 0] = bits << np.uint64(32) | np.uint64(steps) << np.uint64(8) | np.uint64(length)
    for n in range((length + 7) // 8):
        cache[slot, 1 + n] = _chunk(octets, start, length, n)
    for n in range(_FIRST_PIECES, cache.shape[1]):
        cache[slot, n] = 0
    for n in range(steps):
        cache[slot, _FIRST_PIECES + n // 4] |= np.uint64(path[steps - 1 - n]) << np.uint64(16 * (n % 4))
