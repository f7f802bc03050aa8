"""Likeness to cited pages: what dumps cite, which documents are examples, and a classifier beside fastText's own answer."""

import bz2
import random
from collections import Counter
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ccnet import references
from ccnet.references import (
    cited_addresses,
    cited_pages,
    find_cited,
    host_key,
    page_key,
    sample_examples,
    score_segment,
    train_classifier,
    words,
)

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">
<page><title>A</title><ns>0</ns><revision><text>One.&lt;ref name="x"&gt;[https://www.A.example/One?x=1&amp;y=2#a A]&lt;/ref&gt;
Two {{Cite web | url = http://b.example:8080/two/ | archive-url=https://web.archive.org/web/2015/http://c.example/three }}
[http://no.example/external an external link]&lt;ref name="x" /&gt; [http://no.example/behind x]</text></revision></page>
<page><title>T</title><ns>10</ns><revision><text>&lt;ref&gt;http://no.example/template&lt;/ref&gt;</text></revision></page>
<page><title>R</title><ns>0</ns><redirect title="A"/><revision><text>&lt;ref&gt;http://no.example/r&lt;/ref&gt;</text></revision></page>
</mediawiki>"""


def test_the_addresses_of_references_and_of_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "dump.xml.bz2"
    file.write_bytes(bz2.compress(DUMP.encode()))
    counts: Counter[str] = Counter()
    language, pages, hosts = cited_pages(str(file), counts)
    assert language == "en"
    wanted = ["https://a.example/One?x=1&y=2", "http://b.example:8080/two", "http://c.example/three"]
    assert pages.tolist() == sorted(page_key(address) for address in wanted)
    assert hosts.tolist() == sorted(host_key(f"http://{host}/") for host in ("a.example", "b.example", "c.example"))
    assert counts["citations"] == 3
    assert counts["articles_read"] == 1


def test_a_broken_dump_gives_what_it_has(tmp_path: Path) -> None:
    file = tmp_path / "dump.xml"
    file.write_text(DUMP[: DUMP.index("<page><title>T")])
    counts: Counter[str] = Counter()
    assert len(cited_pages(str(file), counts)[1]) == 3
    assert counts["bad_truncated"] == 1
    file.write_text("<html/>")
    assert cited_pages(str(file), counts)[0] == ""
    assert counts["bad_not_a_dump"] == 1


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("http://www.a.b/c/", "https://A.B/c", True),
        ("http://a.b/c#d", "http://a.b/c", True),
        ("https://web.archive.org/web/20150206075900/http://a.b/c", "http://a.b/c", True),
        ("https://web.archive.org/web/20150206075900id_/http://www.a.b/", "http://a.b", True),
        ("http://a.b/C", "http://a.b/c", False),
        ("http://a.b/c?d=1", "http://a.b/c", False),
        ("http://a.b/c", "http://x.a.b/c", False),
    ],
)
def test_addresses_of_the_same_page(left: str, right: str, same: bool) -> None:
    assert (page_key(left) == page_key(right)) is same


def test_references_over_lines_and_without_an_end() -> None:
    assert cited_addresses("<ref>\nhttp://a/1\n\nhttp://a/2</ref> http://a/3 <ref group=n>http://a/4") == [
        "http://a/1",
        "http://a/2",
    ]
    assert cited_addresses("<references>http://a/1</references>") == []
    assert cited_addresses("{{citation|url=http://a/1}}{{cite book|title=x}}") == ["http://a/1"]


@pytest.fixture
def mined(tmp_path: Path) -> Path:
    """A mined segment: English pages of cited hosts about one thing, others about another; some German ones."""
    choose = random.Random(1)
    topics = {"cited": ["planet", "orbit", "star", "mass", "light"], "other": ["buy", "cheap", "shoes", "sale", "shop"]}
    common = ["the", "of", "and", "is", "in", "to", "a", "with", "for", "on"]
    rows = []
    for number in range(400):
        kind = "cited" if number % 2 else "other"
        text = " ".join(choose.choice(topics[kind] if choose.random() < 0.2 else common) for _ in range(60))
        rows.append({"url": f"https://{kind}.example/{number}", "digest": f"d{number}", "language": "en", "raw_content": text})
    rows += [
        {"url": f"https://cited.example/de{n}", "digest": f"g{n}", "language": "de", "raw_content": "x y"} for n in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mined.parquet", row_group_size=100)
    return tmp_path / "mined.parquet"


def keys(match: str) -> dict[str, np.ndarray]:
    addresses = ["http://cited.example/1", "http://cited.example/3"]
    return {"en": np.array(sorted({(page_key if match == "page" else host_key)(a) for a in addresses}), np.uint64)}


def test_cited_documents_are_found_by_page_or_host(mined: Path) -> None:
    cited, languages = find_cited(mined, keys("page"), "page")
    assert np.flatnonzero(cited).tolist() == [1, 3]
    cited, languages = find_cited(mined, keys("host"), "host")
    assert np.flatnonzero(cited).tolist() == list(range(1, 400, 2))  # German pages are not compared with an English dump
    assert Counter(languages) == {"en": 400, "de": 3}


def test_examples_are_drawn_by_their_digests(mined: Path, tmp_path: Path) -> None:
    sample_examples(mined, tmp_path / "all", keys("host"), "host", {"en": (1.0, 1.0)})
    whole = pq.read_table(tmp_path / "all").to_pylist()
    assert len(whole) == 400 and sum(row["cited"] for row in whole) == 200
    sample_examples(mined, tmp_path / "half", keys("host"), "host", {"en": (1.0, 0.3)})
    half = pq.read_table(tmp_path / "half").to_pylist()
    assert sum(row["cited"] for row in half) == 200
    others = [row["digest"] for row in half if not row["cited"]]
    assert others == [row["digest"] for row in whole if not row["cited"] and references.chance(row["digest"]) < 0.3]
    assert 30 < len(others) < 90


def test_the_classifier_tells_them_apart_and_scores_are_fasttexts(mined: Path, tmp_path: Path) -> None:
    sample_examples(mined, tmp_path / "all", keys("host"), "host", {"en": (1.0, 1.0)})
    measured = train_classifier([tmp_path / "all"], "en", tmp_path / "en.bin")
    again = train_classifier([tmp_path / "all"], "en", tmp_path / "again.bin")
    assert measured == again
    assert (tmp_path / "en.bin").read_bytes() == (tmp_path / "again.bin").read_bytes()
    assert sum(measured["trained_on"].values()) + sum(measured["held_out"].values()) == 400
    assert 50 < sum(measured["held_out"].values()) < 110
    best = next(point for point in measured["curve"] if point["threshold"] == measured["best"])
    assert best["precision"] > 0.9 and best["recall"] > 0.9 and best["kept"] < 0.1
    recalls = [point["recall"] for point in measured["curve"]]
    assert recalls == sorted(recalls, reverse=True)

    counts = score_segment(mined, tmp_path / "scores", {"en": tmp_path / "en.bin"})
    scores = pq.read_table(tmp_path / "scores").column("reference_score").to_pylist()
    assert counts["documents"] == len(scores) == 403
    assert scores[400:] == [None] * 3
    assert sum(counts["histogram"]["en"].values()) == 400
    model = fasttext.load_model(str(tmp_path / "en.bin"))
    texts = pq.read_table(mined).column("raw_content").to_pylist()
    for number in (0, 1, 2, 399):
        labels, found = model.predict(words(texts[number]), 2)
        assert scores[number] == pytest.approx(min(1.0, float(found[labels.index("__label__cited")])), abs=1e-6)
    assert np.mean([(score > 0.5) == bool(n % 2) for n, score in enumerate(scores[:400])]) > 0.9


def test_words_are_bounded_and_on_one_line() -> None:
    assert words("Ein Satz,\nzwei\tSätze!") == "ein satz , zwei sätze !"
    assert words("") == ""
    assert len(words("a" * 10**6)) == references.MAX_TEXT
