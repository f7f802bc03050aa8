"""From documents to token shards: corpus files and a tokenizer in, a training and a validation shard out.

A document is its pieces and eos. Which split it goes to follows from its digest alone, so the same document is in the
same split in every run.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from pipeline.tokens import tokenizer
from pipeline.tokens.documents import Slice, read_documents
from pipeline.tokens.shards import ShardFiles, Vocabulary, dtype_for, write_shard

SPLITS = ("train", "validation")
REMEMBERED = 1 << 19  # segments an encoder keeps: about 100 MB
LONGEST = 32  # characters; longer segments hardly come again


class Encoder:
    """Texts to ids, the same as SentencePiece's: a text is cut where BPE can't merge, and the ids of its segments are
    remembered. Several times faster than SentencePiece once the frequent segments are.

    BPE only makes pieces of the vocabulary, so it never merges across a place that no piece has inside. Where no piece has ▁
    (a space) behind another character, the places before spaces are such; and so are those around a character that is in no
    piece of several. The pieces of a segment then follow from the segment alone: within it, the best merges are the same.

    `unsegmented`: why this model's texts are encoded whole, by SentencePiece alone; None where they are cut.
    """

    def __init__(self, model: Path) -> None:
        self._processor = tokenizer.load(model)
        self.vocabulary = Vocabulary(tokenizer.digest(model), self._processor.get_piece_size(), self._processor.eos_id())
        self.dtype = dtype_for(self.vocabulary.pieces)
        self._end = np.array([self.vocabulary.eos], self.dtype).tobytes()
        proto = tokenizer.specification(model)
        several = [piece.piece for piece in proto.pieces if piece.type == piece.NORMAL and len(piece.piece) > 1]
        merging = "".join(sorted({character for piece in several for character in piece} - {"▁"}))
        self.unsegmented = tokenizer.unlike_llama(proto)
        if not merging:
            self.unsegmented = self.unsegmented or "it merges no characters"
        elif any("▁" in piece.lstrip("▁") for piece in several):
            self.unsegmented = self.unsegmented or "it has a piece with a space behind another character"
        if self.unsegmented is None:
            self._segments = re.compile(rf"[ ▁]*+[{re.escape(merging)}]+|[ ▁]+|[^ ▁{re.escape(merging)}]").findall
            self._ids = _SegmentIds(proto, self.dtype)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, and eos: uint16 or int32 [tokens]."""
        if self.unsegmented is not None:
            return np.array([*self._processor.encode(text), self.vocabulary.eos], self.dtype)
        segments = self._segments(f" {text}") if text else []
        return np.frombuffer(b"".join([*map(self._ids.__getitem__, segments), self._end]), self.dtype)


class _SegmentIds(dict[str, bytes]):
    """{segment: its ids, as bytes of a dtype}, made when asked for. When full it begins anew, and so follows the text."""

    def __init__(self, proto: Any, dtype: np.dtype) -> None:
        inside = type(proto)()
        inside.CopyFrom(proto)
        inside.normalizer_spec.add_dummy_prefix = False
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=inside.SerializeToString())
        self._dtype = dtype

    def __missing__(self, segment: str) -> bytes:
        ids = np.fromiter(self._processor.encode_as_ids(segment), self._dtype).tobytes()
        if len(segment) <= LONGEST:
            if len(self) >= REMEMBERED:
                self.clear()
            self[segment] = ids
        return ids


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
        for digest, text in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if (split == "validation") == is_validation(digest, share):
                seen["bytes"] += len(text.encode())
                seen["chars"] += len(text)
                yield encoder.encode(text)
