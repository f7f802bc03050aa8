"""Rules on the text of documents: Arrow batches in, the same without the lines and documents that a rule drops out.

A rule looks at the texts alone and says what goes, and why (`Verdict`); `apply` takes it out and counts. So rules know
nothing of where documents come from, and can follow each other in any order.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccnet.lines import keep_lines
from ccnet.normalize import SPACE, decode, key_tables
from ccnet.stats import Tally
from ccnet.words import text_buffers


class Verdict(NamedTuple):
    """What a rule makes of documents. 0: stays; n: goes for `reasons[n - 1]` of the rule.

    `lines`: uint8[lines], of all documents end to end; `documents`: uint8[documents].
    """

    lines: np.ndarray
    documents: np.ndarray


def count_lines(text: pa.StringArray) -> int:
    """The lines of all texts, of which an empty one has one."""
    octets, starts = text_buffers(text)
    return int(np.count_nonzero(octets[starts[0] : starts[-1]] == 10)) + len(text)


class Rule(Protocol):
    """Texts (string without nulls, lines joined by LF; an empty one has one line) in, a verdict out."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why lines and documents go, in the order of the verdict's numbers."""

    def __call__(self, text: pa.StringArray) -> Verdict: ...


def rules(names: Sequence[str], bad_words: Path | None = None, evaluations: Sequence[str] = ()) -> list[Rule]:
    """The rules of these names, in that order: `c4`, `gopher`, `fineweb`, and `evaluations` for pieces of these files.

    Raises ValueError for a file of bad words without any.
    """
    from ccnet.contamination import Contaminated
    from ccnet.heuristics import FINEWEB, GOPHER, Measured

    words = () if bad_words is None else tuple(read_words(bad_words))
    made: dict[str, Callable[[], Rule]] = {
        "c4": lambda: C4(words),
        "gopher": lambda: Measured("gopher", GOPHER),
        "fineweb": lambda: Measured("fineweb", FINEWEB),
        "evaluations": lambda: Contaminated(tuple(evaluations)),
    }
    return [made[name]() for name in names]


def read_words(path: Path) -> list[str]:
    """Words and phrases, one a line. Raises ValueError where there are none or the file is not UTF-8."""
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"quality.bad_words={path}: is not UTF-8 text") from None
    if not words:
        raise ValueError(f"quality.bad_words={path}: has no word; name a file of words, one a line")
    return words


def apply(
    rules: Sequence[Rule],
    documents: pa.RecordBatch,
    tally: Tally,
    *,
    chosen: np.ndarray | None = None,
    drop: Callable[[pa.RecordBatch, str], None] | None = None,
) -> pa.RecordBatch:
    """The documents that pass all rules, without the lines that these drop; counts what goes by reason.

    Args:
        documents: with the columns `raw_content`, `line_ids`, `length`, `nlines` and `source_domain`.
        tally: added to, but not under `in` and `kept`. A document's lines that went before it did are counted under their
            own reason, the rest under its.
        chosen: bool[documents] to which the rules are applied; None: all. drop: gets the documents that go, by reason.
    """
    for rule in rules:
        if not len(documents):
            break
        text = documents.column("raw_content")
        verdict = rule(text)
        ends = np.concatenate([[0], np.cumsum(_integers(documents.column("nlines")))])
        lines, gone = verdict.lines, verdict.documents
        if chosen is not None:
            lines, gone = np.where(np.repeat(chosen, np.diff(ends)), lines, 0), np.where(chosen, gone, 0)
        documents = _without_lines(rule, documents, lines, ends, tally)
        sizes = [_integers(documents.column(name)) for name in ("length", "nlines")]
        for number, reason in enumerate(rule.reasons, 1):
            if (of_reason := gone == number).any():
                tally.add(reason, of_reason.sum(), *(size[of_reason].sum() for size in sizes))
                some = documents.filter(pa.array(of_reason))
                tally.domains["dropped"].update(some.column("source_domain").to_pylist())
                if drop is not None:
                    drop(some, reason)
        assert not ((sizes[1] == 0) & (gone == 0)).any(), "a document whose lines all go goes too"
        documents = documents.filter(pa.array(gone == 0))
        chosen = None if chosen is None else chosen[gone == 0]
    return documents


