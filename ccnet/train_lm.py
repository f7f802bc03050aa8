"""Language models for perplexity: clean text in, a SentencePiece and a KenLM model out.

`sample_segment` takes the held-out clean pages of a segment, by language, `sample_file` the documents of a text file or
of a Wikipedia dump; `train` trains on the samples of all.

Source: CCNet (arXiv 1911.00359, section 3.4) as released: the opening texts of Wikipedia's articles, normalised as for
scoring; SentencePiece unigram, 65,536 pieces, character coverage 0.9995; `lmplz -o 5 --vocab_estimate 65536
--discount_fallback`; `build_binary` (probing).
"""

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sentencepiece

from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks
from ccnet.filter import Rules, Tally, surviving_documents
from ccnet.language import LanguageIdentifier
from ccnet.normalize import lm_text
from ccnet.wikipedia import LANGUAGE, BadFile, open_compressed, read_articles

SAMPLE = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("language", "digest", "text")])
CLEAN_SCORE = 0.8  # of the language
CLEAN_LETTERS = 0.85  # share of letters and marks in what is not white space
CLEAN_SENTENCE = 400  # characters for which there is at least one end of a sentence
SENTENCE_ENDS = frozenset(".!?…。！？؟।۔።։။។")
BYTES_A_PIECE = 180  # CCNet's densest: 12 MB of Gujarati for 65,536 pieces
PIECES_A_CHARACTER = 2  # for scripts with many characters, which are all pieces
MAX_SENTENCE = 1 << 16  # bytes; longer paragraphs don't train SentencePiece
MAX_BLOCK = 1 << 20  # bytes of a document in a text file
MAX_ROWS_BYTES = 32 << 20  # text in a row group of a sample, about
BATCH = 4096  # documents that are held at a time
THREADS = 2  # of SentencePiece; part of the result, so not the machine's number of cores


def is_clean(text: str, score: float) -> bool:
    """Whether a document reads like prose of one language: a clear language, mostly letters, sentences that end."""
    characters = Counter(text)
    solid = sum(n for character, n in characters.items() if not character.isspace())
    letters = sum(n for character, n in characters.items() if unicodedata.category(character)[0] in "LM")
    ends = sum(characters[end] for end in SENTENCE_ENDS)
    return score >= CLEAN_SCORE and letters >= CLEAN_LETTERS * solid and ends * CLEAN_SENTENCE >= len(text)


def sample_segment(
    source: str | Source, target: Path, *, marks: SegmentMarks, language_model: Path, rules: Rules
) -> dict[str, Any]:
    """Writes the held-out clean pages of a segment to `target` as Parquet (language, digest, text), in crawl order.

    Returns {held_out, clean: documents} and `languages` ({language: {documents, bytes}} of the clean ones). Of those held
    out, pages that are too short, or not of one of the languages, are not counted.
    """
    held_out = 0
    identifier = LanguageIdentifier(language_model)
    with _Sample(target) as sample:
        for document in surviving_documents(source, marks, identifier, rules, Tally(), held_out=True):
            held_out += 1
            if is_clean(document["raw_content"], document["language_score"]):
                sample.add(document["language"], document["digest"], document["raw_content"])
    return {"held_out": held_out, "clean": sample.documents, "languages": dict(sorted(sample.languages.items()))}


def sample_file(source: str, target: Path) -> dict[str, Any]:
    """Writes the documents of a file to `target` as Parquet (language, digest, text), in their order.

    Files named `{language}.txt` or `{language}.{name}.txt`, also `.gz` and `.bz2`, are text in UTF-8; a document ends at an
    empty line. All others are Wikipedia dumps, whose documents are the openings of articles (`ccnet.wikipedia`).

    Args:
        source: path or fsspec URL.
    Returns: {clean: documents, bad: {reason: count}, languages: {language: {documents, bytes}}}; bad are `undecodable`
        lines (kept, with U+FFFD) and what `read_articles` finds.
    Raises: ValueError where the name of a text file begins with no language, OSError where the file cannot be read.
    Memory: MAX_ROWS_BYTES of text.
    """
    counts: Counter[str] = Counter()
    name = source.rsplit("/", 1)[-1]
    with _Sample(target) as sample:
        if re.search(r"\.txt(\.gz|\.bz2)?$", name):
            language = name.split(".")[0]
            if not LANGUAGE.fullmatch(language):
                raise ValueError(f"{source}: the name of a text file begins with its language, as en.txt or en.news.txt")
            documents = ((language, text) for text in _blocks(source, counts))
        else:
            documents = ((article.language, article.text) for article in read_articles(source, counts, openings=True))
        for language, text in documents:
            digest = "sha1:" + base64.b32encode(hashlib.sha1(text.encode(), usedforsecurity=False).digest()).decode()
            sample.add(language, digest, text)
    bad = {name.removeprefix("bad_"): count for name, count in counts.items() if name.startswith("bad_")}
    return {"clean": sample.documents, "bad": bad, "languages": dict(sorted(sample.languages.items()))}


class _Sample:
    """The Parquet file of a sample: documents in, row groups of MAX_ROWS_BYTES out; and what is in it, by language."""

    def __init__(self, path: Path) -> None:
        self.documents = 0
        self.languages: dict[str, dict[str, int]] = {}
        self._writer = pq.ParquetWriter(path, SAMPLE, compression="zstd")
        self._rows: list[dict[str, str]] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._writer:
            self._flush()

    def add(self, language: str, digest: str, text: str) -> None:
        size = len(text.encode())
        counts = self.languages.setdefault(language, {"documents": 0, "bytes": 0})
        counts["documents"] += 1
        counts["bytes"] += size
        self.documents += 1
        self._rows.append({"language": language, "digest": digest, "text": text})
        self._bytes += size
        if self._bytes >= MAX_ROWS_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SAMPLE))
        self._rows, self._bytes = [], 0


