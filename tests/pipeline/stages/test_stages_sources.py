"""The stage `sources`: from files as they are published to the corpus schema, and on to token shards."""

import json
from itertools import islice, product
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ccnet.schema import SOURCE_DOCUMENT
from pipeline.config import load
from pipeline.outputs import read_json
from pipeline.stage import Stage, StageError, unit_file
from pipeline.stages import SPECS
from pipeline.stages import sources as stage_sources

LINE = "This line has more than five words. It goes on. It ends here, number {}.\n"


def run(out: Path, **files):
    """Runs the stage; returns its result."""
    settings = [f"sources.files.{name}=[{','.join(map(str, paths))}]" for name, paths in files.items() if name != "more"]
    stage = Stage(SPECS["sources"], load([f"out={out}", "executor.workers=1", *settings, *files.get("more", [])]))
    with stage.opened():
        stage_sources.run(stage)
    return read_json(out / "records" / "sources.json")["result"]


def rows(result, out, source):
    tables = [pq.read_table(out / part["path"]) for part in result["parts"] if part["source"] == source]
    assert all(table.schema.equals(SOURCE_DOCUMENT) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def code(path, *contents):
    rows = [{"path": f"{n}.py", "content": content, "license": "mit"} for n, content in enumerate(contents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def given(tmp_path):
    """Files of three sources."""
    first = code(tmp_path / "1.jsonl", "a = 1\n", "# Copyright X\nb = 2\n", "c = 3\n")
    second = code(tmp_path / "2.jsonl", "b = 2\n", "d = 4\n", "a = 1\n")
    c4 = tmp_path / "c4.json"
    texts = ["".join(LINE.format(n + 10 * k) for k in range(4)) + "no mark\n" for n in range(10)] + ["too short."]
    pages = [json.dumps({"text": text, "url": f"http://x.org/{n}"}) for n, text in enumerate(texts)]
    c4.write_text("\n".join([*pages, "{"]))
    books = tmp_path / "books"
    books.mkdir()
    words = list(map("".join, islice(product("abcdefghij", repeat=4), 3000)))
    (books / "a.txt").write_text(" ".join(words))
    (books / "b.txt").write_text(" ".join(words[:2900] + ["x"] * 100))
    (books / "c.txt").write_text(" ".join(reversed(words)))
    return {
        "github": [first, second],
        "c4": [c4],
        "books": [books],
        "more": ["max_bad_fraction=0.1", "sources.quality={c4: [c4]}"],
    }


def test_three_sources(tmp_path, given):
    result = run(tmp_path / "out", **given)
    out = tmp_path / "out"
    files = rows(result, out, "github")
    assert [row["raw_content"] for row in files] == ["a = 1\n", "b = 2\n", "c = 3\n", "d = 4\n"]
    assert {(row["source"], row["bucket"], row["language"]) for row in files} == {("github", "all", "und")}
    assert [row["title"] for row in rows(result, out, "books")] == ["", ""]
    assert [row["url"] for row in rows(result, out, "books")] == ["a.txt", "c.txt"]
    documents = rows(result, out, "c4")
    assert len(documents) == 10 and documents[0]["raw_content"] == "".join(LINE.format(10 * k) for k in range(4)).rstrip("\n")
    assert documents[0]["line_ids"] == [0, 1, 2, 3] and documents[0]["nlines"] == 4 and documents[0]["original_nlines"] == 6
    statistics = result["statistics"]
    for counts in statistics.values():
        for measure in ("documents", "chars", "lines"):
            assert counts[measure]["in"] == counts[measure]["kept"] + sum(counts[measure]["dropped"].values())
    assert statistics["github"]["documents"] == {"in": 6, "kept": 4, "dropped": {"header": 0, "duplicate": 2}}
    assert statistics["github"]["chars"]["dropped"] == {"header": 14, "duplicate": 12}
    assert statistics["c4"]["bad"] == {"broken_record": 1} and statistics["c4"]["documents"]["dropped"]["c4_few_sentences"] == 1
    for source, counts in statistics.items():
        written = rows(result, out, source)
        assert counts["documents"]["kept"] == len(written)
        assert counts["chars"]["kept"] == sum(len(row["raw_content"]) for row in written)
        assert counts["lines"]["kept"] == sum(row["nlines"] for row in written)


def test_what_is_dropped_is_kept_on_request(tmp_path, given):
    out = tmp_path / "out"
    path = tmp_path / "c.jsonl"
    code(path, "a = 1\n", "x" * 2000)
    path.write_text(path.read_text() + json.dumps({"path": "g", "content": "g = 1\n", "license": "gpl-3.0"}))
    run(out, github=[path], c4=given["c4"], more=[*given["more"], "keep_dropped=true", "max_removed=1.0"])
    code_file, c4_file = (out / "dropped" / f"{name}.00000.sources.parquet" for name in ("github", "c4"))
    gone = pq.read_table(code_file, columns=["raw_content", "reason"]).to_pylist()
    assert [tuple(row.values()) for row in gone] == [("g = 1\n", "licence"), ("x" * 2000, "long_line")]
    assert pq.read_table(c4_file).column("reason").to_pylist() == ["c4_few_sentences"]


def test_a_file_more_leaves_the_others_units_alone(tmp_path, given):
    out = tmp_path / "out"
    run(out, **given)
    record = unit_file(out / "records" / "sources" / "read", "c4.00000", ".json")
    before = record.stat().st_mtime_ns
    third = code(tmp_path / "3.jsonl", "e = 5\n")
    result = run(out, **given | {"github": [*given["github"], third]})
    assert record.stat().st_mtime_ns == before
    assert [row["raw_content"] for row in rows(result, out, "github")][-1] == "e = 5\n"


def test_the_result_does_not_depend_on_the_units(tmp_path):
    """Large JSON lines are cut; duplicates go over all parts."""
    path = code(tmp_path / "large.jsonl", *(f"x = {n % 3000}\n" + "y = 'words and words'\n" * 20 for n in range(4000)))
    whole = run(tmp_path / "whole", github=[path])
    cut = run(tmp_path / "cut", github=[path], more=["sources.split_bytes=1048576"])
    assert len(whole["parts"]) == 1 and len(cut["parts"]) > 1
    assert rows(whole, tmp_path / "whole", "github") == rows(cut, tmp_path / "cut", "github")
    assert whole["statistics"]["github"]["documents"] == cut["statistics"]["github"]["documents"]
    assert cut["statistics"]["github"]["documents"]["dropped"]["duplicate"] == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"poems": ["x"]}, "no such source; there are c4"),
        ({"c4": ["none.json"]}, "none.json: no such file"),
        ({"c4": [__file__]}, "records are bad"),
        ({"books": [__file__, __file__]}, "named twice"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path, settings, message):
    with pytest.raises((ValueError, StageError), match=message):
        run(tmp_path / "out", **settings)


def test_no_source_is_named_twice():
    with pytest.raises(ValueError, match=r"tokenize.sources.books: sources.files names that source too"):
        load(["sources.files.books=[a]", "tokenize.sources.books=[b]"])
