"""Wikipedia's dumps: what is passed over, parts of multistream dumps, and no markup left in real articles."""

import bz2
import re
import subprocess

import pytest
from source_files import read

from ccnet.wikipedia import is_disambiguation
from ccnet.wikitext import plain_text
from pipeline.sources import wikipedia

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n<siteinfo><sitename>Wikipedia'
    "</sitename><base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>\n"
)
MARKUP = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|'''|<ref|</|&(?:nbsp|lt|gt|amp);|^[*#:;|!]|^==|\bthumb\||__[A-Z]{3,}__", re.MULTILINE
)


TEMPLATES = {
    **{"bg": "пояснение", "ca": "Desambiguació", "cs": "Rozcestník", "da": "Flertydig", "de": "Begriffsklärung"},
    **{"en": "Disambiguation", "es": "desambiguación", "fr": "Homonymie de patronyme", "hr": "razdvojba", "hu": "egyért"},
    **{"it": "disambigua", "nl": "dp", "pl": "ujednoznacznienie", "pt": "desambiguação", "ro": "dezambiguizare"},
    **{"ru": "неоднозначность", "sl": "razločitev", "sr": "вишезначна одредница", "sv": "Förgrening"},
    **{"uk": "Багатозначність"},
}


def page(title, text, more=""):
    return (
        f"  <page><title>{title}</title><ns>0</ns>{more}<revision><timestamp>2022-06-20T00:00:00Z</timestamp>"
        f"<text>{text}</text></revision></page>\n"
    )


def multistream(groups):
    """The head, groups of pages and the end, each a stream of its own, as Wikipedia has them."""
    return b"".join(bz2.compress(text.encode()) for text in [HEAD, *map("".join, groups), "</mediawiki>"])


def test_what_is_passed_over(tmp_path):
    pages = [
        page("A b", "Text of [[a]].&lt;ref>r&lt;/ref>"),
        page("R", "#REDIRECT [[A]]", '<redirect title="A"/>'),
        page("M", "'''M''' may be:\n* [[x]]\n{{disambiguation}}"),
        page("E", "{{only}}"),
    ]
    (tmp_path / "dump.bz2").write_bytes(multistream([pages]))
    documents, counts = read("wikipedia", tmp_path / "dump.bz2")
    assert [(d.title, d.text, d.url, d.date, d.language) for d in documents] == [
        ("A b", "Text of a.", "https://en.wikipedia.org/wiki/A_b", "2022-06-20T00:00:00Z", "en")
    ]
    assert counts == {"dropped_redirect": 1, "dropped_disambiguation": 1, "dropped_empty": 1}


@pytest.mark.parametrize(
    ("language", "wikitext", "is_one"),
    [
        ("en", "x\n{{Human name disambiguation}}", True),
        ("en", "{{Hndis|name=X}}", True),
        ("en", "{{about|x}} text", False),
        ("en", "{{Disambiguation needed}}", False),
        ("en", "{{dp}}", False),
        ("xx", "__DISAMBIG__", True),
        ("en", "", False),
        ("en", "{{" * 50_000, False),
        *((language, f"* x\n{{{{{template}}}}}", True) for language, template in TEMPLATES.items()),
    ],
)
def test_disambiguations(language, wikitext, is_one):
    assert is_disambiguation(language, "T", wikitext) == is_one


def test_parts_of_a_multistream_dump_have_each_page_once(tmp_path):
    groups = [[page(f"T{g}-{n}", f"text {g} {n} {'x' * (g * 7919 % 500)}") for n in range(5)] for g in range(40)]
    path = tmp_path / "dump.bz2"
    path.write_bytes(multistream(groups))
    whole = read("wikipedia", path)[0]
    assert len(whole) == 200
    for size in (300, 1000, 5000):
        parts = wikipedia.parts(str(path), size)
        assert len(parts) > 1 and parts[0][0] == 0 and parts[-1][1] == path.stat().st_size
        results = [read("wikipedia", path, part) for part in parts]
        assert [d for documents, _ in results for d in documents] == whole and not any(counts for _, counts in results)
    assert len(wikipedia.parts(str(path), 1 << 20)) == 1


def test_dumps_that_cannot_be_cut(tmp_path):
    """Streams that begin anywhere, as parallel bzip2 writes them, and a dump in one stream."""
    data = (HEAD + "".join(page(f"T{n}", f"text {n}") for n in range(500)) + "</mediawiki>").encode()
    for name, streams in (("one", [data]), ("several", [data[n : n + 999] for n in range(0, len(data), 999)])):
        path = tmp_path / f"{name}.bz2"
        path.write_bytes(b"".join(map(bz2.compress, streams)))
        assert len(wikipedia.parts(str(path), 500)) == 1
        assert len(read("wikipedia", path)[0]) == 500


@pytest.mark.parametrize("name", ["enwiki*", "bgwiki*"])
def test_no_markup_is_left_in_real_articles(shared_data, name):
    (path,) = (shared_data / "text").glob(name)
    documents, counts = read("wikipedia", path)
    assert documents and not any(reason.startswith("bad") for reason in counts)
    left = [(d.title, line) for d in documents for line in d.text.split("\n") if MARKUP.search(line)]
    assert not left, left[:5]
    assert all(d.url.startswith("https://") and d.text for d in documents)


EDGES = """'''Bold''' and ''italic'' [[link|text]] and [[plain]] of [https://x.org outside].<!-- gone -->
{{Infobox|a=1
|b={{nested|c}}}}
== Heading ==
* one
* two
{| class="wikitable"
| cell
|}
Last<ref name="x">{{cite|y}}</ref> words, &amp; more.
"""


def test_words_are_those_of_pandoc_and_of_mwparserfromhell(program):
    pandoc = program("pandoc")
    parser = pytest.importorskip("mwparserfromhell")
    ours = re.findall(r"\w+", plain_text(EDGES))
    done = subprocess.run([pandoc, "-f", "mediawiki", "-t", "plain"], input=EDGES, capture_output=True, text=True, check=True)
    theirs = re.findall(r"\w+", re.sub(r"\[\d+\]|cell", "", done.stdout))
    assert ours == theirs
    stripped = parser.parse(EDGES).strip_code()
    assert ours == re.findall(r"\w+", stripped.replace("cell", ""))