def _without_lines(rule: Rule, documents: pa.RecordBatch, lines: np.ndarray, ends: np.ndarray, tally: Tally) -> pa.RecordBatch:
    if not lines.any():
        return documents
    kept, _ = keep_lines(documents.column("raw_content"), ends, lines == 0)
    line_ids = documents.column("line_ids")
    of_line = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), line_ids.flatten()).flatten().filter(pa.array(lines == 0))
    left = np.concatenate([[0], np.cumsum(lines == 0)])[ends]
    columns = {
        "raw_content": kept,
        "line_ids": pa.ListArray.from_arrays(pa.array(left, pa.int32()), of_line),
        "length": pc.utf8_length(kept),
        "nlines": pa.array(np.diff(left)),
    }
    lost = _integers(documents.column("length")) - _integers(columns["length"])  # with the LFs between lines
    chars = _line_chars(*text_buffers(documents.column("raw_content")), len(lines))
    counted = 0
    for number, reason in enumerate(rule.reasons, 1):
        if (of_reason := lines == number).any():
            # A line that goes takes the LF behind it along; where none stays, the last one has none.
            tally.add(reason, 0, (size := int(chars[of_reason].sum() + of_reason.sum())), of_reason.sum())
            counted, last = counted + size, reason
    tally.add(last, 0, int(lost.sum()) - counted, 0)
    arrays = [columns[f.name].cast(f.type) if f.name in columns else documents.column(f.name) for f in documents.schema]
    return pa.RecordBatch.from_arrays(arrays, schema=documents.schema)


@numba.njit(cache=True, nogil=True)
def _line_chars(octets, starts, lines):  # type: ignore[no-untyped-def]
    """int64[lines]: characters of every line of every text."""
    chars = np.zeros(lines, np.int64)
    line = 0
    for text in range(len(starts) - 1):
        for i in range(starts[text], starts[text + 1]):
            byte = octets[i]
            if byte == 10:
                line += 1
            elif byte & 0xC0 != 0x80:
                chars[line] += 1
        line += 1
    return chars


