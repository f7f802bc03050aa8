"""Stack Exchange's dumps: read beside a real XML parser, packed by 7-Zip itself, broken and hostile."""

import random
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import quoteattr

import py7zr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SourcesConfig
from pipeline.sources import Given, stackexchange
from pipeline.sources.stackexchange import documents, files, plain

HEAD, END = '﻿<?xml version="1.0" encoding="utf-8"?>\n<posts>\n', "</posts>"
ROWS = """  <row Id="1" PostTypeId="1" AcceptedAnswerId="3" CreationDate="2010-07-09T18:33:31.390" Score="5" \
Body="&lt;p&gt;How?&lt;/p&gt;&#xA;" Title="A &quot;title&quot;" Tags="&lt;x&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" CreationDate="2010-07-09T19:00:00.000" Score="-1" Body="&lt;p&gt;worse&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" CreationDate="2010-07-09T20:00:00.000" Score="7" \
Body="&lt;p&gt;better&lt;/p&gt;&#xA;&lt;pre&gt;&lt;code&gt;if x:&#xA;    y  = 1&#xA;&lt;/code&gt;&lt;/pre&gt;" />
  <row Id="4" PostTypeId="5" CreationDate="2010-07-09T20:00:00.000" Score="0" Body="tag wiki" />
  <row Id="5" PostTypeId="2" ParentId="99" CreationDate="2010-07-09T20:00:00.000" Score="0" Body="orphan" />
"""


def read(
    folder: Path, text: str | bytes, site: str = "cooking.stackexchange.com"
) -> tuple[list[stackexchange.Document], Counter[str]]:
    file = folder / site / "Posts.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    counts: Counter[str] = Counter()
    return list(documents(Given(str(file), None, SourcesConfig(), folder), counts)), +counts


def test_questions_have_their_answers_by_score(tmp_path: Path) -> None:
    found, counts = read(tmp_path, HEAD + ROWS + END)
    assert [(d.url, d.date, d.title) for d in found] == [
        ("https://cooking.stackexchange.com/questions/1", "2010-07-09T18:33:31Z", 'A "title"')
    ]
    assert found[0].text == 'Q: A "title"\n\nHow?\n\nA: better\n\nif x:\n    y  = 1\n\nA: worse'
    assert counts == {"dropped_other_post": 1, "dropped_no_question": 1}


@pytest.mark.parametrize("name", ["cooking.stackexchange.com.7z", "stackoverflow.com-Posts.7z"])
@pytest.mark.parametrize("method", ["LZMA", "LZMA2", "BZip2", "PPMd"])
def test_archives_of_7_zip(tmp_path: Path, program: Callable[[str], str], name: str, method: str) -> None:
    plain_found, _ = read(tmp_path, HEAD + ROWS + END)
    (tmp_path / "Comments.xml").write_text("<comments/>")
    command = [program("7z"), "a", f"-m0={method}", name, "Comments.xml", "./cooking.stackexchange.com/Posts.xml"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    counts: Counter[str] = Counter()
    found = list(documents(Given(str(tmp_path / name), None, SourcesConfig(), tmp_path), counts))
    assert [d.text for d in found] == [d.text for d in plain_found]
    site = "stackoverflow.com" if "Posts" in name else "cooking.stackexchange.com"
    assert found[0].url == f"https://{site}/questions/1"
    assert not counts["bad_compression"]


@given(st.data())
def test_attributes_are_those_of_a_real_parser(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    characters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff")
    titles = data.draw(st.lists(st.text(characters, max_size=30), min_size=1, max_size=5))
    entities = {"\n": "&#xA;", "\t": "&#9;"}
    rows = "".join(
        f'  <row Id="{number}" PostTypeId="1" Body="" Title={quoteattr(title, entities)} />\n'.replace("='", '="').replace(
            "' />", '" />'
        )
        if '"' not in title
        else f'  <row Id="{number}" PostTypeId="1" Body="" Title="{quoteattr(title)[1:-1].replace(chr(34), "&quot;")}" />\n'
        for number, title in enumerate(titles)
    )
    wanted = [" ".join((row.get("Title") or "").split()) for row in ElementTree.fromstring(HEAD.lstrip("\ufeff") + rows + END)]
    found, counts = read(tmp_path_factory.mktemp("posts"), HEAD + rows + END)
    assert [d.title for d in found] == wanted
    assert not counts


def test_the_result_does_not_depend_on_the_partitions_or_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = random.Random(1)
    rows = [f'<row Id="{n}" PostTypeId="1" Score="1" Body="question {n}" Title="t" />\n' for n in range(0, 600, 3)]
    rows += [
        f'<row Id="{n}" PostTypeId="2" ParentId="{n // 3 * 3}" Score="{order.randint(-3, 3)}" Body="answer {n}" />\n'
        for n in range(600)
        if n % 3
    ]
    order.shuffle(rows)
    whole, _ = read(tmp_path, HEAD + "".join(rows) + END)
    assert len(whole) == 200
    assert all(d.text.count("A: ") == 2 for d in whole)
    monkeypatch.setattr(stackexchange, "PARTITION", 3000)
    monkeypatch.setattr(stackexchange, "CHUNK", 7)
    parts, _ = read(tmp_path, HEAD + "".join(rows) + END)
    assert sorted(parts) == sorted(whole)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("<row Id='1' PostTypeId='1' />", "bad_row"),
        ('<row Id="1" PostTypeId="1" Body="a', "bad_row"),
        ('<row PostTypeId="1" Body="a" />', "bad_row"),
        ('<row Id="2" PostTypeId="2" Body="a" />', "bad_row"),
        ('<row Id="x" PostTypeId="1" Body="a" />', "bad_row"),
        ('<row Id="1" PostTypeId="1" Body="<b>" />', "bad_row"),
        ('<!DOCTYPE posts [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', "bad_row"),
        (f'<row Id="1" PostTypeId="1" Body="{"x" * (5 << 20)}" />', "bad_too_large"),
        ("x" * (9 << 20), "bad_too_large"),
        ("\0\1\2", "bad_row"),
    ],
    ids=range(10),
)
def test_a_bad_row_costs_itself(tmp_path: Path, row: str, reason: str) -> None:
    found, counts = read(tmp_path, f"{HEAD}{row}\n{ROWS}{END}")
    assert len(found) == 1
    assert counts[reason] == 1


