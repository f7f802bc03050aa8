"""From documents to token shards: corpus files and a tokenizer in, a training and a validation shard out.

A document is its pieces and eos. Which split it goes to follows from its digest alone, so the same document is in the
same split in every run.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tokens import tokenizer
from pipeline.tokens.bpe import REMEMBERED, Bpe
from pipeline.tokens.documents import Slice, read_documents, well_formed
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard

SPLITS = ("train", "validation")


class Encoder:
    """Texts to ids, the same as SentencePiece's, by a kernel that is several times faster (`pipeline.tokens.bpe`).

    `remembered`: segments that the kernel keeps, a power of 2.

    `unlike`: in what the model is so unlike LLaMA's that SentencePiece itself encodes its texts; None where the kernel does.
    """

    def __init__(self, model: Path, remembered: int = REMEMBERED) -> None:
        self._processor = tokenizer.load(model)
        self.vocabulary = Vocabulary(tokenizer.digest(model), self._processor.get_piece_size(), self._processor.eos_id())
        self.dtype = dtype_for(self.vocabulary.pieces)
        proto = tokenizer.specification(model)
        self.unlike = tokenizer.unlike_llama(proto)
        self._bpe = Bpe(proto, self._processor, remembered) if self.unlike is None else None

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, and eos: uint16 or int32 [tokens]. UnicodeEncodeError for a lone surrogate."""
        return self.encode_batch(pa.array([text.encode()], pa.binary()))[0]

    def encode_batch(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """The ids of documents.

        Args: texts: (large) string or binary array without nulls. Each byte of malformed UTF-8 is U+FFFD, as SentencePiece
          has it.
        Returns: ids, uint16 or int32 [tokens], the documents end to end, each with eos behind it; int64 [documents + 1],
          where each begins.
        """
        assert not texts.null_count
        texts = well_formed(texts)
        if self._bpe is None:
            documents = [[*self._processor.encode(text), self.vocabulary.eos] for text in texts.to_pylist()]
            return np.array([*chain.from_iterable(documents)], self.dtype), np.cumsum([0, *map(len, documents)])
        _, offsets, data = texts.buffers()
        starts = np.frombuffer(offsets, np.int64, len(texts) + 1, 8 * texts.offset) if len(texts) else np.zeros(1, np.int64)
        octets = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        return self._bpe.encode(octets, starts, self.dtype)


def is_validation(digest: str, share: float) -> bool:
    """Whether a document belongs to the validation split, by a hash of its digest."""
    return int.from_bytes(hashlib.sha256(f"validation {digest}".encode()).digest()[:8]) < share * 2.0**64


def tokenize_part(parts: Sequence[Slice], model: Path, targets: dict[str, ShardFiles], *, validation: float) -> dict[str, Any]:
    """Writes the documents of slices of files, in their order, to a shard for each split (`SPLITS`).

    Returns for each split {documents, tokens, bytes, chars}. A split without documents has an empty shard.
    """
    encoder = Encoder(model)
    counts: dict[str, Any] = {}
    for split in SPLITS:
        files, seen = targets[split], Counter[str]()
        documents = _documents(parts, encoder, split, validation, seen)
        written = write_shard(documents, files.bin, files.idx, encoder.dtype)
        encoder.vocabulary.write(files.meta)
        counts[split] = written | {"bytes": seen["bytes"], "chars": seen["chars"]}
    return counts


def _documents(parts: Sequence[Slice], encoder: Encoder, split: str, share: float, seen: Counter[str]) -> Iterator[np.ndarray]:
    for batch in chain.from_iterable(map(read_documents, parts)):
        chosen = [(split == "validation") == is_validation(digest, share) for digest in batch.column(0).to_pylist()]
        texts = batch.column(1).filter(pa.array(chosen, pa.bool_()))
        seen["bytes"] += pc.sum(pc.binary_length(texts)).as_py() or 0
        seen["chars"] += pc.sum(pc.utf8_length(texts)).as_py() or 0
        ids, ends = encoder.encode_batch(texts)
        yield from (ids[start:end] for start, end in pairwise(ends.tolist()))
