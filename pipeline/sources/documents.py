"""Documents of a source in, a Parquet file in the corpus schema out, with what was dropped by reason."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ccnet.corpus import DroppedFile
from ccnet.privacy import mask_documents
from ccnet.quality import Rule, apply
from ccnet.schema import SOURCE_DOCUMENT
from ccnet.stats import Tally

BATCH_BYTES = 16 << 20  # text of a row group, about
UNTOLD = "und"  # BCP 47: the language of a document that does not say


class Document(NamedTuple):
    """A document of a source.

    `url`: unlike all others where the source allows it; `date`: ISO 8601 or empty; `language`: as fastText names it, None
    where the source does not say. `dropped`: the reason for which it is not kept, None for one that stays. `removed`: what
    was taken out of the source's text, {reason: text}.
    """

    url: str
    date: str
    title: str
    text: str
    language: str | None = None
    dropped: str | None = None
    removed: tuple[tuple[str, str], ...] = ()


def write_documents(
    documents: Iterable[tuple[str, Document]],
    source: str,
    target: Path,
    rules: Sequence[Rule],
    privacy: Sequence[str],
    counts: Counter[str],
    dropped: Path | None = None,
) -> dict[str, Any]:
    """Writes the documents that stay to a Parquet file (`SOURCE_DOCUMENT`), a row group for about 16 MB of text.

    Args:
        documents: each with the name of its file, for `cc_segment`. rules: applied in turn (`ccnet.quality`).
        privacy: kinds of addresses that are replaced (`ccnet.privacy`).
        counts: what the source counts: `dropped_{reason}` for documents that never had a text, `bad_{reason}`.
        dropped: where the documents that go are written to, with their text (`DROPPED`).
    Returns: `documents`, `chars` and `lines` as `Tally` has them, `domains`, `bad`, `languages` {language: documents}, and
        `replaced` {kind: addresses}.
    """
    tally, languages, replaced = Tally(), Counter[str](), Counter[str]()
    with closing(pq.ParquetWriter(target, SOURCE_DOCUMENT, compression="zstd")) as writer, ExitStack() as stack:
        others = stack.enter_context(DroppedFile(dropped)) if dropped is not None else None
        for batch, reasons in _batches(documents, source, tally, whole=others is not None):
            for reason in sorted({reason for reason in reasons if reason is not None}):
                assert others is not None
                others.add(batch.filter(pa.array([of == reason for of in reasons])), reason)
            batch = batch.filter(pa.array([reason is None for reason in reasons], pa.bool_()))
            kept = apply(rules, batch, tally, drop=others.add if others is not None else None)
            if len(kept):
                tally.keep(kept)
                languages.update(kept.column("language").to_pylist())
                table, addresses = mask_documents(pa.Table.from_batches([kept]), privacy)
                replaced.update(addresses)
                writer.write_table(table)
    for name, number in counts.items():
        if name.startswith("dropped_"):
            tally.add("in", number, 0, 0)
            tally.add(name.removeprefix("dropped_"), number, 0, 0)
    tally.read.update(counts)
    return tally.statistics() | {"languages": dict(languages), "replaced": dict(replaced)}


def _batches(
    documents: Iterable[tuple[str, Document]], source: str, tally: Tally, *, whole: bool
) -> Iterator[tuple[pa.RecordBatch, list[str | None]]]:
    """The documents that stay, as Arrow, or the `whole` of them, and why they go; all are counted as they come in."""
    held: list[tuple[str, Document]] = []
    size = 0
    for origin, document in documents:
        lines = document.text.count("\n") + 1
        chars, taken = len(document.text), 0
        for reason, text in document.removed:
            tally.add(reason, 0, len(text), text.count("\n"))
            chars += len(text)
            taken += text.count("\n")
        tally.add("in", 1, chars, lines + taken)
        if document.dropped is not None:
            tally.add(document.dropped, 1, len(document.text), lines)
            tally.domains["dropped"][_host(document.url)] += 1
            if not whole:
                continue
        held.append((origin, document))
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield _batch(held, source), [document.dropped for _, document in held]
            held, size = [], 0
    if held:
        yield _batch(held, source), [document.dropped for _, document in held]


def _batch(held: Sequence[tuple[str, Document]], source: str) -> pa.RecordBatch:
    origins, documents = zip(*held, strict=True)
    octets = [document.text.encode(errors="replace") for document in documents]
    text = pa.array(octets, pa.binary()).cast(pa.string())
    nlines = [document.text.count("\n") + 1 for document in documents]
    ends = np.cumsum([0, *nlines], dtype=np.int32)
    number = len(documents)
    columns = {
        "url": [_well_formed(document.url) for document in documents],
        "date_download": [document.date for document in documents],
        "digest": [digest(text) for text in octets],
        "length": [len(document.text) for document in documents],
        "nlines": nlines,
        "source_domain": [_host(document.url) for document in documents],
        "title": [_well_formed(document.title) for document in documents],
        "raw_content": text,
        "cc_segment": [_well_formed(origin) for origin in origins],
        "original_nlines": nlines,
        "original_length": list(map(len, octets)),
        "line_ids": pa.ListArray.from_arrays(ends, np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], nlines)),
        "language": [document.language or UNTOLD for document in documents],
        "language_score": [float(document.language is not None) for document in documents],
        "perplexity": pa.nulls(number, pa.float64()),
        "bucket": pa.repeat("all", number),
        "source": pa.repeat(source, number),
    }
    arrays = [
        pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name].cast(f.type)
        for f in SOURCE_DOCUMENT
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SOURCE_DOCUMENT)


def digest(octets: bytes) -> str:
    """`sha1:` and base32, as WARC has it."""
    return "sha1:" + base64.b32encode(hashlib.sha1(octets, usedforsecurity=False).digest()).decode()


def _well_formed(text: str) -> str:
    return text.encode(errors="replace").decode()


def _host(url: str) -> str:
    try:
        return _well_formed(urlsplit(url).hostname or "")
    except ValueError:
        return ""
