import bz2
import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet import wikipedia
from ccnet.wikipedia import Article, read_articles
from ccnet.wikitext import opening, plain_text

ROOT = Path(__file__).resolve().parents[2]
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{}">
  <siteinfo><sitename>Wikipedia</sitename><namespaces>
    <namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Datei</namespace>
    <namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>
"""
BODIES = [f"lead {n} of [[x|bread]]\n== section ==\ntext {n}" for n in range(5)]


def page(title, text, ns=0, extra=""):
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>1</id>{extra}<revision><id>2</id><contributor><title>no</title>"
        f'</contributor><text bytes="3" xml:space="preserve">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


def dump(*pages, language="de"):
    return (HEAD.format(language) + "".join(pages) + "</mediawiki>\n").encode()


GOOD = dump(*(page(f"T{n}", text) for n, text in enumerate(BODIES)))
ARTICLES = [Article("de", f"T{n}", f"lead {n} of bread\nsection\ntext {n}") for n in range(5)]


def read(path, data=None, **options):
    """(articles, counts) of a file that is written first."""
    if data is not None:
        path.write_bytes(data)
    counts = Counter()
    return list(read_articles(str(path), counts, **options)), dict(counts)


def several_streams(data, streams=4):
    size = len(data) // streams + 1
    return b"".join(bz2.compress(data[n : n + size]) for n in range(0, len(data), size))


@pytest.mark.parametrize("pack", [bytes, bz2.compress, several_streams, gzip.compress, lambda data: b"\xef\xbb\xbf" + data])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_articles_of_a_dump(tmp_path, monkeypatch, pack, chunk):
    monkeypatch.setattr(wikipedia, "CHUNK", chunk)
    assert read(tmp_path / "dump", pack(GOOD)) == (ARTICLES, {"articles_read": 5})
    leads, _ = read(tmp_path / "dump", openings=True)
    assert leads == [Article("de", f"T{n}", f"lead {n} of bread") for n in range(5)]


CHARACTERS = st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x85\u2028\ufffe\uffff")
TEXTS = st.lists(st.text(st.one_of(CHARACTERS, st.sampled_from("\n\t&<>[]{}|='"))), max_size=5)


@given(TEXTS, st.integers(1, 50), st.sampled_from([bytes, bz2.compress, several_streams, gzip.compress]), st.booleans())
def test_any_text_comes_out_as_its_wikitext_says(tmp_path_factory, texts, chunk, pack, openings):
    path = tmp_path_factory.mktemp("dump") / "dump"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikipedia, "CHUNK", chunk)
        articles, counts = read(path, pack(dump(*(page(f"T{n}", text) for n, text in enumerate(texts)))), openings=openings)
    plain = [(f"T{n}", plain_text(opening(text) if openings else text)) for n, text in enumerate(texts)]
    assert articles == [Article("de", title, text) for title, text in plain if text]
    assert set(counts) <= {"articles_read", "skipped_empty"} and sum(counts.values()) == len(texts)


def test_other_encodings(tmp_path):
    text = GOOD.decode()
    assert read(tmp_path / "dump", text.encode("utf-16"))[0] == ARTICLES
    latin = '<?xml version="1.0" encoding="iso-8859-1"?>' + dump(page("Käse", "Käse & Brot")).decode()
    assert read(tmp_path / "dump", latin.encode("latin-1"))[0] == [Article("de", "Käse", "Käse & Brot")]


def test_redirects_other_namespaces_and_empty_pages_are_passed_over(tmp_path):
    pages = [
        page("R", "#REDIRECT [[x]]", extra='<redirect title="x" />'),
        page("Talk:x", "talk", ns=1),
        page("Vorlage:x", "template", ns=10),
        page("empty", "{{only}} [[Datei:a.jpg|mini|Brot]] [[kategorie:Brot]]"),
        page("x", "Brot [[Datei:a.jpg]]"),
    ]
    articles, counts = read(tmp_path / "dump", dump(*pages))
    assert articles == [Article("de", "x", "Brot")]
    assert counts == {"skipped_redirect": 1, "skipped_namespace": 2, "skipped_empty": 1, "articles_read": 1}


def test_of_several_revisions_the_last_counts(tmp_path):
    history = page("x", "old").replace("</revision></page>", "</revision><revision><text>new</text></revision></page>")
    assert read(tmp_path / "dump", dump(history))[0] == [Article("de", "x", "new")]


@pytest.mark.parametrize(("code", "name"), [("nb", "no"), ("gsw", "als"), ("EN", "en"), ("zh-min-nan", "zh-min-nan")])
def test_languages_are_named_as_fasttext_does(tmp_path, code, name):
    assert read(tmp_path / "dump", dump(page("x", "y"), language=code))[0] == [Article(name, "x", "y")]


@pytest.mark.parametrize("code", ["", "../../etc/passwd", "e", "english", "en/de", "\u0435\u043d", "en\n"])
def test_what_is_no_language_is_refused(tmp_path, code):
    assert read(tmp_path / "dump", dump(page("x", "y"), language=code)) in (
        ([], {"bad_language": 1}),
        ([Article("en", "x", "y")], {"articles_read": 1}) if code == "en\n" else None,  # XML makes a space of it
    )
    document = json.dumps({"title": "x", "text": "y", "language": code})
    assert read(tmp_path / "json", document.encode()) == ([], {"bad_language": 1})


@pytest.mark.parametrize("pack", [bytes, bz2.compress, several_streams, gzip.compress])
def test_of_a_dump_cut_anywhere_the_whole_articles_stay(tmp_path, pack):
    packed = pack(GOOD)
    for size in sorted({*random.Random(0).sample(range(len(packed)), 40), len(packed) - 1, 0, 1, 4}):
        articles, counts = read(tmp_path / "dump", packed[:size])
        assert articles == ARTICLES[: len(articles)]
        bad = {name for name in counts if name.startswith("bad_")}
        complete = pack is bytes and size == len(packed) - 1  # only the line end is missing
        assert len(bad) == (0 if complete else 1) and bad <= {"bad_truncated", "bad_not_a_dump", "bad_compression"}
        if size > 0.9 * len(packed) and pack in (bytes, several_streams):
            assert len(articles) >= 3


def test_bytes_that_are_broken_end_a_file_and_keep_what_came_before(tmp_path):
    packed = bytearray(b"".join(bz2.compress(part) for part in (GOOD[:700], GOOD[700:])))
    second = packed.index(b"BZh", 3)
    packed[second + 30] ^= 0xFF
    articles, counts = read(tmp_path / "dump", bytes(packed))
    assert counts.pop("bad_compression") == 1 and counts == {"articles_read": len(articles)}
    assert articles == ARTICLES[: len(articles)] != []
    broken = GOOD.replace(b"<title>T3</title>", b"<title>T3</titel>")
    assert read(tmp_path / "dump", broken) == (ARTICLES[:3], {"articles_read": 3, "bad_broken_xml": 1})
    whole = dump(*(page(f"T{n}", f"{n} " + random.Random(n).randbytes(9000).hex()) for n in range(9)))
    packed = bytearray(several_streams(whole))
    packed[packed.rindex(b"BZh") + 5] ^= 0xFF  # the beginning of a stream
    _, counts = read(tmp_path / "dump", bytes(packed))
    assert counts["bad_compression"] == 1 and counts["articles_read"] > 4
    undecodable = GOOD.replace(b"lead 2", b"lead \xff")
    assert read(tmp_path / "dump", undecodable) == (ARTICLES[:2], {"articles_read": 2, "bad_broken_xml": 1})
    unknown_entity = GOOD.replace(b"lead 2", b"lead &nbsp;")
    assert read(tmp_path / "dump", unknown_entity) == (ARTICLES[:2], {"articles_read": 2, "bad_broken_xml": 1})


def laughs(*declarations):
    return f"<?xml version='1.0'?><!DOCTYPE mediawiki [{''.join(declarations)}]>".encode()


@pytest.mark.parametrize(
    "doctype",
    [
        laughs("<!ENTITY l0 'lol'>", *(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 30))),
        laughs(f"<!ENTITY l29 '{'lol' * 100_000}'>"),
        laughs("<!ENTITY l29 SYSTEM 'file:///etc/passwd'>"),
        b"<!DOCTYPE mediawiki SYSTEM 'http://x.example/x.dtd'>",
    ],
)
def test_entity_bombs_are_refused(tmp_path, doctype):
    data = doctype + GOOD.replace(b"lead 2", b"lead &l29;" * 1000)
    assert read(tmp_path / "dump", data) == ([], {"bad_doctype": 1})


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"plain text", b"\x00" * 100, b"<html><body>503</body></html>", b"<rss/>", b"PK\x03\x04",
     b"<?xml version='1.0'?>", b"<?xml version='1.0' encoding='x-unknown'?><mediawiki/>",
     gzip.compress(b"", mtime=0), random.Random(0).randbytes(1000)],
)  # fmt: skip
def test_what_is_no_dump(tmp_path, data):
    assert read(tmp_path / "file", data) == ([], {"bad_not_a_dump": 1})


def test_nesting_without_end(tmp_path):
    data = HEAD.format("de").encode() + b"<page>" * 100_000
    assert read(tmp_path / "dump", data) == ([], {"bad_broken_xml": 1})


MEASURE = """
import resource, sys
from collections import Counter
from ccnet.wikipedia import read_articles
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
counts = Counter()
number = sum(1 for _ in read_articles(sys.argv[1], counts))
print(number, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, *sorted(counts))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("middle", "result"),
    [
        (page("big", "x" * (300 << 20)), "2 articles_read bad_too_large"),
        ("<!--" + "x" * (300 << 20), "1 articles_read bad_broken_xml"),
        (f'<page a="{"x" * (300 << 20)}"></page>', "1 articles_read bad_broken_xml"),
        (page("many", "lead") * 1000 + " " * (300 << 20), "1002 articles_read"),
    ],
)
def test_memory_is_bounded(tmp_path, middle, result):
    """300 MB of one text, comment, attribute or of nothing."""
    data = dump(page("a", "b"), middle, page("c", "d"))
    (tmp_path / "dump").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "dump")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    number, grown, *counts = done.stdout.split()
    assert " ".join([number, *counts]) == result
    assert int(grown) < 150


