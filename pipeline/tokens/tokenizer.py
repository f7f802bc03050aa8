"""The tokenizer: text in, a SentencePiece BPE model with LLaMA's settings out; or an existing model, checked.

Source of the settings: the trainer and normalizer specification stored in LLaMA's released tokenizer.model.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

MAX_SENTENCE = 4192  # bytes; longer lines don't train the model
LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "split_digits": True,
    "byte_fallback": True,
    "allow_whitespace_only_pieces": True,
    "split_by_unicode_script": True,
    "split_by_whitespace": True,
    "split_by_number": True,
    "max_sentencepiece_length": 16,
    "max_sentence_length": MAX_SENTENCE,
    "input_sentence_size": 200_000_000,
    "shuffle_input_sentence": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_surface": " ⁇ ",
}


def train(texts: Iterable[str], model: Path, *, vocab_size: int) -> dict[str, int]:
    """Trains on the lines of `texts` and writes the model to `model`; deterministic for the same texts.

    Returns {documents, bytes}: what it was trained on. Raises ValueError where the text allows fewer pieces.
    """
    counts = {"documents": 0, "bytes": 0}

    def lines() -> Iterator[str]:
        for text in texts:
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            yield from filter(None, text.split("\n"))

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=written,
            vocab_size=vocab_size,
            num_threads=1,
            minloglevel=2,
            **LLAMA,
        )
    except RuntimeError as error:
        if limit := re.search(r"<= (\d+)", str(error)):
            raise ValueError(
                f"tokenizer.vocab_size={vocab_size}: {counts['bytes']} bytes of text allow at most {limit[1]} pieces"
            ) from None
        if least := re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error)):
            raise ValueError(
                f"tokenizer.vocab_size={vocab_size}: the characters of the text alone need {least[1]} pieces"
            ) from None
        raise ValueError(f"tokenizer.vocab_size={vocab_size}: SentencePiece can't train on this text ({error})") from None
    model.write_bytes(written.getvalue())
    return counts


def load(model: Path) -> sentencepiece.SentencePieceProcessor:
    """The processor of a model file. Raises ValueError for a file that is no such model, or has no end of document."""
    if not model.is_file():
        raise ValueError(f"{model}: no such tokenizer")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError):
        raise ValueError(f"{model}: not a SentencePiece model") from None
    if processor.eos_id() < 0:
        raise ValueError(f"{model}: a tokenizer without an eos piece can't end documents")
    return processor


def digest(model: Path) -> str:
    """The SHA-256 of a model file, hexadecimal; token shards carry it."""
    return hashlib.sha256(model.read_bytes()).hexdigest()


def specification(model: Path) -> Any:
    """What a model file holds, settings and pieces: sentencepiece's ModelProto."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    return proto


def stored_settings(model: Path) -> dict[str, dict[str, Any]]:
    """What a model was trained with, as its file has it: {"trainer": {field: value}, "normalizer": {field: value}}.

    Every field that SentencePiece knows is there, defaults too. Enumerations are names, bytes hexadecimal.
    """
    proto = specification(model)
    return {"trainer": _fields(proto.trainer_spec), "normalizer": _fields(proto.normalizer_spec)}


def _fields(message: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.enum_type is not None:
            value = field.enum_type.values_by_number[value].name
        elif field.type == field.TYPE_FLOAT:
            value = float(str(np.float32(value)))  # 0.99995, not 0.9999499917030334
        elif field.default_value == []:
            value = list(value)
        values[field.name] = value.hex() if isinstance(value, bytes) else value
    return values


def unlike_llama(proto: Any) -> str | None:
    """What a model does otherwise with text than LLaMA's, the vocabulary aside; None where it is nothing."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    others = {
        "it is no BPE model": trainer.model_type != trainer.BPE,
        "it has no byte fallback": not trainer.byte_fallback,
        "it marks spaces behind words": trainer.treat_whitespace_as_suffix,
        "it normalises text": bool(normalizer.precompiled_charsmap),
        "it adds no space before a text": not normalizer.add_dummy_prefix,
        "it removes spaces": normalizer.remove_extra_whitespaces,
        "it keeps spaces as they are": not normalizer.escape_whitespaces,
        "it has pieces defined by a user": any(piece.type in (piece.USER_DEFINED, piece.UNUSED) for piece in proto.pieces),
        "it has a special piece of one character": any(
            piece.type != piece.NORMAL and len(piece.piece) == 1 for piece in proto.pieces
        ),
        "it has no piece for the space": all(piece.piece != "▁" for piece in proto.pieces),
    }
    return next((reason for reason, holds in others.items() if holds), None)