def _blocks(source: str, counts: Counter[str]) -> Iterator[str]:
    """The blocks of lines between empty lines, lines stripped; one that is larger than MAX_BLOCK is cut at a line."""
    lines: list[str] = []
    size = 0
    try:
        with open_compressed(source) as file:
            while raw := file.readline(MAX_BLOCK):
                try:
                    line = raw.decode()
                except UnicodeDecodeError:
                    counts["bad_undecodable"] += 1
                    line = raw.decode(errors="replace")
                line = line.strip().removeprefix("\ufeff")
                if lines and (not line or size + len(raw) > MAX_BLOCK):
                    yield "\n".join(lines)
                    lines, size = [], 0
                if line:
                    lines.append(line)
                    size += len(raw)
    except BadFile as fault:
        counts[f"bad_{fault}"] += 1
    if lines:
        yield "\n".join(lines)


def train(
    language: str,
    samples: Sequence[Path],
    sp_model: Path,
    arpa_bin: Path,
    *,
    vocab_size: int = 65536,
    character_coverage: float = 0.9995,
    order: int = 5,
    format: str = "probing",
) -> dict[str, Any]:
    """Trains both models of a language on the samples (in their order) and writes them to the two targets.

    The vocabulary is `vocab_size` where the text is large enough, else one piece for every 180 bytes, or two for every
    character that it must cover. `format` is KenLM's: `probing` is faster, `trie` smaller, their scores are the same. The
    same text gives the same bytes.
    Returns {documents, bytes, pieces}; bytes are of the normalised text. Raises ValueError where lmplz is missing, the
    text is too small, or `vocab_size` has no room for its characters.
    """
    with tempfile.TemporaryDirectory(dir=arpa_bin.parent, prefix=f"{language}.") as folder:
        work = Path(folder).resolve()  # the programs run in it
        documents = size = 0
        characters: Counter[str] = Counter()
        with (work / "text").open("w", encoding="utf-8", newline="\n") as paragraphs:
            for text in _texts(language, samples):
                documents += 1
                for line in text.split("\n"):
                    if normal := lm_text(line):
                        size += len(normal.encode())
                        characters.update(normal)
                        paragraphs.write(normal + "\n")
        if not size:
            raise ValueError(f"{language}: no clean text to train a language model on")
        alphabet = _alphabet(characters, character_coverage)
        vocabulary = min(vocab_size, max(size // BYTES_A_PIECE, PIECES_A_CHARACTER * alphabet, 300))
        model = io.BytesIO()
        try:
            with (work / "text").open(encoding="utf-8", newline="\n") as paragraphs:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=(line.removesuffix("\n") for line in paragraphs),  # a file's name would be in the model
                    model_writer=model,
                    model_type="unigram",
                    vocab_size=vocabulary,
                    hard_vocab_limit=False,
                    character_coverage=character_coverage,
                    max_sentence_length=MAX_SENTENCE,
                    num_threads=THREADS,
                    minloglevel=2,
                )
        except RuntimeError as error:
            raise ValueError(
                f"{language}: no SentencePiece model of {vocabulary} pieces can be trained on {size} bytes of clean text"
                f" with {alphabet} characters: more text, or another lm.vocab_size ({' '.join(str(error).split())})"
            ) from None
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        with (work / "pieces").open("w", encoding="utf-8") as lines:
            for text in _texts(language, samples):
                lines.write(" ".join(pieces.encode(lm_text(text), out_type=str)) + "\n")
        memory = f"{max(64, min(8192, 20 * size >> 20))}M"
        _run(language, work, "lmplz", "-o", str(order), "-S", memory, "-T", str(work), "--vocab_estimate", "65536",
             "--discount_fallback", "--text", str(work / "pieces"), "--arpa", str(work / "arpa"))  # fmt: skip
        _run(language, work, "build_binary", "-T", str(work), format, str(work / "arpa"), str(work / "bin"))
        sp_model.write_bytes(model.getvalue())
        (work / "bin").replace(arpa_bin)
    return {"documents": documents, "bytes": size, "pieces": pieces.get_piece_size()}


def _texts(language: str, samples: Sequence[Path]) -> Iterator[str]:
    for path in samples:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=["language", "text"]):
                yield from batch.filter(pc.equal(batch.column("language"), language)).column("text").to_pylist()


def _alphabet(characters: Counter[str], coverage: float) -> int:
    """How many characters, the most frequent first, make up `coverage` of the text."""
    seen = 0
    for number, (_, count) in enumerate(characters.most_common(), 1):
        seen += count
        if seen >= coverage * characters.total():
            return number
    return 0


def _run(language: str, folder: Path, tool: str, *arguments: str) -> None:
    """Runs one of KenLM's programs; ValueError with the telling line of its output where it fails."""
    path = shutil.which(tool, path=os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")]))
    if path is None:
        raise ValueError(f"{tool}: not found; run `make setup`, which builds KenLM's programs")
    done = subprocess.run([path, *arguments], cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        if "No space left" in done.stderr:
            raise OSError(28, "No space left on device")
        lines = [line for line in done.stderr.splitlines() if "rror" in line or "xception" in line or "what()" in line]
        raise ValueError(f"{tool} failed for {language}: {(lines or [f'exit code {done.returncode}'])[-1].strip()}")
