"""CCNet's two normalisations: lines in, 64-bit paragraph keys out; a document in, text for the language model out.

`paragraph_keys` works on the UTF-8 buffer of an Arrow column, without a Python object per line: a table over all code
points, made once per process from the running Python's Unicode data, says what becomes of each.

Source: the released code of CCNet (arXiv 1911.00359), its `normalize_for_dedup` and `normalize`.
"""

import functools
import re
import sys
import unicodedata

import numba
import numpy as np
import pyarrow as pa

# What the language model's text has in place of each of CCNet's 34 punctuation marks. Keys have nothing in their place.
PUNCTUATION = {
    "，": ",", "。": ".", "、": ",", "„": '"', "”": '"', "“": '"', "«": '"', "»": '"', "１": '"', "」": '"',
    "「": '"', "《": '"', "》": '"', "´": "'", "∶": ":", "：": ":", "？": "?", "！": "!", "（": "(", "）": ")",
    "；": ";", "–": "-", "—": " - ", "．": ". ", "～": "~", "’": "'", "…": "...", "━": "-", "〈": "<", "〉": ">",
    "【": "[", "】": "]", "％": "%", "►": "-",
}  # fmt: skip
CONTROLS = [*range(0x00, 0x20), *range(0x7F, 0xA0)]

# Entry of a code point: its lower case in the low 21 bits, and these flags.
SPACE = np.uint32(1 << 24)  # str.strip removes it
_DELETED = np.uint32(1 << 25)
_DOTTED_I = np.uint32(1 << 26)  # U+0130: its lower case is two code points
_SIGMA = np.uint32(1 << 27)  # U+03A3: its lower case depends on its neighbours
_CASED = np.uint32(1 << 28)  # ... which are cased,
_IGNORABLE = np.uint32(1 << 29)  # ... or passed over (Unicode's Final_Sigma condition)
_CODE_POINT = np.uint32(0x1FFFFF)

# Entry of a code point in the other table: where its bytes are in the low 24 bits, their number above; or one of these.
_LM_SAME = np.uint32(0xFFFFFFFF)
_LM_SIGMA = np.uint32(0xFFFFFFFE)
_LM_MARK = np.uint32(0xFFFFFFFD)  # a mark that stays in the text, and that NFD may have to put in order with others
_LM_FLAG = np.uint32(0xFF000000)  # and above


