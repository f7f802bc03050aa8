"""Documents measured by what published corpora were filtered by: text in, numbers and the first rule that is broken out.

`gopher`: the quality and repetition rules of MassiveText (arXiv 2112.11446, appendix A.1.1, table A1). `fineweb`: FineWeb's
rules on lines (arXiv 2406.17557, section 3.6). Words are what white space separates; lines are those with a character;
paragraphs are what empty lines separate. Shares of characters are of the text's, line ends included.
"""

import functools
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import pyarrow as pa

from ccnet.normalize import SPACE, decode, key_tables
from ccnet.quality import Verdict, count_lines
from ccnet.words import mix, sequence_hash, text_buffers

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
LONGEST_STOP_WORD = max(map(len, STOP_WORDS))
BULLETS = "•‣▶◀◦■□▪▫–-*"
ENDS = ".!?\"'”’。！？…"
SHORT_LINE = 30  # characters
TOP = (2, 3, 4)  # words of a run whose most frequent one is looked for
REPEATED = (5, 6, 7, 8, 9, 10)  # words of the runs that are looked for a second time
MEASURES = (
    *("words", "word_length", "hashes", "ellipses", "bullet_lines", "ellipsis_lines", "alphabetic_words", "stop_words"),
    *("repeated_lines", "repeated_line_chars", "repeated_paragraphs", "repeated_paragraph_chars"),
    *(f"top_{n}_gram" for n in TOP),
    *(f"repeated_{n}_grams" for n in REPEATED),
    *("ended_lines", "short_lines"),
)


class Bound(NamedTuple):
    """What a measure may be: `least` ≤ measure ≤ `most`."""

    measure: str
    least: float = -np.inf
    most: float = np.inf


GOPHER = (
    Bound("words", 50, 100_000),
    Bound("word_length", 3, 10),
    Bound("hashes", most=0.1),
    Bound("ellipses", most=0.1),
    Bound("bullet_lines", most=0.9),
    Bound("ellipsis_lines", most=0.3),
    Bound("alphabetic_words", least=0.8),
    Bound("stop_words", least=2),
    Bound("repeated_lines", most=0.3),
    Bound("repeated_paragraphs", most=0.3),
    Bound("repeated_line_chars", most=0.2),
    Bound("repeated_paragraph_chars", most=0.2),
    *(Bound(f"top_{n}_gram", most=most) for n, most in zip(TOP, (0.2, 0.18, 0.16), strict=True)),
    *(Bound(f"repeated_{n}_grams", most=m) for n, m in zip(REPEATED, (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), strict=True)),
)
FINEWEB = (  # at the limit a document goes
    Bound("ended_lines", least=np.nextafter(0.12, 1)),
    Bound("repeated_line_chars", most=np.nextafter(0.1, 0)),
    Bound("short_lines", most=np.nextafter(0.67, 0)),
)


def measure(text: pa.StringArray) -> np.ndarray:
    """float64[texts, measures], in the order of `MEASURES`.

    `words`: their number; `word_length`: mean characters; `hashes`, `ellipses`: "#", and "..." or "…", a word;
    `bullet_lines`, `ellipsis_lines`, `ended_lines` (with a full stop, a question, exclamation or quotation mark, or an
    ellipsis), `short_lines` (under 30 characters): shares of the lines; `alphabetic_words`: share of the words with a letter;
    `stop_words`: how many of eight English ones there are; `repeated_…`: shares of the lines or paragraphs, or of the
    characters in them, that an earlier one equals; `top_n_gram`: share of the characters in the most frequent run of n words
    (the first of equally frequent ones; 0 where all are there once); `repeated_n_grams`: share of the characters in runs of n
    words that an earlier run equals, each counted once.
    """
    return np.asarray(_measure(*text_buffers(text), *_tables(), _stop_words()))


