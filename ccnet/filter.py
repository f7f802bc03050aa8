"""One segment through the filters: pages and their keep marks in, documents with scores out (a Parquet file).

`surviving_documents` is the part that the training of language models shares: pages read again, duplicated lines taken
out, language identified. `filter_segment` scores their perplexity and writes them, sorted by language. Whatever its
scores are, a document stays: thresholds are applied to the columns later (`ccnet.corpus`).

Source: CCNet (arXiv 1911.00359, section 3) as released; the order of the steps is the same.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccnet.corpus import DroppedFile, write_documents
from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks
from ccnet.language import LanguageIdentifier
from ccnet.lines import keep_lines
from ccnet.minified import minify
from ccnet.normalize import paragraph_keys
from ccnet.perplexity import LanguageModel
from ccnet.quality import Rule, apply
from ccnet.schema import SCORED
from ccnet.stats import Tally, by_language
from ccnet.wet import read_pages

MAX_PARAGRAPH = 200  # characters of the text that stands for a paragraph
IDENTIFIED = pa.schema(list(SCORED)[: SCORED.get_field_index("perplexity")])


@dataclass(frozen=True)
class Rules:
    """Which pages a segment's documents are made of.

    `min_length`: characters of a page, before deduplication; `languages`: those that are mined, empty for all;
    `held_out`: share of the pages that belong to the training of language models; `quality`: rules that documents of
    `quality_languages` (empty for all) must pass.
    """

    min_length: int = 300
    languages: Collection[str] = ()
    held_out: float = 0.0
    quality: Sequence[Rule] = ()
    quality_languages: Collection[str] = ()


def is_held_out(digest: str, share: float) -> bool:
    """Whether a page belongs to the training of language models and not to the corpus, by a hash of its digest."""
    return int.from_bytes(hashlib.sha256(digest.encode()).digest()[:8]) < share * 2.0**64


def surviving_documents(
    source: str | Source, marks: SegmentMarks, identifier: LanguageIdentifier, rules: Rules, tally: Tally, *, held_out: bool
) -> Iterator[dict[str, Any]]:
    """`surviving_batches` as rows."""
    for batch in surviving_batches(source, marks, identifier, rules, tally, held_out=held_out):
        yield from batch.to_pylist()


def surviving_batches(
    source: str | Source,
    marks: SegmentMarks,
    identifier: LanguageIdentifier,
    rules: Rules,
    tally: Tally,
    *,
    held_out: bool,
    dropped: DroppedFile | None = None,
) -> Iterator[pa.RecordBatch]:
    """The documents of a segment after deduplication and language identification, in crawl order.

    Either those that are held out (`is_held_out`), or the others. Yields batches of `ccnet.schema.SCORED` up to the
    language's score. What deduplication takes out of a document is counted in `tally` as duplicate, line ends that go
    with the lines included. Documents that go are counted as short, duplicate (no line is left), held_out (on the other
    side of that split) or language_not_mined, or for the reasons of `rules.quality`, and put into `dropped`. Pages that are
    too short count with their characters but are never split into lines.
    """
    side = "not_held_out" if held_out else "held_out"

    def drop(batch: pa.RecordBatch, gone: np.ndarray, reason: str, chars: np.ndarray, lines: np.ndarray) -> None:
        tally.add(reason, gone.sum(), chars[gone].sum(), lines[gone].sum())
        if gone.any():
            tally.domains["dropped"].update(batch.column("source_domain").filter(gone).to_pylist())
            if dropped is not None:
                dropped.add(batch.filter(pa.array(gone)), reason)

    for pages in read_pages(source, tally.read, min_length=1):
        pages = pages.append_column("source_domain", pa.array(map(domain, pages.column("url").to_pylist()), pa.string()))
        chars = _integers(pc.utf8_length(pages.column("raw_content")))
        tally.add("in", len(pages), chars.sum(), 0)
        short = chars < rules.min_length
        drop(pages, short, "short", chars, np.zeros_like(chars))
        pages, chars = pages.filter(pa.array(~short)), chars[~short]
        if not len(pages):
            continue

        keys, offsets = paragraph_keys(pages.column("raw_content"))
        content, line_ids = keep_lines(pages.column("raw_content"), offsets, marks.apply(keys, offsets))
        left, lines = _integers(pc.utf8_length(content)), np.diff(line_ids.offsets.to_numpy())
        tally.add("in", 0, 0, len(keys))
        tally.add("duplicate", 0, chars.sum() - left.sum(), len(keys) - lines.sum())
        empty = lines == 0
        drop(pages, empty, "duplicate", left, lines)
        columns = {name: pages.column(name) for name in pages.schema.names}
        columns |= {"raw_content": content, "line_ids": line_ids, "length": pa.array(left), "nlines": pa.array(lines)}
        fields = list(SCORED)[: SCORED.get_field_index("language")]
        documents = pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in fields], schema=pa.schema(fields)).filter(
            pa.array(~empty)
        )

        digests = documents.column("digest").to_pylist()
        other = np.array([is_held_out(digest, rules.held_out) != held_out for digest in digests], np.bool_)
        drop(documents, other, side, left[~empty], lines[~empty])
        documents = documents.filter(pa.array(~other))
        found = [identifier.predict(text) for text in documents.column("raw_content").to_pylist()]
        arrays = [pa.array([language for language, _ in found], pa.string()), pa.array([s for _, s in found], pa.float64())]
        documents = pa.RecordBatch.from_arrays([*documents.columns, *arrays], schema=IDENTIFIED)
        if rules.languages:
            unwanted = np.array([language not in rules.languages for language, _ in found], np.bool_)
            sizes = [_integers(documents.column(name)) for name in ("length", "nlines")]
            drop(documents, unwanted, "language_not_mined", *sizes)
            documents = documents.filter(pa.array(~unwanted))
        if rules.quality and not held_out:
            others = dropped.add if dropped is not None else None
            some = rules.quality_languages
            chosen = np.array([not some or language in some for language in documents.column("language").to_pylist()], np.bool_)
            documents = apply(rules.quality, documents, tally, chosen=chosen, drop=others)
        if len(documents):
            yield documents
    marks.finish()
    empty_pages = tally.read["dropped_short"]  # those without a character
    tally.add("in", empty_pages, 0, 0)
    tally.add("short", empty_pages, 0, 0)


def filter_segment(
    source: str | Source,
    target: Path,
    minified: Path,
    *,
    marks: SegmentMarks,
    language_model: Path,
    rules: Rules,
    models: Mapping[str, tuple[Path, Path]],
    whole: bool = False,
    dropped: Path | None = None,
) -> dict[str, Any]:
    """Writes the surviving documents of a segment to `target` as Parquet (`SCORED`), and returns the counts.

    The file is sorted by language, then in crawl order; a row group holds one language. `minified`: where the documents'
    metadata goes (`ccnet.minified`). `models` are the language models (`ccnet.perplexity.find_models`); `whole`: as in
    `LanguageIdentifier`; `dropped`: where the other documents go (`DROPPED`), in crawl order. Memory: the text of the
    segment.

    The counts are those of `Tally` and of `by_language`.
    """
    tally = Tally()
    batches = []
    identifier = _language_identifier(language_model, whole)
    with ExitStack() as stack:
        others = stack.enter_context(DroppedFile(dropped)) if dropped else None
        for batch in surviving_batches(source, marks, identifier, rules, tally, held_out=False, dropped=others):
            perplexities: list[float | None] = []
            paragraphs: list[np.ndarray | None] = []
            for language, text in zip(batch.column("language").to_pylist(), batch.column("raw_content"), strict=True):
                if language not in models:
                    perplexities.append(None)
                    paragraphs.append(None)
                    continue
                perplexity, by_line = _language_model(*models[language]).perplexities(text.as_py())
                perplexities.append(perplexity)
                paragraphs.append(by_line)
            scores = [pa.array(perplexities, pa.float64()), pa.array(paragraphs, pa.list_(pa.float32()))]
            batches.append(pa.RecordBatch.from_arrays([*batch.columns, *scores], schema=SCORED))
            tally.keep(batch)
    documents = pa.Table.from_batches(batches, SCORED)
    documents = documents.take(pc.sort_indices(documents, [("language", "ascending")]))  # stable: in crawl order within one
    write_documents(documents, target)
    minify(documents, minified)
    return tally.statistics() | by_language(documents)


_language_model = functools.cache(LanguageModel)  # a worker has many segments


@functools.cache
def _language_identifier(model: Path, whole: bool) -> LanguageIdentifier:
    return LanguageIdentifier(model, whole=whole)


def paragraph_texts(sources: Iterable[str | Source], keys: np.ndarray, *, min_length: int = 300) -> dict[int, str]:
    """The text of paragraphs by their keys: that of the first line that has the key, cut after MAX_PARAGRAPH characters.

    Args: sources: segments, of which no more are read when all keys are found; keys: uint64[n], distinct; min_length: as in
        `read_pages`.
    Returns: {key: text} of those that were found.
    """
    texts: dict[int, str] = {}
    for source in sources:
        if len(texts) == len(keys):
            break
        for batch in read_pages(source, Counter(), min_length=min_length):
            found, offsets = paragraph_keys(batch.column("raw_content"))
            places = np.flatnonzero(np.isin(found, keys))
            for key, first in zip(*np.unique(found[places], return_index=True), strict=True):
                if int(key) not in texts:
                    document = np.searchsorted(offsets, places[first], side="right") - 1
                    lines = batch.column("raw_content")[document].as_py().split("\n")
                    texts[int(key)] = lines[places[first] - offsets[document]][:MAX_PARAGRAPH]
    return texts


def _integers(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(np.int64)


def domain(url: str) -> str:
    """The host of a URL, with its port where it has one."""
    try:
        return urlsplit(url).netloc
    except ValueError:  # of URLs that are none, such as http://[x
        return ""
