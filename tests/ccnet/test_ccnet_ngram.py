"""The kernels against the kenlm module: every probability, bit for bit, from files of both kinds and any order."""

import random
import subprocess
import sys
from pathlib import Path

import kenlm
import numpy as np
import pytest
from crawls import prose
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.ngram import NgramModel, read_ngram_model

TOOLS = Path(sys.prefix) / "bin"
ODD_WORDS = ["<s>", "</s>", "<unk>", "<UNK>", "漢", "x" * 100, "unheard", "\u2581"]


@pytest.fixture(scope="module")
def arpas(tmp_path_factory):
    """{order: file}, with words of all lengths up to 20 bytes."""
    folder = tmp_path_factory.mktemp("arpa")
    lines = [line.lower() for seed in range(20) for line in prose("en", seed, 50)]
    (folder / "text").write_text("\n".join([*lines, "ab " * 3, " ".join("a" * n for n in range(1, 21))]))
    for order in (2, 3, 5):
        command = [TOOLS / "lmplz", "-o", str(order), "-S", "50M", "-T", folder, "--discount_fallback"]
        subprocess.run([*command, "--text", folder / "text", "--arpa", folder / f"{order}"], check=True, capture_output=True)
    return {order: folder / f"{order}" for order in (2, 3, 5)}


def binary(arpa: Path, *kind: str) -> Path:
    path = arpa.with_name("-".join([arpa.name, *kind]))
    command = [TOOLS / "build_binary", *kind[1:], "-T", f"{arpa.parent}/", kind[0], arpa, path]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module", params=[(kind, order) for kind in ("probing", "trie") for order in (2, 3, 5)], ids=str)
def model(request, arpas):
    kind, order = request.param
    path = binary(arpas[order], kind)
    ours = read_ngram_model(path)
    assert ours is not None
    words = sorted({word for line in (arpas[order].with_name("text")).read_text().splitlines() for word in line.split()})
    return ours, kenlm.Model(str(path)), words


def check(ours: NgramModel, theirs: kenlm.Model, sentence: list[str]) -> None:
    words = ours.spelled([word.encode() for word in sentence])
    assert words.dtype == np.int32 and len(words) == len(sentence)
    assert [word == 0 for word in words.tolist()] == [word not in theirs for word in sentence]
    total, scores = ours.score(words)
    assert scores.dtype == np.float32
    assert scores.tolist() == [score for score, _, _ in theirs.full_scores(" ".join(sentence))]
    assert total == theirs.score(" ".join(sentence))


def test_no_words_and_odd_ones(model):
    ours, theirs, _ = model
    check(ours, theirs, [])
    check(ours, theirs, ODD_WORDS * 3)


def test_every_word(model):
    ours, theirs, words = model
    check(ours, theirs, words)
    numbers = ours.spelled([word.encode() for word in words]).tolist()
    assert sorted(set(numbers)) == sorted(numbers) and min(numbers) > 0


def test_sentences_known_and_shuffled(model):
    ours, theirs, words = model
    source = random.Random(0)
    for seed in range(30):
        for line in prose("en", seed, 20):
            sentence = line.lower().split()
            check(ours, theirs, sentence)
            source.shuffle(sentence)
            check(ours, theirs, sentence)
    check(ours, theirs, source.choices([*words, *ODD_WORDS], k=100_000))


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_sentence(model, data):
    ours, theirs, words = model
    check(ours, theirs, data.draw(st.lists(st.sampled_from([*words[:30], *ODD_WORDS]), max_size=30)))


def test_other_kinds_are_left_to_the_library(arpas, tmp_path):
    for kind in (("trie", "-q", "8"), ("trie", "-a", "20"), ("trie", "-q", "8", "-a", "20")):
        assert read_ngram_model(binary(arpas[3], *kind)) is None
    assert read_ngram_model(arpas[3]) is None
    (tmp_path / "empty").touch()
    assert read_ngram_model(tmp_path / "empty") is None


def test_cut_files(arpas, tmp_path):
    for kind in ("probing", "trie"):
        whole = binary(arpas[3], kind).read_bytes()
        for size in (1, 50, 88, 107, 108, 120, 140, 200, len(whole) // 2):
            (tmp_path / "cut").write_bytes(whole[:size])
            assert read_ngram_model(tmp_path / "cut") is None


def test_another_probing_multiplier(arpas):
    path = binary(arpas[3], "probing", "-p", "3.7")
    check(read_ngram_model(path), kenlm.Model(str(path)), " ".join(prose("en", 5, 50)).lower().split())


def test_real_models(shared_data: Path):
    for path in sorted((shared_data / "lm").glob("*.arpa.bin")):
        check(read_ngram_model(path), kenlm.Model(str(path)), ("\u2581the \u2581house s . " * 5000).split())
