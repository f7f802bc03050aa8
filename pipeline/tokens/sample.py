"""The tokenizer's sample: files by source and language in, documents out, and what a tokenizer makes of them.

Text streams by, a batch of documents at a time.
"""

import functools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tokens.documents import read_documents, slices
from pipeline.tokens.encode import Encoder

ALL = "all"  # the row of all languages of a source


@dataclass(frozen=True)
class Stratum:
    """Files (paths or URLs) of one source, language and bucket, and how many characters they have; None: not counted yet."""

    source: str
    language: str
    files: tuple[str, ...]
    chars: int | None

    def texts(self) -> Iterator[pa.StringArray]:
        """All texts, some at a time."""
        for file in self.files:
            for part in slices(file, sys.maxsize):
                for batch in read_documents(part):
                    yield batch.column("raw_content")

    @functools.cached_property
    def size(self) -> int:
        """Its characters, counted if need be, and then once: training and the table of what a token stands for both ask."""
        if self.chars is not None:
            return self.chars
        return sum(pc.sum(pc.utf8_length(texts)).as_py() or 0 for texts in self.texts())


@dataclass(frozen=True)
class Sample:
    """About `chars` characters, each source by its share, whole documents spread evenly over each stratum.

    A source with less text than its share gives all it has. The same documents every time.
    """

    strata: Sequence[Stratum]
    shares: Mapping[str, float]
    chars: int

    def documents(self) -> Iterator[tuple[Stratum, pa.StringArray]]:
        """The texts, some at a time, and where they are from."""
        of_source = Counter[str]()
        for stratum in self.strata:
            of_source[stratum.source] += stratum.size
        for stratum in self.strata:
            wanted = self.chars * self.shares[stratum.source] / sum(self.shares.values())
            every = max(1.0, of_source[stratum.source] / wanted)
            seen = taken = 0
            for texts in stratum.texts():
                chosen = []
                for length in pc.utf8_length(texts).to_pylist():
                    chosen.append(taken * every <= seen)
                    taken += length * chosen[-1]
                    seen += length
                yield stratum, texts.filter(pa.array(chosen, pa.bool_()))


def fertility(sample: Sample, model: Path) -> list[dict[str, Any]]:
    """How much text of a sample a token of a model stands for, eos not counted.

    Returns rows {source, language, documents, chars, bytes, tokens, chars_per_token, bytes_per_token}, one a source and
    language, and one of each source with `ALL` languages; the ratios are None where there are no tokens.
    """
    encoder = Encoder(model)
    rows: dict[tuple[str, str], Counter[str]] = {}
    for stratum, texts in sample.documents():
        ids, ends = encoder.encode_batch(texts)
        counts = {
            "documents": len(texts),
            "chars": pc.sum(pc.utf8_length(texts)).as_py() or 0,
            "bytes": pc.sum(pc.binary_length(texts)).as_py() or 0,
            "tokens": len(ids) - (len(ends) - 1),
        }
        for language in (ALL, stratum.language):
            rows.setdefault((stratum.source, language), Counter()).update(counts)
    return [
        {"source": source, "language": language, **counts}
        | {f"{unit}_per_token": counts[unit] / counts["tokens"] if counts["tokens"] else None for unit in ("chars", "bytes")}
        for (source, language), counts in sorted(rows.items())
    ]
