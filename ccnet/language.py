"""Language identification: a document's text in, (language, score) of the most probable language out.

Source: CCNet (arXiv 1911.00359, section 3.3), which uses fastText's lid.176 on the text without its newlines.
"""

import mmap
import struct
import sys
from pathlib import Path
from typing import Any

import fasttext

LABEL = "__label__"
PART = 2000  # characters of a long text that are looked at first
CLEAR = 0.95  # score of the part from which on the rest is not looked at
UNKNOWN = "und"  # BCP 47: undetermined
MAGIC = 793712314
CENTROIDS = 256  # of a product quantizer


def default_model() -> Path:
    """The lid.176.ftz that set-up installs. Raises ValueError where it is missing."""
    path = Path(sys.prefix) / "share" / "llama-pretrain" / "lid.176.ftz"
    if not path.is_file():
        raise ValueError(f"{path}: no language model there: run `make setup`, or give language.model")
    return path


class LanguageIdentifier:
    """A fastText language model, any that has labels `__label__xx`.

    `whole`: all of a text is looked at, as CCNet does. Otherwise the first PART characters are, and the whole only where
    these score less than CLEAR: half the time, and the same languages (`benchmarks/language_id.py`).
    Raises ValueError, in one line, for a file that is no such model, or only the beginning of one.
    """

    def __init__(self, model: Path, *, whole: bool = False) -> None:
        self._whole = whole
        if not model.is_file():
            raise ValueError(f"{model}: no such language model")
        size = model.stat().st_size
        try:
            expected = _expected_size(model)
        except (ValueError, struct.error):
            raise ValueError(f"{model}: not a fastText model, or not all of one ({size} bytes)") from None
        if size < expected:
            raise ValueError(f"{model}: a fastText model cut off after {size} of {expected} bytes")
        try:
            self._model = fasttext.load_model(str(model))
            labels = self._model.get_labels()
        except Exception as error:  # fastText raises several types, bare ones among them
            raise ValueError(f"{model}: not a fastText model ({' '.join(str(error).split())})") from None
        if not labels or not labels[0].startswith(LABEL):
            raise ValueError(f"{model}: a fastText model without language labels")

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
        labels, scores = self._model.predict(text.replace("\n", ""))
        if not labels:
            return UNKNOWN, 0.0
        return labels[0].removeprefix(LABEL), float(scores[0])


def _expected_size(path: Path) -> int:
    """The bytes that a fastText model should have, by the counts in it: the library itself does not notice a cut.

    Follows fastText's `FastText::loadModel` (format version 12): arguments, dictionary, input and output matrix. Raises
    ValueError or struct.error where the file is not such a model, or ends before the last of the counts.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0

        def take(layout: str) -> tuple[Any, ...]:
            nonlocal at
            values = struct.unpack_from(f"<{layout}", data, at)
            at += struct.calcsize(f"<{layout}")
            return values

        def skip_matrix(quantized: bool) -> None:
            nonlocal at
            if not quantized:
                rows, columns = take("2q")
                at += 4 * rows * columns
                return
            has_norms, rows, _, codes = take("?2qi")
            for count in (codes, rows) if has_norms else (codes,):  # one byte each, and their quantizer
                at += count
                dimension, *_ = take("4i")
                at += 4 * CENTROIDS * dimension

        if take("2i")[0] != MAGIC:
            raise ValueError("another format")
        take("12id")  # arguments
        entries, _, _, _, pruned = take("3i2q")
        for _ in range(entries):  # a word, closed by a zero byte; its count, 8 bytes; its type, 1 byte
            end = data.find(b"\0", at)
            if end < 0:
                raise ValueError("the dictionary is cut off")
            at = end + 10
        at += 8 * max(pruned, 0)
        (quantized,) = take("?")
        skip_matrix(quantized)
        (output_quantized,) = take("?")
        skip_matrix(quantized and output_quantized)
        return at
