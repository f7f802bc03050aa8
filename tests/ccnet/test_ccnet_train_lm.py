import bz2
import gzip
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from crawls import open_marks, prose
from hypothesis import given
from hypothesis import strategies as st
from wet_files import write_wet

from ccnet import train_lm
from ccnet.filter import Rules, filter_segment, is_held_out
from ccnet.language import default_model
from ccnet.perplexity import LanguageModel
from ccnet.train_lm import SAMPLE, is_clean, sample_file, sample_segment, train

HINDI = "समिति महीने के अंत में अपनी रिपोर्ट प्रकाशित करेगी। यह रिपोर्ट पाँच सदस्यों ने मिलकर लिखी है।"
JAPANESE = "委員会は今月末に報告書を公表する予定です。この報告書は五人の委員が共同で書いたもので、百頁あります。"
CHINESE = "委员会将在本月底公布报告。这份报告由五名成员共同撰写，共有一百页。"


def write_sample(path, language, texts):
    rows = [{"language": language, "digest": f"sha1:{n}", "text": text} for n, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows, SAMPLE), path)
    return path


def texts(count, language="en"):
    return ["\n".join(prose(language, seed, 10)) for seed in range(count)]


@pytest.mark.parametrize("text", [*texts(1), *texts(1, "de"), *texts(1, "ru"), HINDI, CHINESE, JAPANESE])
def test_prose_is_clean(text):
    assert is_clean(text, 0.8)
    assert not is_clean(text, 0.79)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["Home", "About", "Contact", "Products and services"] * 30),
        "def f(x): return {k: v[0] for k, v in x.items() if k != '_' and v >= 0.5}",
        "12.05.2024 18:30 - 3:2 (1:0). 19.05.2024 20:30 - 0:0 (0:0).",
        "no end in sight " * 40,
    ],
)
def test_menus_code_and_tables_are_not_clean(text):
    assert not is_clean(text, 1.0)


def test_samples_and_corpus_share_the_crawl_out(tmp_path):
    """Every page is in one of the two; only clean ones are in the sample."""
    pages = [(f"http://x.example/{n}", "t", prose(("en", "de")[n % 2], n, 5)) for n in range(60)]
    pages += [(f"http://menu.example/{n}", "t", ["Home", "About us", *prose("en", n, 1)[0].split()]) for n in range(100, 140)]
    source = write_wet(tmp_path / "wet", pages)
    rules = Rules(min_length=100, held_out=0.4)
    filter_marks, sample_marks, again = (open_marks([source], tmp_path / f"marks{n}", min_length=100)[0] for n in range(3))
    counts = filter_segment(
        str(source),
        tmp_path / "out",
        tmp_path / "minified",
        marks=filter_marks,
        language_model=default_model(),
        rules=rules,
        models={},
    )
    sampled = sample_segment(str(source), tmp_path / "sample", marks=sample_marks, language_model=default_model(), rules=rules)
    rows = pq.read_table(tmp_path / "sample").to_pylist()
    corpus = set(pq.read_table(tmp_path / "out").column("digest").to_pylist())
    assert sampled["held_out"] == counts["documents"]["dropped"]["held_out"] > 10
    assert sampled["held_out"] + len(corpus) == counts["documents"]["in"] - counts["documents"]["dropped"].get("duplicate", 0)
    assert len(rows) == sampled["clean"] < sampled["held_out"]
    assert all(is_held_out(row["digest"], 0.4) and row["digest"] not in corpus for row in rows)
    for language in ("de", "en"):
        own = [row["text"] for row in rows if row["language"] == language]
        size = sum(len(text.encode()) for text in own)
        assert sampled["languages"][language] == {"documents": len(own), "bytes": size}
    prose_texts = {"\n".join(lines) for _, _, lines in pages[:60]}
    assert {row["text"] for row in rows} <= prose_texts
    sample_segment(str(source), tmp_path / "again", marks=again, language_model=default_model(), rules=rules)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "sample").read_bytes()


