import json
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import compress, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from crawls import open_marks, prose
from hypothesis import given, settings
from hypothesis import strategies as st
from wet_files import write_wet

from ccnet import filter
from ccnet.buckets import bin_of
from ccnet.filter import Rules, filter_segment, is_held_out
from ccnet.language import LanguageIdentifier, default_model
from ccnet.lines import keep_lines
from ccnet.normalize import paragraph_keys
from ccnet.perplexity import LanguageModel, find_models
from ccnet.quality import C4
from ccnet.regenerate import regenerate_segment
from ccnet.schema import DROPPED, SCORED
from ccnet.stats import merge
from ccnet.wet import read_pages


def run(pages_by_segment, folder, rules=Rules(min_length=20), keep="first", models=None):  # noqa: B008
    """The rows and the statistics of each segment of a crawl of these pages."""
    folder.mkdir(exist_ok=True)
    sources = [write_wet(folder / f"{n}.warc.wet.gz", pages) for n, pages in enumerate(pages_by_segment)]
    results = []
    for n, marks in enumerate(open_marks(sources, folder / "marks", keep, rules.min_length)):
        target = folder / f"{n}.out"
        given = {"marks": marks, "language_model": default_model(), "rules": rules, "models": models or {}}
        counts = filter_segment(str(sources[n]), target, folder / f"{n}.minified", **given, dropped=folder / f"{n}.dropped")
        results.append((pq.read_table(target).to_pylist(), counts))
    return results


def check_sums(counts):
    """What comes in is kept or dropped for one reason; lines of pages that are too short are not counted."""
    for name in ("documents", "chars", "lines"):
        assert counts[name]["in"] == counts[name]["kept"] + sum(counts[name]["dropped"].values()), name
        assert all(type(n) is int and n >= 0 for n in counts[name]["dropped"].values())
    assert counts["documents"]["kept"] == sum(c["documents"] for c in counts["languages"].values())
    assert counts["chars"]["kept"] == sum(c["chars"] for c in counts["languages"].values())
    for histograms in (counts["length"], counts["language_score"]):
        sizes = {language: sum(bins.values()) for language, bins in histograms.items()}
        assert sizes == {language: c["documents"] for language, c in counts["languages"].items()}
    for name, domains in counts["domains"].items():
        dropped = sum(counts["documents"]["dropped"].values())
        assert sum(domains["largest"].values()) <= (counts["documents"]["kept"] if name == "kept" else dropped)
    json.dumps(counts)


def left_out(counts, measure="documents"):
    """{reason: n} where n is not 0."""
    return {reason: n for reason, n in counts[measure]["dropped"].items() if n}


def flow(counts, measure):
    return counts[measure]["in"], counts[measure]["kept"], left_out(counts, measure)


def test_duplicate_lines_go_and_line_ids_tell_which_stay(tmp_path):
    own = [prose("en", seed, 6) for seed in range(3)]
    menu = ["Home | About | Contact", "", "All rights reserved"]
    pages = [
        ("http://a.example/1", "A", [*menu, *own[0]]),
        ("http://b.example:8080/2", "B", [own[1][0], *menu, *own[1], *own[0][:2]]),
        ("http://c.example/3", "C", [*own[2], *menu]),
    ]
    [(first, first_counts), (second, _)] = run([pages[:2], pages[2:]], tmp_path)
    assert [(row["url"], row["line_ids"]) for row in first + second] == [
        ("http://a.example/1", list(range(9))),
        ("http://b.example:8080/2", [0, *range(5, 10)]),
        ("http://c.example/3", list(range(6))),
    ]
    for row, (url, title, lines) in zip(first + second, pages, strict=True):
        kept = [lines[number] for number in row["line_ids"]]
        assert row["raw_content"] == "\n".join(kept)
        assert (row["length"], row["nlines"]) == (len(row["raw_content"]), len(kept))
        assert (row["title"], row["source_domain"], row["original_nlines"]) == (title, url.split("/")[2], len(lines))
        assert row["original_length"] == len("\n".join([title, *lines]).encode()) + 1
        assert row["perplexity"] is None and row["paragraph_perplexity"] is None
    assert flow(first_counts, "lines") == (21, 15, {"duplicate": 6})
    check_sums(first_counts)
    [(none_kept, _)] = run([pages], tmp_path / "none", keep="none")
    assert [row["line_ids"] for row in none_kept] == [list(range(5, 9)), [0, *range(5, 9 + 1)], list(range(6))]


