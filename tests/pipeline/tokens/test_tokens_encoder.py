"""The encoder against SentencePiece: the same ids for every text and batch, whatever is remembered."""

import bz2
import codecs
import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ccnet.wet import read_pages
from pipeline.tokens import tokenizer
from pipeline.tokens.encode import Encoder

# Spaces and literal ▁, line ends, control characters, digits, letters with and without accents, CJK, emoji, names of pieces.
PARTS = [" ", "  ", "▁", " \u00a0", "\t", "\n", "\r\n", "\x00", "\x07", "\x7f", "\ufeff", "\ufffd", "\U0010ffff"]
PARTS += ["0", "12345", ".", ",-'", "the", "ing", "A", "x", "é", "e\u0301", "ß", "Привет", "日本語", "한국", "你好"]
PARTS += ["👍🏽", "🦙", "<s>", "</s>", "<unk>", "<0x0A>"]
STRINGS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=40).map("".join))


class Pair:
    """An encoder and the processor of the same model."""

    def __init__(self, model: Path, **arguments: int) -> None:
        self.encoder = Encoder(model, **arguments)
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def check(self, text: str) -> None:
        ids = self.encoder.encode(text)
        assert ids.dtype == self.encoder.dtype
        assert ids.tolist() == [*self.processor.encode(text), self.processor.eos_id()], text[:200]

    def check_batch(self, texts: pa.Array) -> None:
        ids, ends = self.encoder.encode_batch(texts)
        assert (ids.dtype, len(ends), ends[0], ends[-1]) == (self.encoder.dtype, len(texts) + 1, 0, len(ids))
        for i, text in enumerate(texts.to_pylist()):
            assert ids[ends[i] : ends[i + 1]].tolist() == [*self.processor.encode(text), self.processor.eos_id()], text[:200]


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".txt": partial(open, mode="rb"), ".gz": gzip.open, ".bz2": bz2.open}


def texts(shared_data: Path) -> Iterator[str]:
    for path in sorted((shared_data / "text").rglob("*")):
        if opener := OPENERS.get(path.suffix):
            with opener(path) as file:
                data = file.read()
            yield from data.decode("utf-16" if data.startswith(codecs.BOM_UTF16_LE) else "utf-8").split("\f")


@pytest.fixture(scope="module")
def new_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "the same words and other words, in some order 1 12 345\n    with  spaces é ü Привет 日本語 ing thing things\n"
    path = tmp_path_factory.mktemp("new") / "new.model"
    tokenizer.train([words, words[::-1], "".join(PARTS)] * 10, path, vocab_size=400)
    return path


@pytest.fixture(scope="module", params=["llama", "new", "tok512"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "new":
        return Pair(request.getfixturevalue("new_model"))
    name = {"llama": "llama2_tokenizer.model", "tok512": "tok512.model"}[request.param]
    return Pair(request.getfixturevalue("shared_data") / "models" / name)


def test_who_encodes(pair: Pair, request: pytest.FixtureRequest) -> None:
    """The kernel wherever it can; tok512.model removes spaces, so SentencePiece does."""
    assert pair.encoder.unlike == ("it removes spaces" if "tok512" in request.node.name else None)


@settings(max_examples=400, deadline=None)
@given(text=STRINGS)
def test_any_string(pair: Pair, text: str) -> None:
    pair.check(text)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(STRINGS, max_size=8), first=st.integers(0, 3), kind=st.sampled_from([pa.string(), pa.large_string()]))
def test_any_batch(pair: Pair, texts: list[str], first: int, kind: pa.DataType) -> None:
    """Also one that is a slice of another."""
    pair.check_batch(pa.array(texts, kind)[first:])


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.binary(max_size=30) | STRINGS.map(str.encode), max_size=4))
@example([b"a\xe2\x28\xa1", b"\xf0\x9f\xa6", b"\xed\xa0\x80", b"\xc0\x80", b"\xff\xff and", b"\xf4\x90\x80\x80"])
def test_any_bytes(pair: Pair, texts: list[bytes]) -> None:
    """Malformed UTF-8 too: SentencePiece takes each byte of it for U+FFFD."""
    pair.check_batch(pa.array(texts, pa.binary()))


def test_a_lone_surrogate_is_refused(pair: Pair) -> None:
    """As by SentencePiece, whose error says less."""
    with pytest.raises(UnicodeEncodeError):
        pair.encoder.encode("a\ud800b")


LONG = ["a", "日本語", "ab1", "the", "é", "🦙", "\n", "\x00", "ingthingsthe", " ", "▁", "-" * 7 + "="]


@pytest.mark.parametrize("unit", LONG)
def test_long_texts_without_a_cut(pair: Pair, unit: str) -> None:
    """Around the lengths at which the kernel goes another way, and 1 MB."""
    lengths = [*range(1, 40), 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 1_000_000 // len(unit.encode())]
    for length in lengths:
        pair.check(unit * length)


@pytest.mark.parametrize("text", ["", " ", "\n", "▁", "x" * 64 + " ", "ab1" * 30_000 + " ", "the thing " * 3000])
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


@pytest.mark.parametrize("remembered", [2, 8])
def test_what_is_remembered_is_bounded(new_model: Path, remembered: int) -> None:
    """Rows that nearly every segment takes from another one."""
    pair = Pair(new_model, remembered=remembered)
    for number in range(200):
        pair.check(f"the words {'x' * (number % 50)} and {number} things, the same words and {'é' * (number % 13)}")


def test_many_pieces_have_wide_ids(tmp_path: Path, new_model: Path) -> None:
    proto = tokenizer.specification(new_model)
    added = [chr(0x4E00 + number // 300) + chr(0x5E00 + number % 300) for number in range(70_000)]
    for number, piece in enumerate(added):
        proto.pieces.add(piece=piece, score=-1000.0 - number)
    (tmp_path / "wide").write_bytes(proto.SerializeToString())
    pair = Pair(tmp_path / "wide")
    assert (pair.encoder.unlike, pair.encoder.dtype.itemsize) == (None, 4)
    pair.check(f"the words {added[0]} {added[-1]}{added[-1]} and {''.join(added[::7])}")
    assert pair.encoder.encode(added[-1]).tolist()[-2:] == [len(proto.pieces) - 1, 2]


def no_space(proto: Any) -> None:
    next(piece for piece in proto.pieces if piece.piece == "▁").piece = "▁▁▁▁▁"


def change_prefix(proto: Any) -> None:
    proto.normalizer_spec.add_dummy_prefix = False


def change_spaces(proto: Any) -> None:
    proto.normalizer_spec.remove_extra_whitespaces = True


def one_character(proto: Any) -> None:
    proto.pieces[0].piece = proto.trainer_spec.unk_piece = "?"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (one_character, "it has a special piece of one character"),
        (no_space, "it has no piece for the space"),
        (change_prefix, "it adds no space before a text"),
        (change_spaces, "it removes spaces"),
    ],
)
def test_other_models_encode_whole_texts(tmp_path: Path, new_model: Path, change: Callable[[Any], None], reason: str) -> None:
    proto = tokenizer.specification(new_model)
    change(proto)
    (tmp_path / "other").write_bytes(proto.SerializeToString())
    pair = Pair(tmp_path / "other")
    assert pair.encoder.unlike == reason
    for text in ["", " and other  words", "and other words\n"]:
        pair.check(text)
