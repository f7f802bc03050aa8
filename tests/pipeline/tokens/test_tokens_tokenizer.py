"""The tokenizer's settings against those stored in LLaMA's released model, and mistakes of the user."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokens import tokenizer

MODEL = "llama2_tokenizer.model"
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
    """Field by field, but for those that say where the text comes from, and those that callers say."""
    released = tokenizer.stored_settings(shared_data / "models" / MODEL)
    own = tokenizer.stored_settings(train(tmp_path))
    for field in ("input", "input_format", "model_prefix", "vocab_size", "num_threads"):
        del released["trainer"][field], own["trainer"][field]
    assert own == released
    assert {name: own["trainer"].get(name, name) for name in tokenizer.LLAMA} == tokenizer.LLAMA | {
        "model_type": "BPE",
        "normalization_rule_name": "normalization_rule_name",
        "add_dummy_prefix": "add_dummy_prefix",
        "remove_extra_whitespaces": "remove_extra_whitespaces",
    }
    pieces = [specifications(model).pieces[:259] for model in (tmp_path / "new.model", shared_data / "models" / MODEL)]
    assert [(piece.piece, piece.type) for piece in pieces[0]] == [(piece.piece, piece.type) for piece in pieces[1]]


def test_stored_settings_are_json(tmp_path: Path) -> None:
    settings = tokenizer.stored_settings(train(tmp_path))
    assert json.loads(json.dumps(settings)) == settings
    assert settings["trainer"]["character_coverage"] == 0.99995
    assert settings["trainer"]["vocab_size"] == 350
    assert settings["normalizer"]["name"] == "identity"


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