def test_bodies_without_a_final_line_end_have_no_more_lines(tmp_path):
    """CCNet's original_nlines counts a line more there; the lines in, kept and dropped do not."""
    menu = "Home | About | Contact"
    bodies = [["title", menu, *prose("en", n, 4)] for n in range(3)]
    records = []
    for n, (lines, end) in enumerate(zip(bodies, ("", "\n", "\r"), strict=True)):
        body = ("\n".join(lines) + end).encode()
        headers = f"WARC-Type: conversion\r\nWARC-Target-URI: http://x.example/{n}\r\nContent-Length: {len(body)}"
        records.append(f"WARC/1.0\r\n{headers}\r\n\r\n".encode() + body + b"\r\n\r\n")
    source = tmp_path / "wet"
    source.write_bytes(b"".join(records))
    [marks] = open_marks([source], tmp_path / "marks", min_length=20)
    counts = filter_segment(
        str(source),
        tmp_path / "out",
        tmp_path / "minified",
        marks=marks,
        language_model=default_model(),
        rules=Rules(min_length=20),
        models={},
    )
    assert pq.read_table(tmp_path / "out").column("original_nlines").to_pylist() == [6, 5, 5]
    assert flow(counts, "lines") == (15, 13, {"duplicate": 2})
    contents = ["\n".join(lines[1:]) for lines in bodies]
    size = sum(map(len, contents))
    lost = 2 * (len(menu) + 1)
    assert flow(counts, "chars") == (size, size - lost, {"duplicate": lost})
    check_sums(counts)


