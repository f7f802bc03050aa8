"""The kernel against SentencePiece with vocabularies that no trainer makes."""

import itertools
import string
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from pipeline.tokens.bpe import Bpe

ALPHABET = "abé日▁"
PIECES = st.dictionaries(st.text(ALPHABET, min_size=1, max_size=6), st.sampled_from([-1.0, -2.0, -2.5, 0.0, 7.0]), max_size=30)


def model(pieces: dict[str, float]) -> Any:
    """A model with LLaMA's settings of these pieces, the space, and those that each model has."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    kinds = proto.pieces.add(piece="<unk>", score=0, type=2)
    for piece in ("<s>", "</s>"):
        proto.pieces.add(piece=piece, score=0, type=kinds.CONTROL)
    for octet in range(256):
        proto.pieces.add(piece=f"<0x{octet:02X}>", score=0, type=kinds.BYTE)
    for piece, score in ({"▁": -9.0} | pieces).items():
        proto.pieces.add(piece=piece, score=score)
    return proto


def check(proto: Any, texts: list[str]) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)])
    octets = np.frombuffer(b"".join(encoded), np.uint8)
    kernel = Bpe(proto, processor, remembered=64)
    for _ in range(2):  # merged, then remembered
        ids, ends = kernel.encode(octets, starts, np.dtype(np.int32))
        for i, text in enumerate(texts):
            assert ids[ends[i] : ends[i + 1]].tolist() == [*processor.encode(text), processor.eos_id()], text


@settings(max_examples=80, deadline=None)
@given(pieces=PIECES, texts=st.lists(st.text(ALPHABET + " cü", max_size=30) | st.text(ALPHABET, max_size=100), max_size=6))
def test_any_vocabulary(pieces: dict[str, float], texts: list[str]) -> None:
    """Equal scores, pieces with spaces inside, pieces that nothing merges to, characters that are no pieces."""
    check(model(pieces), texts)


def test_no_piece_of_several_characters() -> None:
    check(model({"a": -1.0, "é": -1.0}), ["", "aé b", "日本"])


@pytest.mark.parametrize("length", [8, 24, 25, 128, 129, 200, 5000])
def test_lengths_of_segments(length: int) -> None:
    """At either side of every limit of the kernel; the merges of one take place from its end to its beginning."""
    letters = string.ascii_lowercase
    pieces = {letter: -100.0 for letter in letters} | {a + b: ord(a) * 1.0 for a, b in itertools.pairwise(letters)}
    pieces |= {"abcd": 500.0, "cdef": 500.0, "ghijklmn": 400.0}
    text = (letters * (length // 26 + 1))[:length]
    check(model(pieces), [text, text[1:], text[::-1], f" {text}", f"{text} {text}", text[:-1] + "日"])
