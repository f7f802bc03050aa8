import math
import struct
import sys
from collections import Counter
from pathlib import Path

import fasttext
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet.language import CLEAR, HIERARCHICAL, PART, SOFTMAX, LanguageIdentifier, default_model
from ccnet.wet import read_pages


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier(default_model())


def write_model(path: Path, words: list[str], labels: list[str], *, loss=SOFTMAX, ngrams=(0, 0, 0), input=None, output=None):
    """A fastText model (format 12, not quantized); `ngrams`: shortest, longest and buckets.

    Without matrices the n-th word means the n-th label. Without labels it is a skipgram model.
    """
    input = np.eye(len(words)) if input is None else input
    output = np.eye(len(labels), len(words)) if output is None else output
    shortest, longest, buckets = ngrams
    kind = 3 if labels else 2
    arguments = (input.shape[1], 5, 1, 1, 5, 1, loss, kind, buckets, shortest, longest, 100, 1e-4)
    entries = [word.encode() + b"\0" + struct.pack("<qb", 10, 0) for word in words]
    entries += [label.encode() + b"\0" + struct.pack("<qb", 90 - 7 * n, 1) for n, label in enumerate(labels)]
    matrices = [struct.pack("<2q", *matrix.shape) + matrix.astype("<f4").tobytes() for matrix in (input, output)]
    path.write_bytes(
        struct.pack("<2i12id", 793712314, 12, *arguments)
        + struct.pack("<3i2q", len(entries), len(words), len(labels), 20, -1)
        + b"".join(entries)
        + b"\0"
        + matrices[0]
        + b"\0"
        + matrices[1]
    )
    return path


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The committee will publish its report at the end of the month."),
        ("de", "Der Ausschuss wird seinen Bericht am Ende des Monats veröffentlichen."),
        ("fr", "La commission publiera son rapport à la fin du mois prochain."),
        ("ru", "Комиссия опубликует свой доклад в конце месяца."),
        ("ja", "委員会は今月末に報告書を公表する予定です。"),
        ("hi", "समिति महीने के अंत में अपनी रिपोर्ट प्रकाशित करेगी।"),
    ],
)
def test_finds_the_language(identifier, language, text):
    found, score = identifier.predict(text)
    assert found == language
    assert 0.8 < score <= 1.001  # fastText's softmax may end a little above 1