def test_a_segment_without_pages_gives_an_empty_sample(tmp_path):
    source = write_wet(tmp_path / "wet", [])
    [marks] = open_marks([source], tmp_path / "marks")
    counts = sample_segment(str(source), tmp_path / "out", marks=marks, language_model=default_model(), rules=Rules())
    assert counts == {"held_out": 0, "clean": 0, "languages": {}}
    assert pq.read_table(tmp_path / "out").num_rows == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """English models, trained on two samples with German in between; and what `train` returned."""
    folder = tmp_path_factory.mktemp("lm")
    samples = [
        write_sample(folder / "a", "en", texts(60)),
        write_sample(folder / "b", "de", texts(20, "de")),
        write_sample(folder / "c", "en", texts(90)[60:]),
    ]
    result = train("en", samples, folder / "model one", folder / "model two")
    return folder, samples, result


def test_the_models_prefer_what_they_were_trained_on(trained):
    folder, _, result = trained
    model = LanguageModel(folder / "model one", folder / "model two")
    [unseen] = ["\n".join(prose("en", 1000, 10))]
    mixed = " ".join(sorted(unseen.split()))
    assert model.perplexity(unseen) < 20
    assert model.perplexity(mixed) > 5 * model.perplexity(unseen)
    assert model.perplexity(texts(1, "de")[0]) > 20 * model.perplexity(unseen)
    assert result["documents"] == 90
    assert result["bytes"] == sum(len(line.encode()) for text in texts(90) for line in text.split("\n"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "model one"))
    assert 50 < result["pieces"] == len(pieces) <= 65536
    assert pieces.unk_id() in pieces.encode("ä")  # only in the German sample


def test_nothing_but_the_targets_is_left(trained):
    folder, *_ = trained
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "model one", "model two"]


def test_the_same_text_gives_the_same_bytes_whatever_the_folder(trained, tmp_path):
    folder, _, result = trained
    other = tmp_path / "another, folder=1"
    other.mkdir()
    again = train("en", [write_sample(other / "x", "en", texts(90))], other / "sp", other / "arpa")
    assert again == result
    assert (other / "sp").read_bytes() == (folder / "model one").read_bytes()
    assert (other / "arpa").read_bytes() == (folder / "model two").read_bytes()
    assert str(folder).encode() not in (folder / "model one").read_bytes() + (folder / "model two").read_bytes()


def test_a_script_with_many_characters_gets_them_all(tmp_path):
    """Few bytes, so few pieces by their number; but each of 1,500 characters must be one."""
    signs = [chr(0x4E00 + n) for n in range(1500)]
    sample = write_sample(tmp_path / "zh", "zh", ["。".join(signs[n : n + 10]) + "。" for n in range(0, 1500, 10)] * 2)
    result = train("zh", [sample], tmp_path / "sp", tmp_path / "arpa")
    assert 1500 <= result["pieces"] <= 3200
    with pytest.raises(ValueError, match=r"zh: .* 700 pieces .* another lm\.vocab_size") as error:
        train("zh", [sample], tmp_path / "sp", tmp_path / "arpa", vocab_size=700)
    assert "\n" not in str(error.value)


def test_text_that_looks_like_kenlms_own_words(tmp_path):
    tail = "a <s> b </s> c <unk> x<s>y 1<s>2 \u2028 \u200b \x01 \u00a0 \r"
    odd = [*(f"{text} {tail}" for text in texts(30)), "<s>" * 500, "\n\n"]
    train("en", [write_sample(tmp_path / "s", "en", odd)], tmp_path / "sp", tmp_path / "arpa")
    model = LanguageModel(tmp_path / "sp", tmp_path / "arpa")
    assert model.perplexity("a <s> b </s>") > 1


@pytest.mark.parametrize("texts", [[], ["", "\n\n"], ["\u0301\x01"]])
def test_no_text(tmp_path, texts):
    sample = write_sample(tmp_path / "s", "en", texts)
    with pytest.raises(ValueError, match="en: no clean text to train a language model on"):
        train("en", [sample, sample], tmp_path / "sp", tmp_path / "arpa")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_single_short_text_is_enough_for_a_model(tmp_path):
    train("en", [write_sample(tmp_path / "s", "en", ["A cat."])], tmp_path / "sp", tmp_path / "arpa")
    assert LanguageModel(tmp_path / "sp", tmp_path / "arpa").perplexity("a cat.") < 10


