"""The tokenizer's settings against those stored in LLaMA's released model, and mistakes of the user."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.tokens import tokenizer

TEXTS = [
    "A first line of plain text, and 1234 digits.\nA second line of it, with  two spaces.",
    "Ein zweiter Text: ä ö ü ß – und noch etwas mehr davon, damit die Paare sich wiederholen.",
    "The same words, and the same words, and the same words again.\n\n    indented text\n    indented text",
] * 20


def specifications(model: Path) -> Any:
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto()
    proto.ParseFromString(model.read_bytes())
    return proto


def train(tmp_path: Path, name: str = "new.model", vocab_size: int = 350) -> Path:
    tokenizer.train(TEXTS, tmp_path / name, vocab_size=vocab_size)
    return tmp_path / name


def test_counts_and_load(tmp_path: Path) -> None:
    counts = tokenizer.train(iter(TEXTS), tmp_path / "new.model", vocab_size=350)
    assert counts == {"documents": 60, "bytes": sum(len(text.encode()) for text in TEXTS)}
    processor = tokenizer.load(tmp_path / "new.model")
    assert processor.get_piece_size() == 350
    assert [processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()] == [0, 1, 2, -1]
    for text in [*TEXTS[:3], "  \t\x00\x7f", "日本語 🦙", ""]:
        assert processor.decode(processor.encode(text)) == text


def test_settings_are_those_stored_in_llamas_model(tmp_path: Path, shared_data: Path) -> None:
    released = specifications(shared_data / "models" / "llama2_tokenizer.model")
    own = specifications(train(tmp_path))
    differ = {"input", "input_format", "model_prefix", "vocab_size", "num_threads"}  # where text comes from, what callers say
    for field in own.trainer_spec.DESCRIPTOR.fields:
        if field.name not in differ:
            assert getattr(own.trainer_spec, field.name) == getattr(released.trainer_spec, field.name), field.name
    for name in ("name", "precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"):
        assert getattr(own.normalizer_spec, name) == getattr(released.normalizer_spec, name), name
    assert [(piece.piece, piece.type) for piece in own.pieces[:259]] == [(p.piece, p.type) for p in released.pieces[:259]]


def test_same_bytes_twice(tmp_path: Path) -> None:
    assert train(tmp_path, "one").read_bytes() == train(tmp_path, "two").read_bytes()
    assert tokenizer.digest(tmp_path / "one") == tokenizer.digest(tmp_path / "two")
    assert len(tokenizer.digest(tmp_path / "one")) == 64


@pytest.mark.parametrize("vocab_size", [5000, 32000])
def test_too_large_a_vocabulary_says_what_the_text_allows(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^tokenizer.vocab_size={vocab_size}: \d+ bytes of text allow at most (\d+) pieces$"
    ) as e:
        train(tmp_path, vocab_size=vocab_size)
    limit = int(str(e.value).split()[-2])
    assert not (tmp_path / "new.model").exists()
    assert tokenizer.load(train(tmp_path, vocab_size=limit)).get_piece_size() == limit


@pytest.mark.parametrize("vocab_size", [0, 1, 100, 259])
def test_too_small_a_vocabulary_is_one_line(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(ValueError, match=f"^tokenizer.vocab_size={vocab_size}: ") as error:
        train(tmp_path, vocab_size=vocab_size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"], ["x" * 5000]])
def test_no_text_is_one_line(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer.vocab_size=350: ") as error:
        tokenizer.train(texts, tmp_path / "new.model", vocab_size=350)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(1000), b"\x0a" * 1000])
def test_a_file_that_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "wrong.model").write_bytes(data)
    with pytest.raises(ValueError, match=r"^\S+wrong.model: not a SentencePiece model$"):
        tokenizer.load(tmp_path / "wrong.model")


def test_a_truncated_model(tmp_path: Path) -> None:
    model = train(tmp_path)
    model.write_bytes(model.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"not a SentencePiece model$"):
        tokenizer.load(model)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.model"):
        with pytest.raises(ValueError, match=r"no such tokenizer$"):
            tokenizer.load(path)


def test_a_model_without_eos(tmp_path: Path) -> None:
    model = train(tmp_path)
    proto = specifications(model)
    proto.trainer_spec.eos_id = -1
    proto.pieces[2].piece = "<x>"
    proto.trainer_spec.eos_piece = "</s>"
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=r"without an eos piece can't end documents$"):
        tokenizer.load(model)
