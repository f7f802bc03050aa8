"""The data stage as plainly as it can be written: pages in, the corpus out. The measure of the real one's results and speed.

Everything is in memory, line by line, in Python; the rules are CCNet's (arXiv 1911.00359) as released, written from their
description and with nothing of `ccnet`.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import fasttext
import kenlm
import sentencepiece

Page = tuple[str, str]  # URL; raw content: stripped lines joined by "\n"

PUNCTUATION = {
    0xFF0C: ",", 0x3002: ".", 0x3001: ",", 0x201E: '"', 0x201D: '"', 0x201C: '"', 0x00AB: '"', 0x00BB: '"',
    0xFF11: '"', 0x300D: '"', 0x300C: '"', 0x300A: '"', 0x300B: '"', 0x00B4: "'", 0x2236: ":", 0xFF1A: ":",
    0xFF1F: "?", 0xFF01: "!", 0xFF08: "(", 0xFF09: ")", 0xFF1B: ";", 0x2013: "-", 0x2014: " - ", 0xFF0E: ". ",
    0xFF5E: "~", 0x2019: "'", 0x2026: "...", 0x2501: "-", 0x3008: "<", 0x3009: ">", 0x3010: "[", 0x3011: "]",
    0xFF05: "%", 0x25BA: "-",
}  # fmt: skip
DELETED = re.compile("[" + "".join(map(chr, [*PUNCTUATION, *range(0x20), *range(0x7F, 0xA0)])) + "]")


def paragraph_key(line: str) -> int:
    """CCNet's key of a line."""
    line = line.strip()
    if line:
        line = DELETED.sub("", re.sub(r"\d", "0", line.lower()))
    return int.from_bytes(hashlib.sha1(line.encode()).digest()[:8], "little")


def lm_text(text: str) -> str:
    """CCNet's text for the language model."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.strip().lower()) if unicodedata.category(c) != "Mn")
    text = "".join("0" if unicodedata.decimal(c, None) is not None else c for c in text)
    return "".join(PUNCTUATION.get(ord(c), c) for c in text if not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0))


class Models:
    """The three libraries, through their Python interfaces."""

    def __init__(self, language_model: str, models: Mapping[str, tuple[str, str]]) -> None:
        self._languages = fasttext.load_model(language_model)
        self._pieces = {k: sentencepiece.SentencePieceProcessor(model_file=sp) for k, (sp, _) in models.items()}
        self._ngrams = {k: kenlm.Model(arpa) for k, (_, arpa) in models.items()}

    def language(self, text: str) -> tuple[str, float]:
        """The most probable language and its score."""
        labels, scores = self._languages.predict(text.replace("\n", ""))
        return (labels[0].removeprefix("__label__"), float(scores[0])) if labels else ("und", 0.0)

    def perplexity(self, language: str, text: str) -> float | None:
        """Of the whole document as one sentence; None for a language without models."""
        if language not in self._pieces:
            return None
        pieces = self._pieces[language].encode(lm_text(text), out_type=str)
        return float(10.0 ** (-self._ngrams[language].score(" ".join(pieces)) / (len(pieces) + 1)))


def deduplicated(
    segments: Sequence[Sequence[Page]], keep: str, min_length: int, seen: Collection[int]
) -> list[list[tuple[Page, list[int]]]]:
    """Of each segment the pages that have a line left, and the numbers of those lines."""
    long = [[page for page in segment if page[1] and len(page[1]) >= min_length] for segment in segments]
    keys = [[[paragraph_key(line) for line in content.split("\n")] for _, content in segment] for segment in long]
    documents_with = Counter(key for segment in keys for document in segment for key in set(document))
    taken = set(seen)
    result = []
    for segment, segment_keys in zip(long, keys, strict=True):
        rows = []
        for page, document in zip(segment, segment_keys, strict=True):
            kept, here = [], set[int]()
            for number, key in enumerate(document):
                alone = documents_with[key] == 1 if keep == "none" else True
                if alone and key not in taken and key not in here:
                    kept.append(number)
                here.add(key)
            taken |= here if keep == "first" else set()
            if kept:
                rows.append((page, kept))
        result.append(rows)
    return result


def corpus(
    segments: Sequence[Sequence[Page]],
    models: Models,
    *,
    keep: str = "first",
    min_length: int = 300,
    seen: Collection[int] = (),
    threshold: float = 0.5,
    languages: Collection[str] = (),
    percentiles: tuple[float, float] = (30.0, 60.0),
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """{(language, bucket): documents in crawl order}."""
    documents: list[dict[str, Any]] = []
    for segment in deduplicated(segments, keep, min_length, seen):
        for (url, content), kept in segment:
            lines = content.split("\n")
            text = "\n".join(lines[number] for number in kept)
            language, score = models.language(text)
            if score < threshold or (languages and language not in languages):
                continue
            perplexity = models.perplexity(language, text)
            documents.append(
                {"url": url, "raw_content": text, "line_ids": kept, "language": language}
                | {"language_score": score, "perplexity": perplexity}
            )
    result: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for document in documents:
        same = sorted(d["perplexity"] for d in documents if d["language"] == document["language"] and d["perplexity"])
        bucket = "all"
        if same:
            low, high = (_cutoff(same, percentile) for percentile in percentiles)
            perplexity = document["perplexity"]
            bucket = "head" if perplexity < low else "middle" if perplexity < high else "tail"
        result.setdefault((document["language"], bucket), []).append(document | {"bucket": bucket})
    return result


def _cutoff(ordered: Sequence[float], percentile: float) -> float:
    """The least perplexity below or at which the share lies, rounded up to the next power of 1.005."""
    value = next(v for n, v in enumerate(ordered, 1) if n * 100 >= percentile * len(ordered))
    return 1.005 ** (math.floor(math.log(max(value, 1.0)) / math.log(1.005)) + 1)
