import math
import struct
import sys
from collections import Counter
from pathlib import Path

import fasttext
import pytest

from ccnet.language import CLEAR, PART, LanguageIdentifier, default_model
from ccnet.wet import read_pages


@pytest.fixture(scope="module")
def identifier():
    return LanguageIdentifier(default_model())


def write_model(path: Path, words: list[str], labels: list[str]) -> Path:
    """A fastText model (format 12, not quantized) in which the n-th word means the n-th label; or one without labels."""
    supervised, skipgram, softmax = 3, 2, 3
    size = len(words)
    arguments = (size, 5, 1, 1, 5, 1, softmax, supervised if labels else skipgram, 0, 0, 0, 100, 1e-4)
    entries = [word.encode() + b"\0" + struct.pack("<qb", 10, 0) for word in words]
    entries += [label.encode() + b"\0" + struct.pack("<qb", 10, 1) for label in labels]
    identity = struct.pack(f"<2q{size * size}f", size, size, *(float(i == j) for i in range(size) for j in range(size)))
    path.write_bytes(
        struct.pack("<2i12id", 793712314, 12, *arguments)
        + struct.pack("<3i2q", len(entries), size, len(labels), 20, -1)
        + b"".join(entries)
        + b"\0"
        + identity
        + b"\0"
        + identity
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


def test_newlines_are_deleted_and_one_is_appended_as_fasttext_does(identifier):
    raw = fasttext.load_model(str(default_model()))
    for text in ("one line\nand ano\nther one", "a\n\nb", "\n", "", "Grüße\r\naus\u2028Wien", "null\0byte"):
        [(score, label)] = raw.f.predict(text.replace("\n", "") + "\n", 1, 0.0, "strict")
        assert identifier.predict(text) == (label.removeprefix("__label__"), score)


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
