"""Perplexity: a document's text in, numbers out; low means near to the text that the language's model was trained on.

A document's is that of CCNet (arXiv 1911.00359, section 3.4) as released: the whole normalised document is one sentence of
SentencePiece pieces, scored by a 5-gram KenLM model. The same sentence gives each paragraph its own.

Text goes through three kernels (`lm_octets`, `Unigram`, `NgramModel`) that give what SentencePiece and KenLM give, to the
last bit. Models of kinds that these don't know go through the two libraries.
"""

import re
from itertools import islice
from pathlib import Path

import kenlm
import numba
import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_pb2

from ccnet.ngram import read_ngram_model
from ccnet.normalize import lm_octets
from ccnet.unigram import read_unigram


class LanguageModel:
    """SentencePiece and KenLM model of one language, the latter mapped into memory. Not for several threads at once.

    Raises ValueError, in one line, for files that are no such models.
    """

    def __init__(self, sp_model: Path, arpa_bin: Path) -> None:
        for path in (sp_model, arpa_bin):
            if not path.is_file():
                raise ValueError(f"{path}: no such file of a language model")
        config = kenlm.Config()
        config.load_method = kenlm.LoadMethod.LAZY  # it is asked for little or nothing
        try:
            self._library_pieces = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
        except (OSError, RuntimeError):
            raise ValueError(f"{sp_model}: not a SentencePiece model") from None
        try:
            self._library_model = kenlm.Model(str(arpa_bin), config)
        except (OSError, RuntimeError):
            raise ValueError(f"{arpa_bin}: not a KenLM model") from None
        unigram, model = read_unigram(sp_model.read_bytes()), read_ngram_model(arpa_bin)
        self._kernels = (unigram, model, model.spelled(unigram.spellings)) if unigram and model else None

    def perplexity(self, text: str) -> float:
        """10 to the power of the negative log10 probability per piece, the end of the sentence counted as one."""
        return self.perplexities(text)[0]

    def perplexities(self, text: str) -> tuple[float, np.ndarray]:
        """The perplexity of a document, and of each of its lines in its place in it, float32[lines].

        A line's is 10 to the power of the negative mean log10 probability of the pieces that begin in it; the end of the
        sentence counts with the last line that has a piece, and a line without one has nan. So the document's is the
        geometric mean of the lines', weighted with their pieces, but for the rounding of KenLM's float32 sum.
        """
        octets, lines = lm_octets(text)
        scored = self._scores(octets, lines) or self._library_scores(octets.tobytes().decode(), lines)
        total, scores, starts, lines = scored
        return 10.0 ** (-total / len(scores)), _line_perplexities(scores, starts, lines)

    def _scores(self, octets: np.ndarray, lines: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray] | None:
        """log10 of the sentence's probability, and of each piece's and the end's, float32[pieces + 1]; where each piece
        begins, int64[pieces], and each line, int64[lines]."""
        if self._kernels is None:
            return None
        unigram, model, words_of_pieces = self._kernels
        pieces = unigram.encode(octets, lines)
        if pieces is None:
            return None
        words = words_of_pieces[pieces.ids]
        unknown = np.flatnonzero(pieces.ids == unigram.unknown)
        words[unknown] = model.words(pieces.normal, pieces.starts[unknown], pieces.starts[unknown + 1])
        return *model.score(words), pieces.starts[:-1], pieces.lines

    def _library_scores(self, text: str, lines: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        sentence = sentencepiece_pb2.SentencePieceText()
        sentence.ParseFromString(self._library_pieces.encode(text, out_type="serialized_proto"))
        spelled = " ".join(piece.piece for piece in sentence.pieces)
        scores = (score for score, _, _ in self._library_model.full_scores(spelled))
        # A piece is several words, or none, where the model leaves spaces as they are.
        of_pieces = [sum(islice(scores, len(piece.piece.encode().split()))) for piece in sentence.pieces]
        starts = np.array([piece.begin for piece in sentence.pieces], np.int64)
        return self._library_model.score(spelled), np.array([*of_pieces, *scores], np.float32), starts, lines


def find_models(folder: Path) -> dict[str, tuple[Path, Path]]:
    """{language: (SentencePiece model, KenLM model)} of a folder with `{language}.sp.model` and `{language}.arpa.bin`.

    Raises ValueError where there is none, or one of a pair is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of language models")
    found: dict[str, set[str]] = {}
    for path in folder.iterdir():
        if match := re.fullmatch(r"(.+)\.(sp\.model|arpa\.bin)", path.name):
            found.setdefault(match[1], set()).add(match[2])
    if not found:
        raise ValueError(f"{folder}: no language models: there should be {{language}}.sp.model and {{language}}.arpa.bin")
    for language, kinds in sorted(found.items()):
        for kind in ("sp.model", "arpa.bin"):
            if kind not in kinds:
                raise ValueError(f"{folder / language}.{kind} is missing beside its other half")
    return {name: (folder / f"{name}.sp.model", folder / f"{name}.arpa.bin") for name in sorted(found)}


@numba.njit(cache=True, nogil=True)
def _line_perplexities(scores, starts, lines):  # type: ignore[no-untyped-def]
    perplexities = np.full(len(lines), np.nan, np.float32)
    piece = 0
    for line in range(len(lines)):
        first, total = piece, 0.0
        while piece < len(starts) and (line + 1 == len(lines) or starts[piece] < lines[line + 1]):
            total += scores[piece]
            piece += 1
        if piece > first:
            ends = 1 if piece == len(starts) else 0
            perplexities[line] = 10.0 ** (-(total + ends * scores[-1]) / (piece - first + ends))
    return perplexities