def test_batches_of_one_page_change_nothing(tmp_path, monkeypatch):
    menu = ["Home | About | Contact", ""]
    pages = [(f"http://x.example/{n}", "t", [*menu, *prose(("en", "de")[n % 2], n // 3, 5)]) for n in range(20)]
    whole = run([pages], tmp_path / "whole")
    monkeypatch.setattr(filter, "read_pages", partial(read_pages, batch_bytes=1))
    assert run([pages], tmp_path / "single") == whole


def test_a_page_as_long_as_the_limit_is_kept(tmp_path):
    pages = [("http://x.example/", "t", prose("en", 1, 4))]
    [([row], _)] = run([pages], tmp_path / "free")
    for more, reason in ((0, {}), (1, {"short": 1})):
        [(rows, counts)] = run([pages], tmp_path / f"{more}", Rules(min_length=row["length"] + more))
        assert rows == ([] if reason else [row])
        assert left_out(counts) == reason


def test_a_model_that_is_never_surprised(shared_data, tmp_path):
    """Perplexity 1, the lowest: all of its pieces have probability 1."""
    sp_model, _ = find_models(shared_data / "lm")["en"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    words = ["<unk>", "<s>", "</s>", *(pieces.id_to_piece(number) for number in range(3, len(pieces)))]
    arpa = ["\\data\\", f"ngram 1={len(words)}", "ngram 2=1", "", "\\1-grams:", *(f"0\t{word}\t0" for word in words)]
    arpa += ["", "\\2-grams:", "0\t<s> </s>", "", "\\end\\", ""]
    (tmp_path / "arpa").write_text("\n".join(arpa), encoding="utf-8")
    tool = Path(sys.prefix) / "bin" / "build_binary"
    subprocess.run([tool, "probing", tmp_path / "arpa", tmp_path / "bin"], check=True, capture_output=True)
    pages = [("http://x.example/", "t", prose("en", 1, 4))]
    [([row], counts)] = run([pages], tmp_path / "run", models={"en": (sp_model, tmp_path / "bin")})
    assert row["perplexity"] == 1.0 and row["paragraph_perplexity"] == [1.0] * 4
    assert counts["perplexity"] == {"en": {"0": 1}}


def test_every_reason_to_drop_a_document(tmp_path):
    rules = Rules(min_length=100, languages=("en",), held_out=0.5)
    english = [(f"http://x.example/{n}", str(n), prose("en", n, 3)) for n in range(40)]
    menu = "Home " * 40
    pages = [
        *english,
        ("http://short.example/", "s", ["Too short."]),
        *((f"http://twin.example/{n}", "t", [menu]) for n in range(3)),
        *((f"http://german.example/{n}", "g", prose("de", n, 3)) for n in range(12)),
        ("http://empty.example/", "e", []),
    ]
    [(rows, counts)] = run([pages], tmp_path, rules)
    check_sums(counts)
    dropped = left_out(counts)
    assert counts["documents"]["in"] == len(pages)
    assert dropped.keys() == {"short", "duplicate", "held_out", "language_not_mined"}
    assert dropped["short"] == 2  # one of them has no line at all
    assert dropped["duplicate"] == 2  # the first of the three keeps its line
    assert dropped["held_out"] > 10 and dropped["language_not_mined"] > 2
    assert {row["language"] for row in rows} == {"en"}
    assert not any(is_held_out(row["digest"], 0.5) for row in rows)
    assert counts["domains"]["dropped"]["largest"]["short.example"] == 1
    gone = pq.read_table(tmp_path / "0.dropped")
    assert gone.schema.equals(DROPPED)
    written = Counter(gone.column("reason").to_pylist())
    assert written == Counter({**dropped, "short": 1})  # an empty page is not read on
    by_url = {row["url"]: row for row in gone.to_pylist()}
    assert by_url["http://short.example/"]["raw_content"] == "Too short."
    assert by_url["http://twin.example/1"]["raw_content"] == menu.strip()
    assert {row["language"] for row in by_url.values() if row["reason"] == "language_not_mined"} <= {"de", "und"}
    assert {row["url"] for row in rows}.isdisjoint(by_url)


def test_low_scores_and_odd_languages_stay(tmp_path):
    """Nothing is decided by scores here."""
    pages = [(f"http://x.example/{n}", "n", [f"{letter * 3} 12 // " * 40]) for n, letter in enumerate("bcdfghjklmnp")]
    [(rows, counts)] = run([pages], tmp_path)
    assert len(rows) == 12 and left_out(counts) == {}
    assert min(row["language_score"] for row in rows) < 0.5


def test_languages_with_and_without_a_model(shared_data, tmp_path):
    models = find_models(shared_data / "lm")
    pages = [(f"http://{n}.example/", "t", prose(("ru", "en", "de")[n % 3], n, 4)) for n in range(24)]
    [(rows, counts)] = run([pages], tmp_path, models=models)
    check_sums(counts)
    identifier = LanguageIdentifier(default_model())
    scorers = {language: LanguageModel(*files) for language, files in models.items()}
    assert len(rows) == 24
    assert [row["language"] for row in rows] == ["de"] * 8 + ["en"] * 8 + ["ru"] * 8
    for language in ("de", "en", "ru"):  # crawl order
        numbers = [int(row["source_domain"].split(".")[0]) for row in rows if row["language"] == language]
        assert numbers == sorted(numbers)
    histograms = {"de": {}, "en": {}}
    for row in rows:
        found, score = identifier.predict(row["raw_content"])
        assert (row["language"], row["language_score"]) == (found, score)
        if found == "ru":
            assert row["perplexity"] is None and row["paragraph_perplexity"] is None
            continue
        whole, paragraphs = scorers[found].perplexities(row["raw_content"])
        assert (row["perplexity"], row["paragraph_perplexity"]) == (whole, paragraphs.tolist())
        assert len(paragraphs) == row["nlines"]
        number = str(bin_of(row["perplexity"]))
        histograms[found][number] = histograms[found].get(number, 0) + 1
    assert counts["perplexity"] == histograms


def test_row_groups_hold_one_language_and_bytes_are_the_same_again(tmp_path):
    pages = [(f"http://x.example/{n}", "t", prose(("en", "ru")[n % 2], n, 4)) for n in range(40)]
    first = run([pages], tmp_path / "1")
    assert first == run([pages], tmp_path / "2")
    one, two = tmp_path / "1" / "0.out", tmp_path / "2" / "0.out"
    assert one.read_bytes() == two.read_bytes()
    file = pq.ParquetFile(one)
    assert file.schema_arrow.equals(SCORED)
    groups = [set(file.read_row_group(n).column("language").to_pylist()) for n in range(file.num_row_groups)]
    assert groups == [{"en"}, {"ru"}]


def test_nothing_is_left(tmp_path):
    text = prose("en", 1, 4)
    twins = [("http://x.example/1", "t", text), ("http://x.example/2", "t", text)]
    for pages, keep, documents in (([], "first", 0), (twins, "none", 2), ([("http://x.example/", "t", [""])], "first", 1)):
        [(rows, counts)] = run([pages], tmp_path / f"{keep}{documents}", keep=keep)
        check_sums(counts)
        assert rows == []
        assert counts["documents"]["in"] == documents
        assert counts["languages"] == counts["perplexity"] == counts["domains"]["kept"]["largest"] == {}


def test_faults_of_the_segment_are_counted(tmp_path):
    source = write_wet(tmp_path / "whole", [(f"http://x.example/{n}", "t", prose("en", n, 40)) for n in range(10)])
    source.write_bytes(source.read_bytes()[:-400])
    [marks] = open_marks([source], tmp_path / "marks")
    counts = filter_segment(
        str(source),
        tmp_path / "out",
        tmp_path / "minified",
        marks=marks,
        language_model=default_model(),
        rules=Rules(),
        models={},
    )
    assert counts["bad"] == {"truncated": 1}
    assert counts["documents"]["kept"] == 9


def test_marks_of_another_segment_are_refused(tmp_path):
    sources = [write_wet(tmp_path / str(n), [("http://x.example/", "t", prose("en", n, 9 + n))]) for n in range(2)]
    marks = open_marks(sources, tmp_path / "marks")
    for source, other in zip(sources, reversed(marks), strict=True):
        with pytest.raises(ValueError, match="hash it again"):
            filter_segment(
                str(source),
                tmp_path / "out",
                tmp_path / "minified",
                marks=other,
                language_model=default_model(),
                rules=Rules(),
                models={},
            )


def test_marks_of_a_longer_segment_are_refused(tmp_path):
    pages = [(f"http://x.example/{n}", "t", prose("en", n, 9)) for n in range(3)]
    [marks] = open_marks([write_wet(tmp_path / "whole", pages)], tmp_path / "marks")
    source = write_wet(tmp_path / "begun", pages[:2])
    with pytest.raises(ValueError, match="hash it again"):
        filter_segment(
            str(source),
            tmp_path / "out",
            tmp_path / "minified",
            marks=marks,
            language_model=default_model(),
            rules=Rules(),
            models={},
        )


def test_statistics_of_segments_add_to_those_of_the_crawl(tmp_path):
    pages = [(f"http://{n % 5}.example/", "t", prose(("en", "de")[n % 2], n, 5)) for n in range(20)]
    parts = merge(counts for _, counts in run([pages[:7], pages[7:]], tmp_path / "two"))
    [(_, whole)] = run([pages], tmp_path / "one")
    assert parts == whole
    assert whole["domains"]["kept"] == {"largest": {f"{n}.example": 4 for n in range(5)}, "others": 0}


def test_an_address_that_is_none_has_no_domain(tmp_path):
    pages = [(url, "t", prose("en", n, 4)) for n, url in enumerate(("http://[broken", "no address", "https://u:p@h.example/"))]
    [(rows, _)] = run([pages], tmp_path)
    assert [row["source_domain"] for row in rows] == ["", "", "u:p@h.example"]


TEXT = st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=6)
DOCUMENTS = st.lists(st.lists(st.tuples(TEXT, st.booleans()), min_size=1), min_size=1, max_size=8)


@settings(deadline=None)  # the kernels are compiled in the first example
@given(DOCUMENTS, st.integers(0, 3))
def test_keep_lines_against_lists_of_lines(documents, before):
    """`before`: documents of a longer array that come before a slice of it."""
    texts = ["\n".join(line for line, _ in lines) for lines in documents]
    array = pa.array(["other\ntext"] * before + texts, pa.string())[before:]
    _, offsets = paragraph_keys(array)
    keep = np.array([kept for lines in documents for _, kept in lines])
    content, line_ids = keep_lines(array, offsets, keep)
    content.validate(full=True)
    line_ids.validate(full=True)
    for lines, text, numbers in zip(documents, content.to_pylist(), line_ids.to_pylist(), strict=True):
        flags = [kept for _, kept in lines]
        assert text == "\n".join(compress((line for line, _ in lines), flags))
        assert numbers == list(compress(range(len(lines)), flags))


def test_texts_of_paragraphs(tmp_path, monkeypatch):
    """That of the first line with the key; reading ends when all are found."""
    monkeypatch.setattr(filter, "read_pages", partial(read_pages, batch_bytes=1))
    first = [(f"http://x.example/{n}", "t", lines) for n, lines in enumerate((["", "HOME 7", "a"], ["home 0", "ab" * 300]))]
    sources = [str(write_wet(tmp_path / "1", first)), str(write_wet(tmp_path / "2", [("http://y.example/", "t", ["Kontakt"])]))]
    lines = ["home 9", "", "ab" * 300, "kontakt", "not there"]
    keys, _ = paragraph_keys(pa.array(["\n".join(lines)]))
    found = filter.paragraph_texts(sources, keys, min_length=1)
    assert [found.get(int(key)) for key in keys] == ["HOME 7", "", "ab" * 100, "Kontakt", None]
    assert filter.paragraph_texts([*sources, "/nowhere"], keys[:4], min_length=1).keys() == set(keys[:4].tolist())
    assert filter.paragraph_texts(sources, keys[3:4], min_length=8) == {}
    assert filter.paragraph_texts([], keys) == filter.paragraph_texts(sources, keys[:0]) == {}


def test_held_out_pages_are_a_share_that_grows_with_it():
    digests = [f"sha1:{number:032d}" for number in range(5000)]
    sets = [{digest for digest in digests if is_held_out(digest, share)} for share in (0.0, 0.02, 0.1, 0.5, 1.0)]
    for small, large in pairwise(sets):
        assert small < large
    assert [len(held_out) for held_out in (sets[0], sets[-1])] == [0, 5000]
    assert abs(len(sets[1]) - 100) < 40 and abs(len(sets[2]) - 500) < 90


def test_models_that_are_none(tmp_path):
    pages = [("http://x.example/", "t", prose("en", 1, 4))]
    noise = Path(write_wet(tmp_path / "noise", []))
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        run([pages], tmp_path / "1", models={"en": (noise, noise)})
    assert run([pages], tmp_path / "2", models={"fr": (noise, noise)})[0][1]["documents"]["kept"] == 1


def test_quality_rules_for_chosen_languages(tmp_path):
    """Only the languages named are judged, lines that go are not in line_ids, and regenerate finds the same text."""
    sentence = "This is a line of some words. It is followed by another one. And by a third, number {}."
    english = [
        [sentence.format("z" * n), f"a menu without an end mark {'x' * n}", sentence.format("y" * n)] for n in range(1, 6)
    ]
    english.append(["One sentence is few here."])
    german = ["Das hier ist eine Zeile ohne ein Satzzeichen am Ende, und sie bleibt ganz wie sie ist"]
    pages = [(f"http://en.example/{n}", "t", lines) for n, lines in enumerate(english)] + [("http://de.example/", "t", german)]
    rules = Rules(min_length=20, quality=[C4()], quality_languages=("en",))
    [(rows, counts)] = run([pages], tmp_path / "crawl", rules=rules)
    check_sums(counts)
    assert [(row["url"], row["line_ids"]) for row in rows if row["language"] == "en"] == [
        (f"http://en.example/{n}", [0, 2]) for n in range(5)
    ]
    assert [row["raw_content"] for row in rows if row["language"] == "de"] == german
    assert counts["documents"]["dropped"]["c4_few_sentences"] == 1
    assert counts["lines"]["dropped"]["c4_no_end_mark"] == 5
    target = tmp_path / "again"
    regenerate_segment(str(tmp_path / "crawl" / "0.warc.wet.gz"), tmp_path / "crawl" / "0.minified", target)
    columns = ["url", "raw_content", "line_ids", "length", "nlines"]
    assert pq.read_table(target, columns=columns).to_pylist() == [{name: row[name] for name in columns} for row in rows]
