"""Language models for perplexity: clean text in, a SentencePiece and a KenLM model out.

`sample_segment` takes the held-out clean pages of a segment, by language; `train` trains on the samples of all.

Source: CCNet (arXiv 1911.00359, section 3.4) as released: text normalised as for scoring, SentencePiece unigram, 65,536
pieces, character coverage 0.9995; `lmplz -o 5 --vocab_estimate 65536 --discount_fallback`; `build_binary` (probing).
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks
from ccnet.filter import Rules, Tally, surviving_documents
from ccnet.language import LanguageIdentifier
from ccnet.normalize import lm_text

SAMPLE = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("language", "digest", "text")])
CLEAN_SCORE = 0.8  # of the language
CLEAN_LETTERS = 0.85  # share of letters and marks in what is not white space
CLEAN_SENTENCE = 400  # characters for which there is at least one end of a sentence
SENTENCE_ENDS = frozenset(".!?…。！？؟।۔።։။។")
BYTES_A_PIECE = 180  # CCNet's densest: 12 MB of Gujarati for 65,536 pieces
PIECES_A_CHARACTER = 2  # for scripts with many characters, which are all pieces
MAX_SENTENCE = 1 << 16  # bytes; longer paragraphs don't train SentencePiece
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
    rows: list[dict[str, Any]] = []
    languages: dict[str, dict[str, int]] = {}
    held_out = 0
    identifier = LanguageIdentifier(language_model)
    for document in surviving_documents(source, marks, identifier, rules, Tally(), held_out=True):
        held_out += 1
        language, text = document["language"], document["raw_content"]
        if is_clean(text, document["language_score"]):
            rows.append({"language": language, "digest": document["digest"], "text": text})
            counts = languages.setdefault(language, {"documents": 0, "bytes": 0})
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
    pq.write_table(pa.Table.from_pylist(rows, SAMPLE), target, compression="zstd")
    return {"held_out": held_out, "clean": len(rows), "languages": dict(sorted(languages.items()))}


def train(
    language: str,
    samples: Sequence[Path],
    sp_model: Path,
    arpa_bin: Path,
    *,
    vocab_size: int = 65536,
    character_coverage: float = 0.9995,
    order: int = 5,
) -> dict[str, Any]:
    """Trains both models of a language on the samples (in their order) and writes them to the two targets.

    The vocabulary is `vocab_size` where the text is large enough, else one piece for every 180 bytes, or two for every
    character that it must cover. The same text gives the same bytes.
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
        _run(language, work, "build_binary", "-T", str(work), "probing", str(work / "arpa"), str(work / "bin"))
        sp_model.write_bytes(model.getvalue())
        (work / "bin").replace(arpa_bin)
    return {"documents": documents, "bytes": size, "pieces": pieces.get_piece_size()}


def _texts(language: str, samples: Sequence[Path]) -> Iterator[str]:
    for path in samples:
        table = pq.read_table(path, columns=["text"], filters=[("language", "=", language)])
        yield from table.column("text").to_pylist()


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
