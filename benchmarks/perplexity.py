"""Perplexity: each kernel beside the library that it replaces, in one run on the same pages, and how often both agree.

In: a folder of language models ({language}.sp.model and {language}.arpa.bin) and WET files; each model scores the pages of
its language. Out: MB of text per CPU second, the ratio, and the pages for which both sides give exactly the same.
`python -m benchmarks.perplexity MODELS FILE …`
"""

import re
import sys
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import kenlm
import numpy as np
import sentencepiece

from benchmarks.machine import machine
from ccnet.language import LanguageIdentifier
from ccnet.ngram import read_ngram_model
from ccnet.normalize import CONTROLS, PUNCTUATION, lm_octets
from ccnet.perplexity import LanguageModel, find_models
from ccnet.unigram import read_unigram
from ccnet.wet import read_pages

LANGUAGES = Path(sys.prefix) / "share" / "llama-pretrain" / "lid.176.ftz"
REPLACED = str.maketrans(PUNCTUATION | {chr(c): "" for c in CONTROLS})


def obvious_text(text: str) -> str:
    """CCNet's normalisation in plain Python."""
    text = unicodedata.normalize("NFD", text.strip().lower())
    return re.sub(r"\d", "0", "".join(c for c in text if unicodedata.category(c) != "Mn")).translate(REPLACED)


def timed(function: Callable[[Any], Any], items: Sequence[Any]) -> tuple[list[Any], float]:
    """The results, and CPU seconds."""
    start = time.process_time()
    results = [function(item) for item in items]
    return results, time.process_time() - start


def compare(pages: list[str], sp_model: Path, arpa_bin: Path) -> None:
    """Prints the rows of one language."""
    size = sum(len(page.encode()) for page in pages) / 1e6
    processor, scorer = sentencepiece.SentencePieceProcessor(model_file=str(sp_model)), kenlm.Model(str(arpa_bin))
    unigram, ngrams = read_unigram(sp_model.read_bytes()), read_ngram_model(arpa_bin)
    assert unigram and ngrams, "these models go through the libraries"
    words_of_pieces = ngrams.spelled(unigram.spellings)
    model = LanguageModel(sp_model, arpa_bin)
    model.perplexity(pages[0])  # compiles

    def row(name: str, kernel: float, library: float, equal: list[bool]) -> None:
        ratio = library / kernel
        print(f"  {name:24}{size / kernel:9.1f}{size / library:9.1f}{ratio:9.1f}{sum(equal):9,} of {len(equal):,}")

    normal, seconds = timed(lm_octets, pages)
    texts, obvious = timed(obvious_text, pages)
    row("text (or plain Python)", seconds, obvious, [n[0].tobytes().decode() == t for n, t in zip(normal, texts, strict=True)])
    pieces, seconds = timed(lambda n: unigram.encode(*n), normal)
    spelled, library = timed(lambda text: processor.encode(text, out_type=str), texts)
    ids = [processor.encode(text) for text in texts]
    row("SentencePiece", seconds, library, [p.ids.tolist() == i for p, i in zip(pieces, ids, strict=True)])
    words = []
    for piece in pieces:
        words.append(words_of_pieces[piece.ids])
        unknown = np.flatnonzero(piece.ids == unigram.unknown)
        words[-1][unknown] = ngrams.words(piece.normal, piece.starts[unknown], piece.starts[unknown + 1])
    scores, seconds = timed(ngrams.score, words)
    totals, library = timed(scorer.score, [" ".join(piece) for piece in spelled])
    row("KenLM", seconds, library, [score[0] == total for score, total in zip(scores, totals, strict=True)])

    def by_libraries(page: str) -> float:
        piece = processor.encode(obvious_text(page), out_type=str)
        return 10.0 ** (-scorer.score(" ".join(piece)) / (len(piece) + 1))

    perplexities, seconds = timed(LanguageModel(sp_model, arpa_bin).perplexities, pages)
    wanted, library = timed(by_libraries, pages)
    row("perplexity, all of it", seconds, library, [p[0] == w for p, w in zip(perplexities, wanted, strict=True)])


def main(models: str, files: list[str]) -> None:
    """Prints the table."""
    identifier = LanguageIdentifier(LANGUAGES)
    pages = defaultdict(list)
    for file in files:
        for batch in read_pages(file, Counter()):
            for page in batch.column("raw_content").to_pylist():
                pages[identifier.predict(page)[0]].append(page)
    print(f"{machine()}; MB/s of page text, one core")
    for language, (sp_model, arpa_bin) in find_models(Path(models)).items():
        size = sum(len(page.encode()) for page in pages[language]) / 1e6
        print(f"{language}: {len(pages[language]):,} pages, {size:.1f} MB{'':8}kernel  library    ratio    equal")
        compare(pages[language], sp_model, arpa_bin)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
