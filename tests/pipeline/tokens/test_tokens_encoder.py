"""The encoder against SentencePiece: the same ids for every text, whatever is remembered."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.wet import read_pages
from pipeline.tokens import encode, tokenizer
from pipeline.tokens.encode import Encoder

# Spaces and literal ▁, line ends, control characters, digits, letters with and without accents, CJK, emoji, names of pieces.
PARTS = [" ", "  ", "▁", " \u00a0", "\t", "\n", "\r\n", "\x00", "\x07", "\x7f", "\ufeff", "\ufffd", "\U0010ffff"]
PARTS += ["0", "12345", ".", ",-'", "the", "ing", "A", "x", "é", "e\u0301", "ß", "Привет", "日本語", "한국", "你好"]
PARTS += ["👍🏽", "🦙", "<s>", "</s>", "<unk>", "<0x0A>"]
STRINGS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=40).map("".join))


class Pair:
    """An encoder and the processor of the same model."""

    def __init__(self, model: Path) -> None:
        self.encoder = Encoder(model)
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def check(self, text: str) -> None:
        ids = self.encoder.encode(text)
        assert ids.dtype == self.encoder.dtype
        assert ids.tolist() == [*self.processor.encode(text), self.processor.eos_id()], text[:200]


def read(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def texts(shared_data: Path) -> Iterator[str]:
    for path in sorted((shared_data / "text").rglob("*")):
        if path.suffix in (".txt", ".gz"):
            yield from read(path).split("\f")


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "the same words and other words, in some order 1 12 345\n    with  spaces é ü Привет 日本語 ing thing things\n"
    path = tmp_path_factory.mktemp("new") / "new.model"
    tokenizer.train([words, words[::-1], "".join(PARTS)] * 10, path, vocab_size=400)
    return path


@pytest.fixture(scope="module", params=["llama", "new"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "new":
        return Pair(request.getfixturevalue("new_model"))
    return Pair(request.getfixturevalue("shared_data") / "models" / "llama2_tokenizer.model")


def test_texts_are_cut(pair: Pair) -> None:
    assert pair.encoder.unsegmented is None
    text = "  two▁▁words 12\n"
    segments = pair.encoder._segments(f" {text}")
    assert "".join(segments) == f" {text}"
    assert segments[:2] == ["   two", "▁▁words"]


@settings(max_examples=400, deadline=None)
@given(text=STRINGS)
def test_any_string(pair: Pair, text: str) -> None:
    pair.check(text)


@pytest.mark.parametrize("text", ["", " ", "\n", "▁", " " * 1000, "a" * 100_000, "日本語" * 30_000, "ab1" * 30_000 + " "])
def test_edges(pair: Pair, text: str) -> None:
    pair.check(text)


def test_real_text(pair: Pair, shared_data: Path) -> None:
    for text in texts(shared_data):
        pair.check(text[:20_000])


@pytest.mark.slow
def test_all_real_text(pair: Pair, shared_data: Path) -> None:
    for text in texts(shared_data):
        pair.check(text)
    for segment in sorted((shared_data / "crawl" / "segments").iterdir()):
        for batch in read_pages(str(segment), Counter()):
            for text in batch.column("raw_content").to_pylist():
                pair.check(text)


def test_published_vectors(shared_data: Path) -> None:
    models = shared_data / "models"
    encoder = Encoder(models / "llama2_tokenizer.model")
    inputs = (models / "ggml-vocab-llama-spm.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = (models / "ggml-vocab-llama-spm.gguf.out").read_text().split("\n")
    assert len(inputs) == 47
    for text, line in zip(inputs, outputs, strict=False):
        assert encoder.encode(text).tolist() == [*map(int, line.split()), 2], text


@pytest.mark.parametrize("remembered", [1, 7])
def test_what_is_remembered_is_bounded(new_model: Path, monkeypatch: pytest.MonkeyPatch, remembered: int) -> None:
    monkeypatch.setattr(encode, "REMEMBERED", remembered)
    pair = Pair(new_model)
    for number in range(200):
        pair.check(f"the words {'x' * (number % 50)} and {number} things")
        assert len(pair.encoder._ids) <= remembered
        assert all(len(segment) <= encode.LONGEST for segment in pair.encoder._ids)


def change_pieces(proto: Any) -> None:
    proto.pieces.add(piece="d▁", score=-0.5)
    proto.pieces.add(piece="d▁o", score=-0.6)


def change_prefix(proto: Any) -> None:
    proto.normalizer_spec.add_dummy_prefix = False


def change_spaces(proto: Any) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def keep_characters(proto: Any) -> None:
    kept = [piece for piece in proto.pieces if piece.type != piece.NORMAL or len(piece.piece) == 1]
    del proto.pieces[:]
    proto.pieces.extend(kept)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_pieces, "it has a piece with a space behind another character"),
        (change_prefix, "it adds no space before a text"),
        (change_spaces, "it removes spaces"),
        (keep_characters, "it merges no characters"),
    ],
)
def test_other_models_encode_whole_texts(tmp_path: Path, new_model: Path, change: Callable[[Any], None], reason: str) -> None:
    proto = tokenizer.specification(new_model)
    change(proto)
    (tmp_path / "other").write_bytes(proto.SerializeToString())
    pair = Pair(tmp_path / "other")
    assert pair.encoder.unsegmented == reason
    for text in ["", " and other  words", "and other words\n"]:
        pair.check(text)


def test_a_small_released_model(shared_data: Path) -> None:
    pair = Pair(shared_data / "models" / "tok512.model")
    assert pair.encoder.unsegmented == "it removes spaces"
    pair.check("Once upon a  time")
