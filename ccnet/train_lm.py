"""Language models for perplexity: clean text in, a SentencePiece and a KenLM model out.

`sample_segment` takes the held-out clean pages of a segment, by language; `train` trains on the samples of all.

Source: CCNet (arXiv 1911.00359, section 3.4) as released: text normalised as for scoring, SentencePiece unigram, 65,536
pieces, character coverage 0.9995; `lmplz -o 5 --vocab_estimate 65536 --discount_fallback`; `build_binary` (probing).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece

from ccnet.dedup import SegmentMarks
from ccnet.filter import Rules, Tally, is_held_out, surviving_documents
from ccnet.language import LanguageIdentifier
from ccnet.normalize import lm_text

SAMPLE = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("language", "digest", "text")])
CLEAN_SCORE = 0.8  # of the language
CLEAN_LETTERS = 0.85  # share of letters and marks in what is not white space
CLEAN_SENTENCE = 400  # characters for which there is at least one end of a sentence
SENTENCE_ENDS = frozenset(".!?…。！？؟।۔።")
BYTES_A_PIECE = 180  # CCNet's densest: 12 MB of Gujarati for 65,536 pieces
MAX_SENTENCE = 1 << 16  # bytes; longer paragraphs don't train SentencePiece
THREADS = 2  # of SentencePiece; part of the result, so not the machine's number of cores


def is_clean(text: str, score: float) -> bool:
    """Whether a document reads like prose of one language: a clear language, mostly letters, sentences that end."""
    solid = "".join(text.split())
    letters = sum(map(str.isalpha, solid))
    ends = sum(map(solid.count, SENTENCE_ENDS))
    return score >= CLEAN_SCORE and letters >= CLEAN_LETTERS * len(solid) and ends * CLEAN_SENTENCE >= len(text)


def sample_segment(source: str, target: Path, *, marks: SegmentMarks, language_model: Path, rules: Rules) -> dict[str, Any]:
    """Writes the held-out clean pages of a segment to `target` as Parquet (language, digest, text), in crawl order.

    Returns {held_out, clean: documents} and `languages` ({language: {documents, bytes}} of the clean ones).
    """
    rows: list[dict[str, Any]] = []
    languages: dict[str, dict[str, int]] = {}
    held_out = 0
    for document in surviving_documents(source, marks, LanguageIdentifier(language_model), rules, Tally()):
        if not is_held_out(document["digest"], rules.held_out):
            continue
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

    The vocabulary is `vocab_size` where the text is large enough, else one piece for every 180 bytes.
    Returns {documents, bytes, pieces}. Raises ValueError where lmplz is missing or the text is too small.
    """
    with tempfile.TemporaryDirectory(dir=arpa_bin.parent, prefix=f"{language}.") as folder:
        work = Path(folder)
        documents = size = 0
        with (work / "text").open("w", encoding="utf-8") as paragraphs:
            for text in _texts(language, samples):
                documents += 1
                for line in text.split("\n"):
                    if normal := lm_text(line):
                        size += len(normal.encode())
                        paragraphs.write(normal + "\n")
        vocabulary = min(vocab_size, max(size // BYTES_A_PIECE, 300))
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(work / "text"),
                model_prefix=str(work / "sp"),
                model_type="unigram",
                vocab_size=vocabulary,
                hard_vocab_limit=False,
                character_coverage=character_coverage,
                max_sentence_length=MAX_SENTENCE,
                num_threads=THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"{language}: {size} bytes of clean text are too few for SentencePiece ({error})") from None
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(work / "sp.model"))
        with (work / "pieces").open("w", encoding="utf-8") as lines:
            for text in _texts(language, samples):
                lines.write(" ".join(pieces.encode(lm_text(text), out_type=str)) + "\n")
        memory = f"{max(64, min(8192, 20 * size >> 20))}M"
        _run(language, work, "lmplz", "-o", str(order), "-S", memory, "-T", folder, "--vocab_estimate", "65536",
             "--discount_fallback", "--text", str(work / "pieces"), "--arpa", str(work / "arpa"))  # fmt: skip
        _run(language, work, "build_binary", "-T", folder, "probing", str(work / "arpa"), str(work / "bin"))
        shutil.move(work / "sp.model", sp_model)
        shutil.move(work / "bin", arpa_bin)
    return {"documents": documents, "bytes": size, "pieces": pieces.get_piece_size()}


def _texts(language: str, samples: Sequence[Path]) -> Iterator[str]:
    for path in samples:
        table = pq.read_table(path, columns=["text"], filters=[("language", "=", language)])
        yield from table.column("text").to_pylist()


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
