"""The kernels against the sentencepiece library: the same pieces, for models of every kind that they take."""

import io
import random
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from crawls import prose
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.normalize import lm_octets
from ccnet.unigram import Unigram, read_unigram
from ccnet.wet import read_pages

SETTINGS = {
    "default": {},
    "identity": {"normalization_rule_name": "identity"},
    "spaces stay": {"remove_extra_whitespaces": False},
    "no prefix": {"add_dummy_prefix": False},
    "phrases": {"split_by_whitespace": False, "split_by_unicode_script": False, "split_by_number": False, "vocab_size": 400},
    "few characters": {"character_coverage": 0.98, "normalization_rule_name": "nfkc_cf"},
}


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prose("en", 0, 300) + prose("de", 0, 100)),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"vocab_size": 200, **options},
    )
    return model.getvalue()


def check(unigram: Unigram, library: sentencepiece.SentencePieceProcessor, octets: np.ndarray) -> None:
    pieces = unigram.encode(octets, np.zeros(1, np.int64))
    assert pieces is not None
    assert pieces.starts[0] == 0 and pieces.starts[-1] == len(pieces.normal) and pieces.lines.tolist() == [0]
    normal, starts = pieces.normal.tobytes(), pieces.starts.tolist()
    spelled = [normal[start:end].decode() for start, end in pairwise(starts)]
    text = octets.tobytes().decode()
    assert spelled == library.encode(text, out_type=str)
    assert pieces.ids.tolist() == library.encode(text)


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    data = trained(**SETTINGS[request.param])
    unigram = read_unigram(data)
    assert unigram is not None
    return unigram, sentencepiece.SentencePieceProcessor(model_proto=data)


SPACES = ["", " ", "  ", "\u2581", "\u3000", "\u00a0", "\u200b", "\t", "\n", "\0"]
MARKS = ["\u0301", "e\u0301", "\u1112\u1161\u11ab", "\u3099", "か", "\ufdfa", "½", "ﬁ", "ǅ", "\ufffd"]
OTHERS = ["0", "00", "e", "th", "the ", "ing", "漢", "🦙", "👩\u200d👩\u200d👧", "<unk>", "<s>", "</s>"]
odd = st.sampled_from([*SPACES, *MARKS, *OTHERS])
texts = st.lists(st.one_of(odd, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=12).map("".join)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_any_text(model, text):
    check(*model, np.frombuffer(text.encode(), np.uint8))


def test_every_code_point(model):
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    for start in range(0, len(characters), 4096):
        check(*model, np.frombuffer("e".join(characters[start : start + 4096]).encode(), np.uint8))


def test_long_texts(model):
    """Sums of scores beyond 100,000, where the library begins to count anew, and words whose ways to be split are alike."""
    source = random.Random(1)
    words = " ".join(prose("en", 1, 300) + prose("de", 1, 300)).split()
    for text in (
        " ".join(source.choices(words, k=40_000)),
        "".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),
        " ".join("0" * source.randint(1, 12) + source.choice(".,:") for _ in range(20_000)),
        "漢字かな" * 20_000,
        " " * 100_000 + "a" + " " * 100_000 + "b",
        "\ufdfa" * 10_000,
    ):
        for _ in range(2):  # the second time, words are known
            check(*model, np.frombuffer(text.encode(), np.uint8))


def test_lines_begin_where_their_text_does():
    unigram = read_unigram(trained())
    octets = np.frombuffer("  the cat  and \ufdfa ½\u0301dog  ".encode(), np.uint8)
    lines = np.array([0, 0, 1, 5, 6, 10, 11, 17, len(octets)])
    pieces = unigram.encode(octets, lines)
    text = pieces.normal.tobytes().decode()
    assert text == "▁the▁cat▁and▁صلى▁الله▁عليه▁وسلم▁1⁄2\u0301dog"
    behind = [pieces.normal[start:].tobytes().decode(errors="replace") for start in pieces.lines.tolist()]
    assert behind[:3] == [text] * 3
    assert behind[3] == "▁cat▁and" + text[12:] and behind[4] == "cat▁and" + text[12:]
    assert behind[5] == behind[6] == "and" + text[12:]
    assert behind[8] == ""


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"user_defined_symbols": ["cat"]},
        {"byte_fallback": True, "vocab_size": 500},
        {"treat_whitespace_as_suffix": True},
    ],
)
def test_other_kinds_are_left_to_the_library(options):
    assert read_unigram(trained(**options)) is None


def test_real_pages(shared_data: Path):
    pages = [
        page
        for path in sorted((shared_data / "crawl" / "segments").glob("*.gz"))[:1]
        for batch in read_pages(str(path), Counter())
        for page in batch.column("raw_content").to_pylist()
    ]
    for language in ("en", "de"):
        data = (shared_data / "lm" / f"{language}.sp.model").read_bytes()
        unigram, library = read_unigram(data), sentencepiece.SentencePieceProcessor(model_proto=data)
        for page in pages:
            check(unigram, library, lm_octets(page)[0])