@dataclass(frozen=True)
class Measured:
    """A rule (`ccnet.quality.Rule`): documents go for the first of the bounds that they break, as `{name}_{measure}`."""

    name: str
    bounds: tuple[Bound, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{bound.measure}" for bound in self.bounds)

    def __call__(self, text: pa.StringArray) -> Verdict:
        measures = measure(text)
        values = [measures[:, MEASURES.index(bound.measure)] for bound in self.bounds]
        broken = [(value < bound.least) | (value > bound.most) for value, bound in zip(values, self.bounds, strict=True)]
        numbers = np.arange(1, len(broken) + 1, dtype=np.uint8)
        return Verdict(np.zeros(count_lines(text), np.uint8), np.select(broken, list(numbers), np.uint8(0)))


_SPACE, _LETTER, _BULLET, _END, _ELLIPSIS = 1, 2, 4, 8, 16


@functools.cache
def _tables() -> tuple[np.ndarray]:
    """uint8[code points]: what a character is."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    kinds[(key_tables()[0] & SPACE) != 0] |= _SPACE
    letters = [code for code in range(sys.maxunicode + 1) if chr(code).isalpha()]
    kinds[letters] |= _LETTER
    for characters, bit in ((BULLETS, _BULLET), (ENDS, _END), ("…", _ELLIPSIS)):
        kinds[[ord(character) for character in characters]] |= bit
    return (kinds,)


@functools.cache
def _stop_words() -> np.ndarray:
    """The hashes of the stop words."""
    text = np.frombuffer("".join(STOP_WORDS).encode(), np.uint8)
    ends = np.cumsum([len(word) for word in STOP_WORDS])
    return np.array([_hash(text, end - len(word), end, True) for word, end in zip(STOP_WORDS, ends, strict=True)], np.uint64)


@numba.njit(cache=True, nogil=True)
def _hash(octets, start, end, lower):  # type: ignore[no-untyped-def]
    """Of octets[start:end], with ASCII letters in lower case where that is wanted (FNV-1a)."""
    hashed = np.uint64(0xCBF29CE484222325)
    for i in range(start, end):
        byte = octets[i]
        if lower and 65 <= byte <= 90:
            byte += 32
        hashed = (hashed ^ np.uint64(byte)) * np.uint64(0x100000001B3)
    return mix(hashed)


@numba.njit(cache=True, nogil=True)
def _repeats(hashes, chars, count):  # type: ignore[no-untyped-def]
    """(how many of the first `count` are equal to an earlier one, the characters in them)."""
    order = np.argsort(hashes[:count], kind="mergesort")
    number = size = 0
    for i in range(1, count):
        if hashes[order[i]] == hashes[order[i - 1]]:
            number += 1
            size += chars[order[i]]
    return number, size


@numba.njit(cache=True, nogil=True)
def _top(runs, begins, ends, n, count):  # type: ignore[no-untyped-def]
    """Characters in the most frequent run of n words, over all of its occurrences; 0 where each is there once."""
    ordered = np.argsort(runs[: count - n + 1], kind="mergesort")
    best = times = 0
    first = -1
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or runs[ordered[i]] != runs[ordered[start]]:
            if i - start > times or (i - start == times and ordered[start] < first):
                times, first = i - start, ordered[start]
                best = times * (ends[first + n - 1] - begins[first])
            start = i
    return best if times > 1 else 0


@numba.njit(cache=True, nogil=True)
def _covered(runs, begins, ends, n, count):  # type: ignore[no-untyped-def]
    """Characters in runs of n words that an earlier run equals, each counted once."""
    ordered = np.argsort(runs[: count - n + 1], kind="mergesort")
    again = np.zeros(count - n + 1, np.bool_)
    for i in range(1, len(ordered)):
        again[ordered[i]] = runs[ordered[i]] == runs[ordered[i - 1]]
    covered = 0
    reached = 0
    for run in range(count - n + 1):
        if again[run]:
            low, high = max(begins[run], reached), ends[run + n - 1]
            if high > low:
                covered += high - low
                reached = high
    return covered


@numba.njit(cache=True, nogil=True)
def _measure(octets, starts, kinds, stop_words):  # type: ignore[no-untyped-def]
    found = np.zeros((len(starts) - 1, 23), np.float64)
    longest = 0
    for text in range(len(starts) - 1):
        longest = max(longest, starts[text + 1] - starts[text])
    words, begins, ends = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int64), np.empty(longest + 1, np.int64)
    lines, line_chars = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int64)
    paragraphs, paragraph_chars = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int64)
    runs = np.empty(longest + 1, np.uint64)
    for text in range(len(starts) - 1):
        values = found[text]
        count = letters = word_chars = hashes = ellipses = 0
        stops = 0  # a bit for each that was there
        line_count = bullets = ellipsis_lines = ended = short = 0
        paragraph_count = 0
        chars = 0  # before i
        paragraph_start = paragraph_at = paragraph_end = paragraph_to = -1  # bytes, and characters
        i = starts[text]
        stop = starts[text + 1]
        while i < stop:
            # One line: its words, then itself.
            line_start = line_at = line_end = line_to = -1
            first = last = np.uint32(0)
            points = end_points = 0  # full stops in a row, up to here and up to the line's last character
            word_start = word_at = -1
            has_letter = False
            while True:
                code, width = decode(octets, i) if i < stop else (np.uint32(10), 1)
                kind = kinds[code]
                if kind & _SPACE:
                    if word_start >= 0:
                        words[count], begins[count], ends[count] = _hash(octets, word_start, i, False), word_at, chars
                        if i - word_start <= LONGEST_STOP_WORD:
                            lowered = _hash(octets, word_start, i, True)
                            for n in range(len(stop_words)):
                                if lowered == stop_words[n]:
                                    stops |= 1 << n
                        count += 1
                        letters += has_letter
                        word_chars += chars - word_at
                        word_start, has_letter = -1, False
                    points = 0
                else:
                    if word_start < 0:
                        word_start, word_at = i, chars
                    if line_start < 0:
                        line_start, line_at, first = i, chars, code
                    line_end, line_to = i + width, chars + 1
                    last = code
                    points = points + 1 if code == 46 else 0
                    end_points = points
                    has_letter |= kind & _LETTER != 0
                    hashes += code == 35
                    ellipses += kind & _ELLIPSIS != 0
                    ellipses += points > 0 and points % 3 == 0
                i += width
                chars += 1
                if code == 10:
                    break
            if line_start >= 0:
                lines[line_count], line_chars[line_count] = _hash(octets, line_start, line_end, False), line_to - line_at
                line_count += 1
                bullets += kinds[first] & _BULLET != 0
                ellipsis_lines += kinds[last] & _ELLIPSIS != 0 or end_points >= 3
                ended += kinds[last] & _END != 0
                short += line_to - line_at < SHORT_LINE
                if paragraph_start < 0:
                    paragraph_start, paragraph_at = line_start, line_at
                paragraph_end, paragraph_to = line_end, line_to
            if paragraph_start >= 0 and (line_start < 0 or i >= stop):
                paragraphs[paragraph_count] = _hash(octets, paragraph_start, paragraph_end, False)
                paragraph_chars[paragraph_count] = paragraph_to - paragraph_at
                paragraph_count += 1
                paragraph_start = -1
        size = max(chars - 1, 1)  # the last line end is none of the text's
        some_words, some_lines, some_paragraphs = max(count, 1), max(line_count, 1), max(paragraph_count, 1)
        values[0], values[1] = count, word_chars / some_words
        values[2], values[3] = hashes / some_words, ellipses / some_words
        values[4], values[5] = bullets / some_lines, ellipsis_lines / some_lines
        values[6] = letters / some_words
        for n in range(len(stop_words)):
            values[7] += stops >> n & 1
        again, again_chars = _repeats(lines, line_chars, line_count)
        values[8], values[9] = again / some_lines, again_chars / size
        again, again_chars = _repeats(paragraphs, paragraph_chars, paragraph_count)
        values[10], values[11] = again / some_paragraphs, again_chars / size
        for number in range(len(TOP) + len(REPEATED)):
            n = number + 2
            if count < n:
                break
            for run in range(count - n + 1):
                runs[run] = sequence_hash(words, run, run + n)
            chars_of = _top(runs, begins, ends, n, count) if n in TOP else _covered(runs, begins, ends, n, count)
            values[12 + number] = chars_of / size
        values[21], values[22] = ended / some_lines, short / some_lines
    return found
