"""tokenizer.json, read by Hugging Face's tokenizers and transformers, against SentencePiece: the same ids and text."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens import tokenizer
from pipeline.tokens.hugging_face import write_hugging_face_tokenizer

tokenizers = pytest.importorskip("tokenizers")
SPECIAL = ("<s>", "</s>", "<unk>")  # special pieces in a text there, plain text to SentencePiece
CHARS = " \n\t ▁abcdeEth12.,-'\x00\x07\x1b\x7f\u00a0\u200b\u3000éß你好日本の한국👍🦙\u0301<>0xA_"


def read(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


@pytest.fixture(scope="module")
def new_model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("new") / "new.model"
    names = ("wikitext2_valid.txt", "fastapi-en.md.gz", "fastapi-de.md.gz", "fastapi-ja.md.gz", "fastapi-ru.md.gz")
    tokenizer.train((read(shared_data / "text" / name)[:150_000] for name in names), path, vocab_size=4000)
    return path


class Pair:
    """Both readers of one model."""

    def __init__(self, model: Path, folder: Path) -> None:
        write_hugging_face_tokenizer(model, folder)
        self.folder = folder
        self.ours = sentencepiece.SentencePieceProcessor(model_file=str(model))
        self.theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def check(self, text: str) -> None:
        expected = self.ours.encode(text)
        assert self.theirs.encode(text, add_special_tokens=False).ids == expected, text[:200]
        assert self.theirs.decode(expected) == self.ours.decode(expected), text[:200]


@pytest.fixture(scope="module", params=["new", "llama"])
def pair(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    if request.param == "llama":
        model = shared_data / "models" / "llama2_tokenizer.model"
    else:
        model = request.getfixturevalue("new_model")
    return Pair(model, tmp_path_factory.mktemp(request.param))


def test_real_text(pair: Pair, shared_data: Path) -> None:
    paths = sorted(path for path in (shared_data / "text").rglob("*") if path.suffix in (".txt", ".gz"))
    assert paths
    for path in paths:
        text = read(path)
        for special in SPECIAL:
            text = text.replace(special, "unk")
        pair.check(text[:60_000])
        pair.check(text[-40_000:])


def test_runs_of_spaces_and_newlines(pair: Pair) -> None:
    for n in range(70):
        for run in (" " * n, "\n" * n, "\t" * n, "▁" * n):
            for text in (run, f"{run}the", f"a{run}", f"a{run}\n", f"a{run}b{run}{run}.", f"\n{run}\n {run}\x00"):
                pair.check(text)


@pytest.mark.parametrize("chars", [CHARS, "abc ", "an ", " \n", "aeiou"], ids=range(5))
def test_random_text(pair: Pair, chars: str) -> None:
    random_ = random.Random(1)
    for _ in range(1000):
        text = "".join(random_.choices(chars, k=random_.randint(1, 80)))
        if not any(special in text for special in SPECIAL):
            pair.check(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(pair: Pair, text: str) -> None:
    if not any(special in text for special in SPECIAL):
        pair.check(text)


def test_names_of_pieces_are_plain_text(pair: Pair) -> None:
    for text in ("<0x0A>", "<0x41><0xFF>", "< s>", "<pad>", "[UNK]"):
        pair.check(text)


def test_llamas_vectors(shared_data: Path, tmp_path: Path) -> None:
    pair = Pair(shared_data / "models" / "llama2_tokenizer.model", tmp_path)
    name = "ggml-vocab-llama-spm.gguf"
    texts = (shared_data / "models" / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (shared_data / "models" / f"{name}.out").read_text().split("\n")
    vectors = list(zip(texts, lines, strict=False))
    assert len(vectors) >= 46
    for text, line in vectors:
        ids = list(map(int, line.split()))
        assert pair.ours.encode(text) == ids, text
        assert pair.theirs.encode(text, add_special_tokens=False).ids == ids, text


def test_transformers_reads_the_folder(pair: Pair) -> None:
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(pair.folder)
    text = "  Hello,\n\n\tworld!  日本語 🦙 1234"
    ids = loaded(text, add_special_tokens=False)["input_ids"]
    assert ids == pair.ours.encode(text)
    assert loaded.decode(ids) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
    assert len(loaded) == pair.ours.get_piece_size()
    assert (pair.folder / "tokenizer.model").read_bytes() == pair.ours.serialized_model_proto()


def test_same_bytes_twice(new_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_hugging_face_tokenizer(new_model, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("longest", [16, 7, 5, 2])
def test_runs_of_spaces_with_equal_scores(tmp_path: Path, new_model: Path, longest: int) -> None:
    """As in LLaMA's model, with runs of any length missing: SentencePiece then goes from left to right."""
    from sentencepiece import sentencepiece_model_pb2

    random_ = random.Random(longest)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(new_model.read_bytes())
    lengths = [n for n in range(2, longest + 1) if n == 2 or random_.random() < 0.7]
    random_.shuffle(lengths)
    names = ["▁" * n for n in lengths]
    kept = [piece for piece in proto.pieces if len(piece.piece) < 2 or set(piece.piece) != {"▁"}]
    del proto.pieces[:]
    proto.pieces.extend(kept)
    for name in names:
        proto.pieces.add(piece=name, score=-1e9)
    for piece in proto.pieces:
        if piece.piece == "▁":
            piece.score = -1e9
    model = tmp_path / "spaces.model"
    model.write_bytes(proto.SerializeToString())
    pair = Pair(model, tmp_path)
    for n in range(60):
        pair.check(" " * n)
        pair.check(f"a{' ' * n}the b{' ' * n}\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "unigram", "byte_fallback": True}, "no BPE model"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalises text"),
        ({"add_dummy_prefix": False}, "no space before"),
        ({"remove_extra_whitespaces": True}, "it removes spaces"),
        ({"user_defined_symbols": ["<x>"]}, "pieces defined by a user"),
        ({"treat_whitespace_as_suffix": True}, "spaces behind words"),
    ],
)
def test_a_tokenizer_of_another_kind(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    texts = iter(["the same words and the same words again, and other words"] * 20)
    model = tmp_path / "other"
    arguments = tokenizer.LLAMA | {"vocab_size": 290, "hard_vocab_limit": False, "minloglevel": 2} | changes
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_prefix=str(model), **arguments)
    with pytest.raises(ValueError, match=f"^{model}.model: no tokenizer.json for this tokenizer: .*{said}"):
        write_hugging_face_tokenizer(Path(f"{model}.model"), tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
