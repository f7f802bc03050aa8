"""From documents to token shards: corpus files and a tokenizer in, a training and a validation shard out.

A document is its pieces and eos. Which split it goes to follows from its digest alone, so the same document is in the
same split in every run.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from ccnet.corpus import read_corpus
from pipeline.tokens import tokenizer
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard

SPLITS = ("train", "validation")


def is_validation(digest: str, share: float) -> bool:
    """Whether a document belongs to the validation split, by a hash of its digest."""
    return int.from_bytes(hashlib.sha256(f"validation {digest}".encode()).digest()[:8]) < share * 2.0**64


def tokenize_part(parts: Sequence[Path], model: Path, targets: dict[str, ShardFiles], *, validation: float) -> dict[str, Any]:
    """Writes the documents of corpus files, in their order, to a shard for each split (`SPLITS`).

    Returns for each split {documents, tokens, bytes, chars}. A split without documents has an empty shard.
    """
    processor = tokenizer.load(model)
    vocabulary = Vocabulary(tokenizer.digest(model), processor.get_piece_size(), processor.eos_id())
    counts: dict[str, Any] = {}
    for split in SPLITS:
        files, seen = targets[split], Counter[str]()
        documents = _documents(parts, processor, split, validation, seen)
        written = write_shard(documents, files.bin, files.idx, dtype_for(vocabulary.pieces))
        vocabulary.write(files.meta)
        counts[split] = written | {"bytes": seen["bytes"], "chars": seen["chars"]}
    return counts


def _documents(
    parts: Sequence[Path], processor: sentencepiece.SentencePieceProcessor, split: str, share: float, seen: Counter[str]
) -> Iterator[np.ndarray]:
    dtype, eos = dtype_for(processor.get_piece_size()), processor.eos_id()
    for batch in read_corpus(parts, ["digest", "raw_content"]):
        for digest, text in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if (split == "validation") == is_validation(digest, share):
                seen["bytes"] += len(text.encode())
                seen["chars"] += len(text)
                yield np.array([*processor.encode(text), eos], dtype)