WORDS = st.one_of(
    st.sampled_from(["</s>", "__label__en", "__label__", "the", "und", "和", "<", ">", "_", "ß", "a" * 40, "x</s>"]),
    st.text(st.characters(codec="utf-8"), max_size=8),
)
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "\n", "\t", "\r\n", "\0", "\v", "\u2028", ""])), max_size=12)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(ours, fastText's): compressed and pruned, with n-grams and a tree, with softmax, without n-grams."""
    folder, normal = tmp_path_factory.mktemp("models"), np.random.default_rng(5).normal
    words, labels = ["</s>", "the", "und", "<", "ß", "x</s>"], [f"__label__{name}" for name in ("en", "de", "ru", "fi", "sw")]
    paths = [default_model()]
    for loss, ngrams in ((HIERARCHICAL, (2, 4, 300)), (SOFTMAX, (1, 3, 300)), (SOFTMAX, (0, 0, 0))):
        input, output = normal(size=(len(words) + ngrams[2], 7)), normal(size=(len(labels), 7))
        path = folder / f"{loss} {ngrams}"
        paths.append(write_model(path, words, labels, loss=loss, ngrams=ngrams, input=input, output=output))
    return [(LanguageIdentifier(path, whole=True), fasttext.load_model(str(path))) for path in paths]


@settings(deadline=None)
@given(TEXTS)
def test_any_text_against_fasttext(models, parts):
    """Newlines are deleted, and one is appended; words end at white space and NUL."""
    text = "".join(part for pair in parts for part in pair)
    for ours, theirs in models:
        labels, scores = theirs.predict(text.replace("\n", ""))
        found, score = ours.predict(text)
        assert score == pytest.approx(float(scores[0]) if labels else 0.0, abs=1e-5)
        if labels and labels[0] != f"__label__{found}":  # two that are the same to within rounding
            both = dict(zip(*theirs.predict(text.replace("\n", ""), k=2), strict=True))
            assert both[f"__label__{found}"] == pytest.approx(score, abs=1e-5)


def test_loading_says_nothing(capfd):
    LanguageIdentifier(default_model())
    assert capfd.readouterr() == ("", "")


def test_a_huge_text(identifier):
    assert identifier.predict("This is a sentence of a long English text.\n" * 50_000)[0] == "en"


def test_a_long_text_is_looked_at_from_the_beginning_where_that_is_clear():
    """English and then more German is English where only the beginning counts; an unclear beginning is not enough."""
    part, whole = LanguageIdentifier(default_model()), LanguageIdentifier(default_model(), whole=True)
    english, german = "The house near the river was painted. " * 100, "Das Haus an dem Fluss wurde gestern gestrichen. " * 300
    assert part.predict(english + german) == whole.predict(english[:PART])
    assert part.predict(english + german)[1] >= CLEAR
    assert whole.predict(english + german)[0] == "de"
    mixed = "The house near the river. La maison est belle. " * 50 + german
    assert whole.predict(mixed[:PART])[1] < CLEAR
    assert part.predict(mixed) == whole.predict(mixed)
    for text in (english[:PART], english[: PART - 1], ""):
        assert part.predict(text) == whole.predict(text)


def test_real_pages_have_the_language_of_the_whole(shared_data):
    part, whole = LanguageIdentifier(default_model()), LanguageIdentifier(default_model(), whole=True)
    texts = [
        text
        for path in sorted((shared_data / "crawl" / "segments").glob("seg-0000[01]*"))
        for batch in read_pages(str(path), Counter())
        for text in batch.column("raw_content").to_pylist()
    ]
    answers = [[(language, score >= 0.5) for language, score in map(one.predict, texts)] for one in (part, whole)]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= 0.999 * len(texts)


def test_labelled_news(identifier, shared_data):
    names = {"spa": "es", "ces": "cs", "deu": "de", "fin": "fi", "fra": "fr", "hin": "hi", "kor": "ko", "tur": "tr"}
    right = total = 0
    for name, language in names.items():
        [path] = (shared_data / "lid" / "ntrex").glob(f"newstest2019-ref.{name}*")
        lines = path.read_text(encoding="utf-8").split("\n")[:300]
        right += sum(identifier.predict(line)[0] == language for line in lines)
        total += len(lines)
    assert right > 0.985 * total


def test_a_model_that_knows_nothing_of_a_text(tmp_path):
    identifier = LanguageIdentifier(write_model(tmp_path / "model", ["ba", "na"], ["__label__xx", "__label__yy"]))
    assert identifier.predict("ba ba ba") == ("xx", pytest.approx(1 / (1 + math.exp(-1)), abs=2e-5))
    assert identifier.predict("na\n") == ("yy", pytest.approx(1 / (1 + math.exp(-1)), abs=2e-5))
    assert identifier.predict("unknown words") == ("und", 0.0)


def test_files_that_are_no_model(tmp_path):
    for name, content in (("empty", b""), ("text", b"hello" * 1000), ("short", b"\xba\x16\x4f\x2f")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a fastText model") as error:
            LanguageIdentifier(tmp_path / name)
        assert "\n" not in str(error.value)
    for missing in (tmp_path / "missing", tmp_path):
        with pytest.raises(ValueError, match="no such language model"):
            LanguageIdentifier(missing)


def test_a_model_that_is_cut_off_at_any_place(tmp_path):
    dense = write_model(tmp_path / "dense", ["ba", "na"], ["__label__xx", "__label__yy"])
    for path in (dense, default_model()):
        whole = path.read_bytes()
        assert LanguageIdentifier(path)
        for size in {*range(1, len(whole), len(whole) // 40 + 1), len(whole) - 1}:
            (tmp_path / "cut").write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"cut off|not all of one"):
                LanguageIdentifier(tmp_path / "cut")


def test_a_model_without_labels(tmp_path):
    write_model(tmp_path / "vectors", ["ba", "na"], [])
    with pytest.raises(ValueError, match="without language labels"):
        LanguageIdentifier(tmp_path / "vectors")


def test_set_up_is_named_where_the_model_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(ValueError, match="make setup"):
        default_model()
