import bz2
import re
import time
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccnet.wikitext import opening, plain_text

LEFT = re.compile(r"\[\[|\]\]|\{\{|\}\}|''|<ref|</|^\||^==")


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''Bread''' is a ''food''.", "Bread is a food."),
        ("L''''Italia''' è l''''isola'''.", "L'Italia è l'isola."),
        ("of [[flour]] and [[Water (drink)|water]]s", "of flour and waters"),
        ("see [[:Category:Bread]] [[Category:Bread]] [[category : x]]", "see Category:Bread"),
        ("[[File:a.jpg|thumb|A [[loaf]] {{x}} [http://a b]]]Bread", "Bread"),
        ("[[File:a.jpg|thumb|a [[loaf]]]]Bread", "Bread"),
        ("[[de:Brot]]\nBread\n[[zh-min-nan:X]]", "Bread"),
        ("a [http://x.example/a?b=c site of bread], [//x.example other] [http://x.example].", "a site of bread, other."),
        ("a [not a link] [1]", "a [not a link] [1]"),
        ("{{Infobox\n| a = {{b|c}}\n| d = [[e|f]]\n}}\nBread{{ref|{{{1|}}}}} is.", "Bread is."),
        ("{{{{{1}}}}}x{{{a|{{b}}}}}y", "xy"),
        ("{|\n|-\n! a\n| b || c\n{|\n| d\n|}\n|}\nafter", "after"),
        (":{| class=x\n| b\n|}\nafter", "after"),
        ("a<ref>b {{c}} [[d]]</ref> c<ref name=x/> d<ref name='y' /> e", "a c d e"),
        ("a<ref>b\n\nc</ref> d", "a d"),
        ("a<!-- b\n\n== c == --> d", "a d"),
        ("x <math>a|b < c}}</math> y <nowiki>a] link</nowiki>", "x y a] link"),
        ("a <nowiki>''</nowiki> <pre>{{ [[</pre> b", "a b"),
        ('H<sub>2</sub>O, <b>bold</b> <span style="x">span</span><br/>line<BR>line', "H2O, bold span\nline\nline"),
        ("* one\n** two\n# three\n; term: text\n: indented", "one\ntwo\nthree\nterm: text\nindented"),
        ("a &amp; b&nbsp;c &lt;ref&gt; &#8211; d", "a & b c <ref> – d"),
        ("Bread ({{lang|x}}; {{y}}) is ( {{a}}, from Latin {{b}} ).", "Bread is (from Latin)."),
        ("东京（{{lang|ja}}，{{x}}）是-{zh-hans:台湾;zh-hant:臺灣}-和-{首都}-。", "东京是台湾和首都。"),
        ("__NOTOC__ a __ b", "a __ b"),
        ("----\na", "a"),
        ("a <b and c> d, List<String> x", "a d, List<String> x"),
        ("a < b > c", "a < b > c"),
        ("", ""),
        (" \n\n\t\n", ""),
    ],
)
def test_plain_text(wikitext, text):
    assert plain_text(wikitext) == text


def test_headings_stay_where_text_is_below_them():
    page = "lead\n== A ==\n=== B ===\ntext\n== C ==\n{{only|template}}\n"
    page += "== D ==\n=== E ===\n===F===\n* item\n== References ==\n<references/>"
    assert plain_text(page) == "lead\nA\nB\ntext\nD\nF\nitem"


def test_names_of_namespaces_are_the_wikis():
    page = "[[Файл:a.jpg|мини|Хляб]] [[Категория:Хляб]]\nХлябът е храна."
    assert plain_text(page, {"файл", "категория"}) == "Хлябът е храна."


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("good\n[[broken\ngood", "good\ngood"),
        ("good\n{{Infobox\n| a = b\n! c\ngood", "good\ngood"),
        ("good\nbad }} text\ngood", "good\ngood"),
        ("good\nbad ]] text\ngood", "good\ngood"),
        ("good\nbad<ref>no end\ngood", "good\ngood"),
        ("good\nbad<math>no end\ngood", "good\ngood"),
        ("good <ref>[[x</ref> [[y]]", "good y"),
        ("{{a [[b }} good [[c]]", "good c"),
        ("good\n{|\n| cell\ngood", "good\ngood"),
    ],
)
def test_what_is_never_closed_costs_its_line(wikitext, text):
    assert plain_text(wikitext) == text


def test_opening():
    assert opening("a\n\nb\n== c ==\nd") == "a\n\nb\n"
    assert opening("a <!-- \n== x ==\n --> b\n===c===<!-- y -->\nd") == "a  b\n"
    assert opening("a == b ==\n= c =") == "a == b ==\n= c ="
    assert opening("== a ==") == ""


PIECES = [*"ab \n|]['=*-:;<>/{}", "[[", "]]", "{{", "}}", "{|", "|}", "<ref>", "</ref>", "<!--", "-->", "<nowiki>"]
PIECES += ["</nowiki>", "<math>", "</MATH>", "\n{|\n", "\n|}\n", "[http://", "''", "==", "File:", "&lt;", "&#0;", "\x00"]
PIECES += ["-{", "}-", "<br>", "(", ")", "\u2028"]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_no_markup_is_left_whatever_the_text(wikitext):
    lines = plain_text(wikitext).split("\n")
    assert lines == [""] or all(line and line == line.strip() for line in lines)
    assert not any(mark in line for line in lines for mark in ("[[", "{{", "{|", "''", "\x00")), lines
    plain_text(opening(wikitext))


@pytest.mark.parametrize("piece", [*PIECES, "{|\n", "==\n", "{{a|", "[[a|", "-{a:", "(,", "<b", "__", "{{{"])
def test_the_time_is_linear_whatever_is_never_closed(piece):
    """A parser that goes back takes minutes for some of these; CPU seconds, far from what this takes."""
    start = time.process_time()
    many = piece * (100_000 // len(piece))
    for text in (many, "[[" + many, "{{" * 1000 + many + "]]}}" * 1000):
        plain_text(text)
    assert time.process_time() - start < 5


def test_no_markup_is_left_of_real_articles(shared_data):
    articles = 0
    for path in sorted((shared_data / "text").glob("*wiki-*.bz2")):
        for page in ElementTree.fromstring(bz2.decompress(path.read_bytes())).findall("{*}page"):
            wikitext = page.findtext("{*}revision/{*}text") or ""
            if page.findtext("{*}ns") != "0" or page.find("{*}redirect") is not None:
                continue
            articles += 1
            lead, whole = plain_text(opening(wikitext)), plain_text(wikitext)
            assert len(whole) > 200
            assert not any("|" in line or "==" in line or "http" in line for line in lead.split("\n")), lead
            assert not [line for line in whole.split("\n") if LEFT.search(line)]
            assert "thumb" not in lead and "File:" not in lead
            if lead:
                assert whole.startswith(lead)
    assert articles == 107