def _integers(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(np.int64)


@dataclass(frozen=True)
class C4:
    """C4's heuristics (Raffel et al., arXiv 1910.10683, section 2.2), in the order of TensorFlow Datasets' `c4_utils`.

    Lines go that hold a word of more than 1,000 characters, that don't end with `.`, `?`, `!` or `"` (or that end with
    `...`), that have fewer than 5 words or the word `javascript`, or that speak of terms of use or cookies. Documents go
    that have `lorem ipsum` or `{` in a line that was kept so far, fewer than 3 sentences, or one of `bad_words`, which is
    looked for between what are no letters, digits or `_`, whatever the case.

    A sentence ends at `.`, `?` or `!`, with the quotes and brackets that close behind it, before white space or the
    line's end; C4 asked NLTK. Two things C4 did too are none of this rule's: citation markers of Wikipedia stay, as a rule
    changes no line, and repeated spans of three sentences are left to deduplication.
    """

    bad_words: tuple[str, ...] = ()
    reasons: ClassVar[tuple[str, ...]] = (
        *("c4_long_word", "c4_no_end_mark", "c4_few_words", "c4_javascript", "c4_policy"),
        *("c4_lorem_ipsum", "c4_brace", "c4_few_sentences", "c4_bad_word"),
    )

    def __call__(self, text: pa.StringArray) -> Verdict:
        octets, starts = text_buffers(text)
        verdict = Verdict(*_c4(octets, starts, count_lines(text), key_tables()[0], *_PATTERNS))
        if self.bad_words:
            found = pc.match_substring_regex(text, self._bad_words).to_numpy(zero_copy_only=False)
            verdict.documents[(verdict.documents == 0) & found] = self.reasons.index("c4_bad_word") + 1
        return verdict

    @property
    def _bad_words(self) -> str:
        words = "|".join(re.sub(r"(\W)", r"\\\1", word, flags=re.ASCII) if word.isascii() else word for word in self.bad_words)
        return rf"(?i)(?:[^\p{{L}}\p{{N}}_]|\A)(?:{words})(?:[^\p{{L}}\p{{N}}_]|\z)"


_TEXTS = (
    *(b"javascript", b"terms of use", b"privacy policy", b"cookie policy", b"uses cookies", b"use of cookies"),
    *(b"use cookies", b"lorem ipsum"),
)
_PATTERNS = (
    np.frombuffer(b"".join(_TEXTS), np.uint8),
    np.cumsum([0, *map(len, _TEXTS)]),
    np.isin(np.arange(1 << 15), [(a & 31) << 10 | (b & 31) << 5 | c & 31 for a, b, c in (text[:3] for text in _TEXTS)]),
)
_LONG_WORD, _MIN_WORDS, _MIN_SENTENCES = 1000, 5, 3


@numba.njit(cache=True, nogil=True)
def _found(octets, i, end, pattern, start, stop):  # type: ignore[no-untyped-def]
    """Whether a pattern of lower-case ASCII begins at byte i, in any case."""
    if i + stop - start > end:
        return False
    for k in range(start, stop):
        byte = octets[i + k - start]
        if 65 <= byte <= 90:
            byte += 32
        if byte != pattern[k]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def _c4_line(octets, start, end, table, patterns, bounds, begins):  # type: ignore[no-untyped-def]
    """(reason of the line, reason of the document, sentences) of one line."""
    words = length = of_last = sentences = 0  # words; characters of this one and of the last one
    long_word = brace = policy = javascript = lorem = False
    mark = False  # after a sentence's end, and what closes behind it
    last = previous = before = np.uint32(0)  # the last three characters that are no white space
    seen = np.uint32(0)  # low five bits of the last three: those of a letter whatever its case
    i = start
    while i < end:
        code, width = decode(octets, i)
        if table[code] & SPACE:
            length = 0
            sentences += mark
            mark = False
        else:
            words += length == 0
            length += 1
            of_last = length
            long_word |= length > _LONG_WORD
            before, previous, last = previous, last, code
            if code == 46 or code == 63 or code == 33:
                mark = True
            elif not (code == 34 or code == 39 or code == 41 or code == 93 or code == 0x201D or code == 0x2019):
                mark = False
            brace |= code == 123
            seen = (seen << np.uint32(5) | code & np.uint32(31)) & np.uint32(0x7FFF)
            if begins[seen]:
                for n in range(len(bounds) - 1):
                    if _found(octets, i - 2, end, patterns, bounds[n], bounds[n + 1]):
                        if n == 0:
                            javascript = True
                        elif n == len(bounds) - 2:
                            lorem = True
                        else:
                            policy = True
        i += width
    sentences += mark
    if long_word:
        return 1, 0, 0
    ends_well = last == 46 or last == 63 or last == 33 or last == 34
    if not ends_well or (last == 46 and previous == 46 and before == 46 and of_last >= 3):
        return 2, 0, 0
    if words < _MIN_WORDS:
        return 3, 0, 0
    if lorem:
        return 0, 6, 0
    if javascript:
        return 4, 0, 0
    if brace:
        return 0, 7, 0
    if policy:
        return 5, 0, 0
    return 0, 0, sentences


@numba.njit(cache=True, nogil=True)
def _c4(octets, starts, lines, table, patterns, bounds, begins):  # type: ignore[no-untyped-def]
    of_line = np.zeros(lines, np.uint8)
    of_document = np.zeros(len(starts) - 1, np.uint8)
    line = 0
    for document in range(len(starts) - 1):
        sentences = 0
        at = starts[document]
        stop = starts[document + 1]
        while at <= stop:
            end = at
            while end < stop and octets[end] != 10:
                end += 1
            reason, fatal, added = _c4_line(octets, at, end, table, patterns, bounds, begins)
            of_line[line] = reason
            sentences += added
            if fatal and not of_document[document]:
                of_document[document] = fatal
            line += 1
            at = end + 1
        if not of_document[document] and sentences < _MIN_SENTENCES:
            of_document[document] = 8
    return of_line, of_document