def test_a_bomb_is_refused_early(tmp_path):
    data = gzip.compress(dump(page("a", "b")).removesuffix(b"</mediawiki>") + b" " * (200 << 20), 1)
    assert read(tmp_path / "dump.gz", data) == ([Article("de", "a", "b")], {"articles_read": 1, "bad_bomb": 1})


def document(n, **more):
    fields = {"title": f"T{n}", "namespace": 0, "language": "en", "wiki": "enwiki", "text": f"lead  {n} and text {n}"}
    return json.dumps({**fields, "opening_text": f"lead {n}", **more})


def bulk(*documents):
    return "".join(f'{{"index":{{"_type":"page","_id":"{n}"}}}}\n{line}\n' for n, line in enumerate(documents)).encode()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_cirrussearch(tmp_path, pack):
    lines = [
        document(0),
        document(1, namespace=4),
        document(2, opening_text=None),
        document(3, opening_text="half \ud83d of a pair\n\n next"),
    ]
    articles, counts = read(tmp_path / "wiki.json", pack(bulk(*lines)), openings=True)
    assert articles == [Article("en", "T0", "lead 0"), Article("en", "T3", "half ? of a pair\nnext")]
    assert counts == {"articles_read": 2, "skipped_namespace": 1, "skipped_empty": 1}
    articles, counts = read(tmp_path / "wiki.json")
    assert [article.text for article in articles] == [f"lead {n} and text {n}" for n in (0, 2, 3)]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "[[1]]", "1", "null", '"text"', "{}", '{"title": 1, "text": "x"}', '{"title": "x", "text": {"a": 1}}',
     "[" * 100_000, '{"a":' * 100_000, '{"title": "x", "text": "y", "language": "en"', "9" * 10_000],
)  # fmt: skip
def test_a_json_line_that_is_no_page_costs_itself(tmp_path, line):
    articles, counts = read(tmp_path / "json", bulk(document(0), line, document(1)))
    assert [article.title for article in articles] == ["T0", "T1"]
    assert counts == {"articles_read": 2, "bad_record": 1}


