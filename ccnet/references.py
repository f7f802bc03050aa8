"""Pages like those that Wikipedia cites: dumps and mined documents in, a linear classifier a language and its scores out.

`cited_pages` takes the addresses of references out of a dump, `find_cited` looks for them among the documents of a segment,
`sample_examples` takes their texts and those of as many others, `train_classifier` trains fastText to tell them apart and
measures it on pages that it has not seen, `score_segment` scores every document.

Source: LLaMA (arXiv 2302.13971, section 2.1: "a linear model to classify pages used as references in Wikipedia v.s. randomly
sampled pages"); the model: Joulin et al., arXiv 1607.01759.
"""

import functools
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ccnet.wikipedia import read_wikitexts

MAX_TEXT = 20_000  # characters of a document that the classifier reads
HELD_OUT = 0.2  # share of the examples that the classifier is measured on
FEWEST = 40  # cited pages that a language's classifier is trained from, at least
ATTEMPTS = 4  # of fastText's training, each at half the learning rate: it overflows now and then
EXAMPLES = pa.schema(
    [
        pa.field("digest", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("cited", pa.bool_(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # `words` of the document
    ]
)
SCORES = pa.schema([pa.field("reference_score", pa.float32())])  # null where the language has no classifier
LABELS = ("__label__other", "__label__cited")
RATE = 0.5  # fastText's learning rate
SEEN = 20_000  # examples that training sees at least, again and again where there are fewer, up to 100 times
SETTINGS = {"dim": 16, "wordNgrams": 2, "bucket": 1 << 20, "minCount": 2, "thread": 1, "verbose": 0}

_REFERENCE = re.compile(r"<ref(?:\s[^<>]*)?(?<!/)>(.*?)</ref>|\{\{\s*(?:[Cc]ite|[Cc]itation)[^{}]*", re.DOTALL)
_ADDRESS = re.compile(r"https?://[^\s|\]\[<>\"{}]+")
_SCHEME = re.compile(r"^https?://(?:www\.)?", re.IGNORECASE)
_ARCHIVE = re.compile(r"^https?://(?:web\.)?archive\.(?:org|today|is|ph)/(?:web/)?[0-9a-z_*]+/(?=https?://)", re.IGNORECASE)
_WORDS = re.compile(r"\w+|[^\w\s]")


def cited_pages(source: str, counts: Counter[str]) -> tuple[str, np.ndarray, np.ndarray]:
    """What the references of a Wikipedia dump in XML cite: `<ref>` elements and citation templates.

    Returns the language as fastText names it, and the distinct keys of the pages and of their hosts (`page_key`, `host_key`),
    ascending uint64. `counts` is added to: `citations`, and as in `ccnet.wikipedia.read_wikitexts`.
    """
    pages: set[int] = set()
    hosts: set[int] = set()
    of = ""
    for language, wikitext in read_wikitexts(source, counts):
        of = language
        for address in cited_addresses(wikitext):
            counts["citations"] += 1
            pages.add(page_key(address))
            hosts.add(host_key(address))
    return of, _ascending(pages), _ascending(hosts)


def _ascending(keys: set[int]) -> np.ndarray:
    return np.sort(np.fromiter(keys, np.uint64, len(keys)))


def cited_addresses(wikitext: str) -> list[str]:
    """The addresses in the references of an article."""
    return [address for found in _REFERENCE.finditer(wikitext) for address in _ADDRESS.findall(found[0])]


def page_key(address: str) -> int:
    """64 bits of a page's address: without scheme, `www.`, fragment and last slash, its host in lower case; of an archived page
    those of the original's."""
    host, slash, rest = _SCHEME.sub("", _ARCHIVE.sub("", address)).partition("#")[0].rstrip("/").partition("/")
    return xxhash.xxh3_64_intdigest((host.lower() + slash + rest).encode())


def host_key(address: str) -> int:
    """64 bits of a page's host, without `www.` and port."""
    host = _SCHEME.sub("", _ARCHIVE.sub("", address)).partition("/")[0].partition("#")[0].partition("?")[0]
    return xxhash.xxh3_64_intdigest(host.partition(":")[0].lower().encode())


def find_cited(source: Path, keys: Mapping[str, np.ndarray], match: str) -> tuple[np.ndarray, np.ndarray]:
    """(bool[documents], str[documents]): which documents of a mined segment are cited, and their languages.

    `keys`: {language: keys}, of pages or of hosts, as `match` ("page" or "host") says.
    """
    table = pq.read_table(source, columns=["url", "language"])
    key = page_key if match == "page" else host_key
    found = np.array([key(url) for url in table.column("url").to_pylist()], np.uint64)
    languages = np.array(table.column("language").to_pylist(), dtype=object)
    cited = np.zeros(len(found), np.bool_)
    for language, known in keys.items():
        cited |= (languages == language) & np.isin(found, known)
    return cited, languages


def chance(digest: str) -> float:
    """A number in [0, 1) that follows from a document's digest: by it examples are drawn and held out."""
    return xxhash.xxh3_64_intdigest(digest.encode(), seed=2302) / 2.0**64


def sample_examples(
    source: Path, target: Path, keys: Mapping[str, np.ndarray], match: str, shares: Mapping[str, tuple[float, float]]
) -> None:
    """Writes examples of a mined segment (`EXAMPLES`), in the order of its rows.

    `shares`: {language: (of the cited pages, of the others)}, what part of them is drawn, by their digests.
    """
    cited, _ = find_cited(source, keys, match)
    start = 0
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, EXAMPLES, compression="zstd") as writer:
        for batch in file.iter_batches(1024, columns=["digest", "language", "raw_content"]):
            digests, languages, texts = batch.to_pydict().values()
            rows = []
            for number, (digest, language, text) in enumerate(zip(digests, languages, texts, strict=True), start):
                share = shares.get(language, (0.0, 0.0))[0 if cited[number] else 1]
                if chance(digest) < share:
                    rows.append({"digest": digest, "language": language, "cited": bool(cited[number]), "text": words(text)})
            writer.write_table(pa.Table.from_pylist(rows, EXAMPLES))
            start += len(batch)


def words(text: str) -> str:
    """A document as the classifier reads it: words and punctuation in lower case, a space between them."""
    return " ".join(_WORDS.findall(text[:MAX_TEXT].lower()))


def train_classifier(examples: Sequence[Path], language: str, target: Path) -> dict[str, Any]:
    """Trains a language's classifier (fastText, supervised) and measures it.

    Args:
        examples: the files of `sample_examples`; a fifth of them, by digest, is held out.
        target: the model.
    Returns: `trained_on` and `held_out` ({cited, other}: pages), `curve`: for thresholds from 0.05 to 0.95 {threshold,
        precision, recall, kept} on the held-out pages, `kept` being the share of the others that stays, and `best`: the
        threshold with the highest F1, the lowest of equal ones.
    Raises: RuntimeError where fastText fails at every learning rate.
    """
    labelled: list[tuple[str, bool, str]] = []
    for path in examples:
        table = pq.read_table(path, filters=[("language", "=", language)])
        labelled += zip(*(table.column(name).to_pylist() for name in ("digest", "cited", "text")), strict=True)
    labelled.sort(key=lambda example: xxhash.xxh3_64_intdigest(example[0].encode(), seed=1))  # fastText takes them as they come
    is_held_out = [xxhash.xxh3_64_intdigest(digest.encode(), seed=2) < HELD_OUT * 2.0**64 for digest, _, _ in labelled]
    training = [example for example, out in zip(labelled, is_held_out, strict=True) if not out]
    held_out = [example for example, out in zip(labelled, is_held_out, strict=True) if out]
    with tempfile.NamedTemporaryFile("w", dir=target.parent, encoding="utf-8") as file:
        file.writelines(f"{LABELS[cited]} {text}\n" for _, cited, text in training)
        file.flush()
        model = _train(file.name, len(training))
    model.save_model(str(target))
    scores = _scores(model, [text for _, _, text in held_out])
    cited = np.array([is_cited for _, is_cited, _ in held_out], np.bool_)
    curve = _curve(scores, cited)
    return {
        "trained_on": _both([is_cited for _, is_cited, _ in training]),
        "held_out": _both(cited.tolist()),
        "curve": curve,
        "best": max(curve, key=lambda point: (_f1(point), -point["threshold"]))["threshold"],
    }


def _train(file: str, examples: int) -> Any:
    epochs = max(5, min(100, SEEN // max(examples, 1)))
    for attempt in range(ATTEMPTS):
        try:
            return fasttext.train_supervised(file, epoch=epochs, lr=RATE / 2**attempt, **SETTINGS)
        except RuntimeError as error:
            if "NaN" not in str(error):
                raise
    raise RuntimeError(f"fastText: numbers overflow at learning rates down to {RATE / 2 ** (ATTEMPTS - 1)}")


def _both(cited: Sequence[bool]) -> dict[str, int]:
    return {"cited": sum(cited), "other": len(cited) - sum(cited)}


def _curve(scores: np.ndarray, cited: np.ndarray) -> list[dict[str, float]]:
    """Precision and recall of the cited pages at each threshold."""
    curve = []
    for percent in range(5, 100, 5):
        stays = scores >= percent / 100
        found = int((stays & cited).sum())
        curve.append(
            {
                "threshold": percent / 100,
                "precision": found / max(int(stays.sum()), 1),
                "recall": found / max(int(cited.sum()), 1),
                "kept": int((stays & ~cited).sum()) / max(int((~cited).sum()), 1),
            }
        )
    return curve


def _f1(point: Mapping[str, float]) -> float:
    both = point["precision"] + point["recall"]
    return 2 * point["precision"] * point["recall"] / both if both else 0.0


def _scores(model: Any, texts: Sequence[str]) -> np.ndarray:
    """float32[texts]: the probability of being cited."""
    scores = np.zeros(len(texts), np.float32)
    for number, text in enumerate(texts):
        found = {label: probability for probability, label in model.f.predict(text + "\n", 2, 0.0, "strict")}
        scores[number] = min(found.get(LABELS[1], 0.0), 1.0)
    return scores


_classifier = functools.cache(fasttext.load_model)  # a worker has many segments


def score_segment(source: Path, target: Path, models: Mapping[str, Path]) -> dict[str, Any]:
    """Writes the score of every document of a mined segment (`SCORES`), row by row; null in languages without a model.

    Returns `documents` and `histogram`: {language: {score in hundredths: documents}}.
    """
    loaded = {language: _classifier(str(path)) for language, path in models.items()}
    histogram: dict[str, Counter[str]] = {}
    documents = 0
    with pq.ParquetFile(source) as file, pq.ParquetWriter(target, SCORES, compression="zstd") as writer:
        for batch in file.iter_batches(1024, columns=["language", "raw_content"]):
            scores: list[float | None] = []
            for language, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                if language not in loaded:
                    scores.append(None)
                    continue
                score = float(_scores(loaded[language], [words(text)])[0])
                scores.append(score)
                histogram.setdefault(language, Counter())[str(int(score * 100))] += 1
            writer.write_table(pa.table([pa.array(scores, pa.float32())], schema=SCORES))
            documents += len(batch)
    return {"documents": documents, "histogram": {name: dict(counts) for name, counts in sorted(histogram.items())}}