def test_a_tool_that_fails_is_one_line(tmp_path):
    sample = write_sample(tmp_path / "s", "en", texts(5))
    with pytest.raises(ValueError, match="failed for en: ") as error:
        train("en", [sample], tmp_path / "sp", tmp_path / "arpa", order=1)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_set_up_is_named_where_a_tool_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"lmplz: not found; run `make setup`"):
        train("en", [write_sample(tmp_path / "s", "en", texts(5))], tmp_path / "sp", tmp_path / "arpa")


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "lmplz").write_text("#!/bin/sh\necho 'write failed: No space left on device' >&2\nexit 1\n")
    (tools / "lmplz").chmod(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(OSError, match="No space left"):
        train("en", [write_sample(tmp_path / "s", "en", texts(5))], tmp_path / "sp", tmp_path / "arpa")


def test_pieces_of_the_language_model_corpus_are_those_that_are_scored(tmp_path, monkeypatch):
    """A document is one line of pieces, normalised and split as `LanguageModel.perplexity` does it."""
    seen = []
    monkeypatch.setattr(
        train_lm, "_run", lambda _, folder, tool, *__: seen.append((folder / "pieces").read_text(encoding="utf-8"))
    )
    with pytest.raises(FileNotFoundError):  # no tool has run
        train("en", [write_sample(tmp_path / "s", "en", ["Line ONE is 12.\nLine two…"])], tmp_path / "sp", tmp_path / "arpa")
    assert re.sub("[ ▁]+", "", seen[0]) == "lineoneis00.linetwo...\n"


def sample(path, data=None):
    """(rows, what `sample_file` returns) of a file that is written first."""
    if data is not None:
        path.write_bytes(data)
    counts = sample_file(str(path), path.parent / "sample")
    return pq.read_table(path.parent / "sample").to_pylist(), counts


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("name", ["en.txt", "en.old news.2020.txt"])
def test_text_files_have_a_document_a_block(tmp_path, pack, name):
    text = "\ufeffOne line.\nAnother.  \n\n \t\n\n  Café\r\n\r\nlast"
    suffix = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2"}[pack]
    rows, counts = sample(tmp_path / f"{name}{suffix}", pack(text.encode()))
    assert [row["text"] for row in rows] == ["One line.\nAnother.", "Café", "last"]
    assert {row["language"] for row in rows} == {"en"}
    size = sum(len(row["text"].encode()) for row in rows)
    assert counts == {"clean": 3, "bad": {}, "languages": {"en": {"documents": 3, "bytes": size}}}
    first = (tmp_path / "sample").read_bytes()
    sample(tmp_path / f"{name}{suffix}")
    assert (tmp_path / "sample").read_bytes() == first


@given(st.text(st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), st.sampled_from("\n \r"))))
def test_any_text_is_cut_at_its_empty_lines(tmp_path_factory, text):
    rows, counts = sample(tmp_path_factory.mktemp("text") / "en.txt", text.encode())
    lines = "\n".join(line.strip() for line in text.split("\n"))
    assert [row["text"] for row in rows] == [block for block in re.split(r"\n{2,}", lines.strip("\n")) if block]
    assert counts["clean"] == len(rows) and not counts["bad"]


@pytest.mark.parametrize("name", ["english.txt", "..txt", "text.en.txt", "EN.txt", "1.txt.gz"])
def test_a_text_file_whose_name_begins_with_no_language(tmp_path, name):
    with pytest.raises(ValueError, match=r"begins with its language, as en\.txt"):
        sample(tmp_path / name, b"text")