def test_json_that_is_cut_or_has_a_line_without_end(tmp_path, monkeypatch):
    data = bulk(*map(document, range(200)))
    articles, counts = read(tmp_path / "json", gzip.compress(data)[:-100])
    assert counts == {"articles_read": len(articles), "bad_truncated": 1} and articles
    monkeypatch.setattr(wikipedia, "MAX_LINE", 1000)
    articles, counts = read(tmp_path / "json", bulk(document(0), document(1, text="x" * 5000), document(2)))
    assert [article.title for article in articles] == ["T0", "T2"] and counts["bad_too_large"] == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.xml")


def test_real_dumps(shared_data):
    [english] = (shared_data / "text").glob("enwiki-*.bz2")
    [bulgarian] = (shared_data / "text").glob("bgwiki-*.bz2")
    articles, counts = read(english)
    assert counts == {"articles_read": 106, "skipped_redirect": 99, "skipped_namespace": 1}
    assert {article.language for article in articles} == {"en"} and articles[0].title == "Anarchism"
    assert articles[0].text.startswith("Anarchism is a political philosophy that advocates self-governed societies")
    [article], counts = read(bulgarian)  # in UTF-16
    assert (article.language, article.title) == ("bg", "Григориански календар")
    assert "Категория:" not in article.text and "Файл:" not in article.text