def test_entities_and_bytes_that_are_none(tmp_path: Path) -> None:
    row = b'<row Id="1" PostTypeId="1" Body="&amp;bomb; &#0;&#xD800;&#x1F600; \xff &nbsp;" Title="t" />\n'
    found, counts = read(tmp_path, HEAD.encode() + row)
    assert found[0].text == "Q: t\n\n&bomb; \ufffd\ufffd\U0001f600 \ufffd"
    assert counts == {"bad_undecodable": 1}


def test_empty_and_cut_files(tmp_path: Path) -> None:
    assert read(tmp_path, b"") == ([], {})
    assert read(tmp_path, HEAD + END) == ([], {})
    found, counts = read(tmp_path, (HEAD + ROWS)[:-30])
    assert len(found) == 1
    assert counts["bad_row"] == 1


def test_archives_that_are_broken_or_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "a.com.7z"
    with py7zr.SevenZipFile(good, "w") as archive:
        archive.writestr(HEAD + ROWS + random.Random(1).randbytes(5000).hex() + END, "Posts.xml")
    data = good.read_bytes()

    def counted(data: bytes) -> Counter[str]:
        (tmp_path / "b.com.7z").write_bytes(data)
        counts: Counter[str] = Counter()
        list(documents(Given(str(tmp_path / "b.com.7z"), None, SourcesConfig(), tmp_path), counts))
        return counts

    for end in (0, 10, 40, len(data) - 5):
        assert counted(data[:end])["bad_compression"] == 1
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    assert counted(bytes(flipped))["bad_compression"] == 1
    with py7zr.SevenZipFile(tmp_path / "c.7z", "w") as archive:
        archive.writestr("x" * (20 << 20), "Posts.xml")
    assert counted((tmp_path / "c.7z").read_bytes()) == {"bad_bomb": 1}
    with py7zr.SevenZipFile(tmp_path / "d.7z", "w") as archive:
        archive.writestr("x", "Users.xml")
    assert counted((tmp_path / "d.7z").read_bytes()) == {"bad_no_posts": 1}
    monkeypatch.setattr(stackexchange, "MAX_DICTIONARY", 1 << 10)
    assert counted(data) == {"bad_bomb": 1}


def test_html_becomes_text() -> None:
    html = "<p>Hi <code>x</code> &amp; <a href='javascript:x'>link</a><script>alert(1)</script></p>"
    html += "<ul><li>one</li></ul><blockquote><p>q</p></blockquote>"
    assert plain(html) == "Hi x & link\n\n  • one\n\nq"
    assert plain("<div>" * 50_000) == ""
    assert plain("<pre><code>a\n\n\n    b\t c\n</code></pre>") == "a\n\n\n    b\t c"


def test_a_folder_stands_for_its_28_largest_sites(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"site{number:02d}.7z").write_bytes(bytes(100 + number))
    for name in (
        "stackoverflow.com-Posts.7z",
        "stackoverflow.com-Votes.7z",
        "meta.stackexchange.com.7z",
        "tex.meta.stackexchange.com.7z",
    ):
        (tmp_path / name).write_bytes(bytes(10_000))
    (tmp_path / "unpacked.com").mkdir()
    (tmp_path / "unpacked.com" / "Posts.xml").write_bytes(bytes(5000))
    wanted = [f"site{number:02d}.7z" for number in range(4, 30)] + ["stackoverflow.com-Posts.7z", "unpacked.com/Posts.xml"]
    assert files(str(tmp_path)) == sorted(str(tmp_path / name) for name in wanted)
    assert files(str(tmp_path / "site0*.7z")) == [str(tmp_path / f"site0{number}.7z") for number in range(10)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither archives"):
        files(str(tmp_path / "empty"))