def test_text_that_is_broken_is_counted_and_what_is_large_is_cut(tmp_path, monkeypatch):
    assert sample(tmp_path / "en.txt", b"") == ([], {"clean": 0, "bad": {}, "languages": {}})
    rows, counts = sample(tmp_path / "de.txt", "Käse\nBrot\n\nKäse".encode("latin-1"))
    assert [row["text"] for row in rows] == ["K\ufffdse\nBrot", "K\ufffdse"] and counts["bad"] == {"undecodable": 2}
    packed = gzip.compress(b"".join(b"block %d\n\n" % n for n in range(10_000)))
    rows, counts = sample(tmp_path / "en.txt.gz", packed[: len(packed) // 2])
    assert counts["bad"] == {"truncated": 1} and 3000 < len(rows) < 7000
    assert [row["text"] for row in rows[:2]] == ["block 0", "block 1"]
    monkeypatch.setattr(train_lm, "MAX_BLOCK", 100)
    rows, _ = sample(tmp_path / "en.txt", b"x" * 250 + b"\n" + b"line\n" * 50)
    assert len(rows) == 6 and all(len(row["text"]) <= 100 for row in rows)
    assert "".join(row["text"].replace("\n", "") for row in rows) == "x" * 250 + "line" * 50


def test_of_a_dump_the_openings_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(train_lm, "MAX_ROWS_BYTES", 200)
    pages = "".join(
        f"<page><title>{n}</title><ns>0</ns><revision><text>'''Lead''' {n}\n== x ==\nmore</text></revision></page>"
        for n in range(100)
    )
    xml = f'<mediawiki xml:lang="nb">{pages}</mediawiki>'.encode()
    rows, counts = sample(tmp_path / "nowiki-pages-articles.xml.bz2", bz2.compress(xml))
    assert [row["text"] for row in rows] == [f"Lead {n}" for n in range(100)]
    assert counts["languages"] == {"no": {"documents": 100, "bytes": 690}}
    assert pq.ParquetFile(tmp_path / "sample").metadata.num_row_groups > 2
    line = '{"index": {}}\n{"title": "x", "language": "fr", "opening_text": "Le pain.", "text": "Le pain. Plus."}\n'
    rows, counts = sample(tmp_path / "frwiki-cirrussearch-content.json.gz", gzip.compress(line.encode()))
    assert [row["text"] for row in rows] == ["Le pain."] and list(counts["languages"]) == ["fr"]
    assert sample(tmp_path / "dump.xml", b"<html/>") == ([], {"clean": 0, "bad": {"not_a_dump": 1}, "languages": {}})


def test_models_of_a_real_dump(tmp_path, shared_data):
    """Openings of Wikipedia articles: they fit the openings of others better than code, and the same bytes come out."""
    [dump] = (shared_data / "text").glob("enwiki-*.bz2")
    counts = sample_file(str(dump), tmp_path / "sample")
    assert counts["languages"]["en"]["documents"] == 105 and not counts["bad"]
    for name in ("one", "two"):
        result = train("en", [tmp_path / "sample"], tmp_path / f"{name}.sp", tmp_path / f"{name}.bin", format="trie")
    assert result["documents"] == 105 and 500 < result["pieces"] < 1500
    assert (tmp_path / "one.sp").read_bytes() == (tmp_path / "two.sp").read_bytes()
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()
    model = LanguageModel(tmp_path / "one.sp", tmp_path / "one.bin")
    sentence = "The city is the capital of the state and was founded in the 19th century."
    assert model.perplexity(sentence) < model.perplexity("for (int i = 0; i < n; i++) { x[i] = y[i]; }") / 2


def test_both_structures_give_the_same_scores(trained, tmp_path):
    folder, samples, _ = trained
    train("en", samples, tmp_path / "sp", tmp_path / "trie", format="trie")
    probing, trie = LanguageModel(folder / "model one", folder / "model two"), LanguageModel(tmp_path / "sp", tmp_path / "trie")
    for text in [*(texts(1030)[1000:]), "something else entirely", ""]:
        assert trie.perplexity(text) == pytest.approx(probing.perplexity(text), rel=1e-5)
    assert (tmp_path / "trie").stat().st_size < (folder / "model two").stat().st_size
