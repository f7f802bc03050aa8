"""Perplexity: a document's text in, a number out; low means near to the text that the language's model was trained on.

Source: CCNet (arXiv 1911.00359, section 3.4) as released: the whole normalised document is one sentence of
SentencePiece pieces, scored by a 5-gram KenLM model.
"""

import re
from pathlib import Path

import kenlm
import numpy as np
import sentencepiece

from ccnet.normalize import lm_text


class LanguageModel:
    """SentencePiece and KenLM model of one language. Raises ValueError, in one line, for files that are no such models."""

    def __init__(self, sp_model: Path, arpa_bin: Path) -> None:
        for path in (sp_model, arpa_bin):
            if not path.is_file():
                raise ValueError(f"{path}: no such file of a language model")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
        except (OSError, RuntimeError):
            raise ValueError(f"{sp_model}: not a SentencePiece model") from None
        try:
            self._model = kenlm.Model(str(arpa_bin))
        except (OSError, RuntimeError):
            raise ValueError(f"{arpa_bin}: not a KenLM model") from None

    def perplexity(self, text: str) -> float:
        """10 to the power of the negative log10 probability per piece, the end of the sentence counted as one."""
        pieces = self._pieces.encode(lm_text(text), out_type=str)
        score = self._model.score(" ".join(pieces), bos=True, eos=True)
        return float(10.0 ** (-score / (len(pieces) + 1)))

    def perplexities(self, text: str) -> tuple[float, np.ndarray]:
        """The perplexity of the whole text, and float32[lines], that of each of its lines by itself."""
        return self.perplexity(text), np.array([self.perplexity(line) for line in text.split("\n")], np.float32)


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