def paragraph_keys(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The key of every line of every document.

    A line is what lies between "\\n"s, so an empty document has one. Its key: `str.strip`, `str.lower`, decimal digits
    to "0", CCNet's punctuation and the control characters deleted, SHA-1 of the UTF-8, first 8 bytes as a little-endian
    number. Exactly so for every Unicode string.

    Args: text: string array without nulls, documents long.
    Returns: keys uint64[lines] and offsets int64[documents + 1]; document d has keys[offsets[d]:offsets[d + 1]].
    """
    assert text.type == pa.string() and not text.null_count
    _, offsets, data = text.buffers()
    starts = np.frombuffer(offsets, np.int32, len(text) + 1, 4 * text.offset) if len(text) else np.zeros(1, np.int32)
    octets = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    lines = _lines_before(octets, starts)
    return _paragraph_keys(octets, starts, lines, *key_tables()), lines


def lm_text(text: str) -> str:
    """A document as one line for SentencePiece and KenLM.

    `str.strip`, `str.lower`, NFD without the non-spacing marks, decimal digits to "0", CCNet's punctuation to ASCII,
    control characters deleted; the line ends are among them and leave no space. Exactly so for every Unicode string.
    """
    return lm_octets(text)[0].tobytes().decode()


def lm_octets(text: str) -> tuple[np.ndarray, np.ndarray]:
    """`lm_text` in UTF-8, and where in it each line of the text begins: uint8[n] and int64[lines], ascending."""
    tables = _lm_tables()
    lines = np.zeros(text.count("\n") + 1, np.int64)
    out, done = _lm_octets(np.frombuffer(text.encode(), np.uint8), key_tables()[0], *tables[:3], lines)
    if done:
        return out, lines
    # Line by line, since neither lower() nor NFD looks beyond a line's end.
    stripped = text.strip()
    parts = [unicodedata.normalize("NFD", line.lower()).translate(tables[3]).encode() for line in stripped.split("\n")]
    first = text.count("\n", 0, text.index(stripped))
    ends = np.cumsum([len(part) for part in parts])
    lines[first + 1 : first + len(parts)] = ends[:-1]
    lines[first + len(parts) :] = ends[-1]
    return np.frombuffer(b"".join(parts), np.uint8), lines


def _all_code_points() -> str:
    """Every code point once, in order; the surrogates, which no UTF-8 has, as spaces."""
    return "".join(" " if 0xD800 <= c <= 0xDFFF else chr(c) for c in range(sys.maxunicode + 1))


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@functools.cache
def key_tables() -> tuple[np.ndarray, np.ndarray]:
    """What becomes of each code point in a key: the tables that `normalize_line` takes.

    Returns: uint32[0x110000], the lower case and flags (`SPACE`: white space); uint8[128], the byte that stands for each
    of ASCII, 0 where it is deleted.
    """
    points = _all_code_points()
    # Both would disturb the position or the lower case of others when all are lowered in one string.
    plain = points.replace("\u0130", " ").replace("\u03a3", " ")
    table = _codes(plain.lower()).copy()
    assert len(table) == sys.maxunicode + 1
    table[[match.start() for match in re.finditer(r"\d", points)]] = ord("0")
    table[[match.start() for match in re.finditer(r"\s", points)]] |= SPACE
    table[[ord(c) for c in PUNCTUATION if not c.isdecimal()] + CONTROLS] |= _DELETED
    table[0xD800:0xE000] = 0
    # Python does not tell these two properties, but what lower() makes of a sigma shows them: it is final after a cased
    # letter, with any ignorable ones between. Line feeds are neither, so they part the probes.
    final = ord("ς")
    after = _codes("".join([f"{c}Σ\n" for c in plain]).lower())[1::3] == final
    after_letter = _codes("".join([f"a{c}Σ\n" for c in plain]).lower())[2::4] == final
    table[after] |= _CASED
    table[after_letter & ~after] |= _IGNORABLE
    table[0x130] = _DOTTED_I | _CASED
    table[0x3A3] = _SIGMA | _CASED
    ascii_bytes = np.where(table[:128] & _DELETED, 0, table[:128] & _CODE_POINT).astype(np.uint8)
    return table, ascii_bytes


@functools.cache
def _lm_tables() -> tuple[np.ndarray, np.ndarray, int, dict[int, str]]:
    """What stands for each code point in the language model's text.

    Returns: entries uint32[0x110000], where in the pool it is, and in the high 8 bits its bytes or one of the flags below;
    the pool uint8[bytes]; by what factor a text grows at most; and what becomes of the code points of lower-case NFD.
    """
    points = _all_code_points()
    categories = [unicodedata.category(c) for c in points]
    replacements = str.maketrans(
        {c: "" for c, category in zip(points, categories, strict=True) if category == "Mn"}
        | PUNCTUATION
        | {match.group(): "0" for match in re.finditer(r"\d", points)}
        | {chr(c): "" for c in CONTROLS}
    )
    marks = {c for c, category in zip(points, categories, strict=True) if category == "Mc" and unicodedata.combining(c)}
    # All in one string, a line each; the line feed's own two lines are made one again.
    lower_nfd = unicodedata.normalize("NFD", "\n".join(points).lower()).split("\n")
    lower_nfd[10:12] = ["\n"]
    entries = np.full(len(points), _LM_SAME, np.uint32)
    pool = bytearray()
    growth = 1
    for code, (c, decomposed) in enumerate(zip(points, lower_nfd, strict=True)):
        if c == decomposed and code not in replacements and c not in marks:
            continue
        octets = decomposed.translate(replacements).encode()
        entries[code] = _LM_MARK if marks.intersection(decomposed) else len(octets) << 24 | len(pool)
        pool += octets
        growth = max(growth, -(-len(octets) // len(c.encode())))
    entries[0x3A3] = _LM_SIGMA
    return entries, np.frombuffer(bytes(pool), np.uint8), growth, replacements


@numba.njit(cache=True, nogil=True)
def _lm_octets(octets, key_table, entries, pool, growth, lines):  # type: ignore[no-untyped-def]
    """The text, and whether it is right: not where marks that stay may have to be put in order. Fills in `lines`."""
    start, end = 0, len(octets)
    line = 0
    while start < end:
        code, width = decode(octets, start)
        if not key_table[code] & SPACE:
            break
        line += code == 10
        start += width
    while end > start:
        last = _previous(octets, end)
        if not key_table[decode(octets, last)[0]] & SPACE:
            break
        end = last
    out = np.empty(growth * (end - start), np.uint8)
    size = 0
    i = start
    while i < end:
        code, width = decode(octets, i)
        entry = entries[code]
        if entry < _LM_FLAG:
            pooled = entry & np.uint32(0xFFFFFF)
            for n in range(entry >> np.uint32(24)):
                out[size + n] = pool[pooled + n]
            size += entry >> np.uint32(24)
            if code == 10:
                line += 1
                lines[line] = size
        elif entry == _LM_SAME:
            for n in range(width):
                out[size + n] = octets[i + n]
            size += width
        elif entry == _LM_SIGMA:
            size = _encode(
                np.uint32(0x3C2) if _is_final_sigma(octets, start, i, end, key_table) else np.uint32(0x3C3), out, size
            )
        else:
            return out[:0], False
        i += width
    lines[line + 1 :] = size
    return out[:size], True


@numba.njit(cache=True, nogil=True)
def _lines_before(octets, starts):  # type: ignore[no-untyped-def]
    """int64[documents + 1]: the lines of all documents before each."""
    lines = np.zeros(len(starts), np.int64)
    for document in range(len(starts) - 1):
        count = 1
        for i in range(starts[document], starts[document + 1]):
            count += octets[i] == 10
        lines[document + 1] = lines[document] + count
    return lines


@numba.njit(cache=True, nogil=True)
def _paragraph_keys(octets, starts, lines, table, ascii_bytes):  # type: ignore[no-untyped-def]
    longest = 0
    for document in range(len(starts) - 1):
        longest = max(longest, starts[document + 1] - starts[document])
    # Lower case takes at most 3 bytes for 2; 72 is for SHA-1's padding.
    message = np.empty(longest + longest // 2 + 72, np.uint8)
    schedule = np.empty(80, np.uint32)
    keys = np.empty(lines[-1], np.uint64)
    line = 0
    for document in range(len(starts) - 1):
        start = starts[document]
        for i in range(starts[document], starts[document + 1] + 1):
            if i == starts[document + 1] or octets[i] == 10:
                size = normalize_line(octets, start, i, table, ascii_bytes, message)
                keys[line] = _sha1_key(message, size, schedule)
                line += 1
                start = i + 1
    return keys


@numba.njit(cache=True, nogil=True)
def decode(octets, i):  # type: ignore[no-untyped-def]
    """The code point that begins at byte i of valid UTF-8, and its length in bytes."""
    first = np.uint32(octets[i])
    if first < 0x80:
        return first, 1
    second = np.uint32(octets[i + 1] & 0x3F)
    if first < 0xE0:
        return (first & np.uint32(0x1F)) << np.uint32(6) | second, 2
    third = np.uint32(octets[i + 2] & 0x3F)
    if first < 0xF0:
        return (first & np.uint32(0x0F)) << np.uint32(12) | second << np.uint32(6) | third, 3
    fourth = np.uint32(octets[i + 3] & 0x3F)
    code = (first & np.uint32(0x07)) << np.uint32(18) | second << np.uint32(12) | third << np.uint32(6) | fourth
    return code, 4


@numba.njit(cache=True, nogil=True)
def _previous(octets, i):  # type: ignore[no-untyped-def]
    """Where the code point that ends before byte i begins."""
    i -= 1
    while octets[i] & 0xC0 == 0x80:
        i -= 1
    return i


@numba.njit(cache=True, nogil=True)
def _encode(code, out, size):  # type: ignore[no-untyped-def]
    """Write a code point's UTF-8 at out[size:]. Returns the new size."""
    if code < 0x80:
        out[size] = code
        return size + 1
    if code < 0x800:
        out[size] = 0xC0 | code >> np.uint32(6)
        out[size + 1] = 0x80 | code & np.uint32(0x3F)
        return size + 2
    if code < 0x10000:
        out[size] = 0xE0 | code >> np.uint32(12)
        out[size + 1] = 0x80 | code >> np.uint32(6) & np.uint32(0x3F)
        out[size + 2] = 0x80 | code & np.uint32(0x3F)
        return size + 3
    out[size] = 0xF0 | code >> np.uint32(18)
    out[size + 1] = 0x80 | code >> np.uint32(12) & np.uint32(0x3F)
    out[size + 2] = 0x80 | code >> np.uint32(6) & np.uint32(0x3F)
    out[size + 3] = 0x80 | code & np.uint32(0x3F)
    return size + 4


@numba.njit(cache=True, nogil=True)
def _is_final_sigma(octets, start, i, end, table):  # type: ignore[no-untyped-def]
    """Whether the capital sigma at byte i of the line [start, end) follows a cased letter and is followed by none."""
    before = np.uint32(0)
    j = i
    while j > start:
        j = _previous(octets, j)
        before = table[decode(octets, j)[0]]
        if not before & _IGNORABLE:
            break
    if not before & _CASED:
        return False
    after = np.uint32(0)
    j = i + 2
    while j < end:
        code, width = decode(octets, j)
        after = table[code]
        if not after & _IGNORABLE:
            break
        j += width
    return not after & _CASED


@numba.njit(cache=True, nogil=True)
def normalize_line(octets, start, end, table, ascii_bytes, out):  # type: ignore[no-untyped-def]
    """Write the normal form, as `paragraph_keys` has it, of the line octets[start:end] to `out`.

    Args: octets uint8[n], valid UTF-8; table and ascii_bytes from `key_tables`; out uint8, 1.5 times as long as the line.
    Returns: the size of the normal form in bytes.
    """
    while start < end:
        code, width = decode(octets, start)
        if not table[code] & SPACE:
            break
        start += width
    while end > start:
        last = _previous(octets, end)
        if not table[decode(octets, last)[0]] & SPACE:
            break
        end = last
    size = 0
    i = start
    while i < end:
        octet = octets[i]
        if octet < 0x80:
            octet = ascii_bytes[octet]
            out[size] = octet
            size += octet != 0
            i += 1
            continue
        code, width = decode(octets, i)
        entry = table[code]
        if entry & _DOTTED_I:
            out[size] = 0x69
            size = _encode(np.uint32(0x307), out, size + 1)
        elif entry & _SIGMA:
            final = _is_final_sigma(octets, start, i, end, table)
            size = _encode(np.uint32(0x3C2) if final else np.uint32(0x3C3), out, size)
        elif not entry & _DELETED:
            size = _encode(entry & _CODE_POINT, out, size)
        i += width
    return size


@numba.njit(cache=True, nogil=True)
def _rotate(x, n):  # type: ignore[no-untyped-def]
    return x << np.uint32(n) | x >> np.uint32(32 - n)


@numba.njit(cache=True, nogil=True)
def _swap(x):  # type: ignore[no-untyped-def]
    """The 4 bytes of x in the other order."""
    return _rotate(x, 8) & np.uint32(0x00FF00FF) | _rotate(x, 24) & np.uint32(0xFF00FF00)


@numba.njit(cache=True, nogil=True)
def _sha1_key(message, size, w):  # type: ignore[no-untyped-def]
    """First 8 bytes of the SHA-1 (FIPS 180-4) of message[:size], little-endian. Pads the message in place."""
    padded = (size + 72) // 64 * 64
    message[size] = 0x80
    message[size + 1 : padded - 8] = 0
    for i in range(8):
        message[padded - 1 - i] = (8 * size) >> (8 * i) & 0xFF
    h0, h1, h2 = np.uint32(0x67452301), np.uint32(0xEFCDAB89), np.uint32(0x98BADCFE)
    h3, h4 = np.uint32(0x10325476), np.uint32(0xC3D2E1F0)
    for block in range(0, padded, 64):
        for i in range(16):
            p = block + 4 * i
            w[i] = (
                np.uint32(message[p]) << np.uint32(24)
                | np.uint32(message[p + 1]) << np.uint32(16)
                | np.uint32(message[p + 2]) << np.uint32(8)
                | np.uint32(message[p + 3])
            )
        for i in range(16, 80):
            w[i] = _rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1)
        a, b, c, d, e = h0, h1, h2, h3, h4
        for i in range(80):
            if i < 20:
                f = (b & c | ~b & d) + np.uint32(0x5A827999)
            elif i < 40:
                f = (b ^ c ^ d) + np.uint32(0x6ED9EBA1)
            elif i < 60:
                f = (b & c | b & d | c & d) + np.uint32(0x8F1BBCDC)
            else:
                f = (b ^ c ^ d) + np.uint32(0xCA62C1D6)
            a, b, c, d, e = np.uint32(_rotate(a, 5) + np.uint32(f) + e + w[i]), a, _rotate(b, 30), c, d
        h0 = np.uint32(h0 + a)
        h1 = np.uint32(h1 + b)
        h2 = np.uint32(h2 + c)
        h3 = np.uint32(h3 + d)
        h4 = np.uint32(h4 + e)
    return np.uint64(_swap(h0)) | np.uint64(_swap(h1)) << np.uint64(32)
