"""mine and regroup on a small crawl: other rules need neither the crawl nor a model, and nothing is lost on the way."""

import gzip
import json
import shutil
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import prose
from wet_files import write_wet

from ccnet.schema import DOCUMENT, DROPPED
from ccnet.train_lm import SAMPLE, train
from pipeline.__main__ import main
from pipeline.outputs import read_json

pytestmark = pytest.mark.slow
BEFORE = ("fetch", "hash", "dedup", "lm", "mine", "near")
MENU = ["Home | About | Contact", "All rights reserved"]


def pages(segment):
    """English, German and Russian prose below a menu, two that are the same, one that is short, one of no language."""
    url = f"http://{segment}.example"
    return [
        *((f"{url}/{n}", f"p{n}", [*MENU, *prose(("en", "de", "ru")[n % 3], 100 * segment + n, 5)]) for n in range(18)),
        (f"{url}/twin", "twin", prose("en", 1000, 6)),
        (f"{url}/short", "short", ["Too short."]),
        (f"{url}/noise", "noise", [f"{'bcd'[segment] * 3} 12 // " * 40]),
    ]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """The folder of a crawl that is mined: `out` below it; and the overrides."""
    folder = tmp_path_factory.mktemp("mined")
    (folder / "lm").mkdir()
    for language in ("en", "de"):
        rows = [{"language": language, "digest": str(n), "text": "\n".join(prose(language, 5000 + n, 8))} for n in range(40)]
        pq.write_table(pa.Table.from_pylist(rows, SAMPLE), folder / "sample")
        train(language, [folder / "sample"], folder / f"lm/{language}.sp.model", folder / f"lm/{language}.arpa.bin")
    for segment in range(3):
        write_wet(folder / f"seg-{segment}.warc.wet.gz", pages(segment))
    overrides = [
        f"crawl.files=[{folder}/*.warc.wet.gz]",
        "crawl.min_length=50",
        "dedup.partitions=2",
        f"lm.dir={folder}/lm",
        "keep_dropped=true",
        "executor.workers=1",
    ]
    for stage in BEFORE:
        assert main([stage, *overrides, f"out={folder}/out"]) == 0
    return folder, overrides


@pytest.fixture
def run(mined, tmp_path):
    """Runs a stage on a copy of that crawl's outputs, the crawl and the models being out of reach."""
    folder, overrides = mined
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    hidden = [override.replace(str(folder), "/nowhere") for override in overrides]

    def regroup(*more, stage="regroup"):
        code = main([stage, *hidden, f"out={out}", *more])
        path = out / "records" / f"{stage}.json"
        return code, read_json(path)["result"] if path.exists() else None

    return out, regroup


def documents(out, result):
    return [row for part in result["parts"] for row in pq.read_table(out / part["path"]).to_pylist()]


def test_every_page_is_in_the_corpus_or_dropped_for_a_reason(run):
    out, regroup = run
    code, result = regroup("dedup.min_length=200", "language.keep=[en,de]")
    assert code == 0
    kept = documents(out, result)
    assert all(pq.read_schema(out / part["path"]).equals(DOCUMENT) for part in result["parts"])
    files = sorted((out / "dropped").glob("*.parquet"))
    assert len(files) == 6 and all(pq.read_schema(path).equals(DROPPED) for path in files)
    dropped = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len(kept) + len(dropped) == len({row["url"] for row in kept + dropped}) == 63
    reasons = Counter(row["reason"] for row in dropped)
    assert reasons == {reason: n for reason, n in result["funnel"]["documents"]["dropped"].items() if n}
    assert set(reasons) == {"short", "duplicate", "language_score", "language_not_kept"}
    assert reasons["short"] == 3 and reasons["duplicate"] == 2 and reasons["language_not_kept"] >= 18
    for measure, counts in result["funnel"].items():
        assert counts["in"] == counts["kept"] + sum(counts["dropped"].values()), measure
    assert result["funnel"]["documents"]["kept"] == len(kept)
    assert result["funnel"]["chars"]["kept"] == sum(row["length"] for row in kept)
    assert Counter((row["language"], row["bucket"]) for row in kept) == {
        (language, bucket): counts["documents"]
        for language, buckets in result["buckets"].items()
        for bucket, counts in buckets.items()
    }


def test_other_rules_change_the_corpus_alone(run):
    """Threshold, keep list, percentiles, lengths, rounding and layout: the mined documents stay, and no model is read."""
    out, regroup = run
    before = {path: path.stat().st_mtime_ns for path in (out / "mine").iterdir()}
    assert regroup()[0] == 0
    for more, good in (
        (["language.threshold=0.9"], lambda row: row["language_score"] >= 0.9),
        (["language.keep=[de]"], lambda row: row["language"] == "de"),
        (["dedup.min_length=400"], lambda row: row["length"] >= 400),
        (["corpus.rounded=true"], lambda row: row["language_score"] * 100 == pytest.approx(round(row["language_score"] * 100))),
        (["bucket.percentiles=[1,99]", "language.keep=[en]"], lambda row: row["language"] == "en"),
    ):
        code, result = regroup(*more, "overwrite=true")
        assert code == 0 and result["parts"]
        assert all(good(row) for row in documents(out, result)), more
    assert {bucket: counts["documents"] for bucket, counts in result["buckets"]["en"].items()}["middle"] > 15
    assert result["cutoffs"]["en"]["percentiles"] == [1, 99]
    assert {path: path.stat().st_mtime_ns for path in (out / "mine").iterdir()} == before


def test_another_rule_needs_a_word(run, capsys):
    _, regroup = run
    assert regroup()[0] == 0
    assert regroup("language.threshold=0.9")[0] == 1
    assert "language.threshold is 0.9 now and was 0.5" in capsys.readouterr().err


def test_files_as_ccnet_has_them(run):
    out, regroup = run
    code, result = regroup("corpus.layout=ccnet", "bucket.cutoffs=released")
    assert code == 0
    assert sorted(part["path"] for part in result["parts"]) == sorted(
        str(p.relative_to(out)) for p in (out / "corpus").iterdir()
    )
    assert {part["path"] for part in result["parts"] if part["language"] == "ru"} == {"corpus/ru_all_0000.json.gz"}
    assert all(cut["model"] is None for cut in result["cutoffs"].values())
    for part in result["parts"]:
        with gzip.open(out / part["path"], "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        assert {(row["language"], row["bucket"]) for row in rows} == {(part["language"], part["bucket"])}


def test_a_step_that_removes_nearly_all_stops(run, mined, capsys):
    out, regroup = run
    assert regroup("language.threshold=1", "max_removed=0.9")[0] == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: regroup: it removes") and "language_score" in line and "max_removed=0.9" in line
    assert regroup("language.keep=[ru]", "max_removed=0.2", "overwrite=true")[0] == 0  # what the user chose is no mistake

    _, overrides = mined
    assert main(["mine", *overrides, f"out={out}", "language.mine=[en]", "overwrite=true", "max_removed=0.001"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: mine: it removes") and "duplicate" in line
    assert main(["mine", *overrides, f"out={out}", "language.mine=[en]"]) == 0
    assert "mine: " not in capsys.readouterr().err  # its units were done


def test_only_the_languages_that_are_mined(mined, tmp_path):
    folder, overrides = mined
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    for stage in ("lm", "mine", "regroup"):
        assert main([stage, *overrides, f"out={out}", "language.mine=[de]", "overwrite=true"]) == 0
    result = read_json(out / "records/regroup.json")["result"]
    assert {row["language"] for row in documents(out, result)} == {"de"}
    assert result["funnel"]["documents"]["dropped"]["language_not_mined"] > 30


def test_a_new_segment_is_taken_in_and_only_it(mined, tmp_path, capsys):
    """Also where others were finished before: the result is that of a run that begins with all of them."""
    folder, overrides = mined
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for path in sorted(folder.glob("*.wet.gz")):
        shutil.copy2(path, crawl)
    more = [*overrides, f"crawl.files=[{crawl}/*.warc.wet.gz]"]
    stages = (*BEFORE, "regroup")
    for stage in stages:
        assert main([stage, *more, f"out={tmp_path}/grown"]) == 0
    write_wet(crawl / "seg-9.warc.wet.gz", [(url.replace("2.", "9."), *page) for url, *page in pages(2)])
    capsys.readouterr()
    for stage in stages:
        assert main([stage, *more, f"out={tmp_path}/grown"]) == 0
        assert main([stage, *more, f"out={tmp_path}/fresh", "executor.workers=2"]) == 0
        done = capsys.readouterr().err
        if stage in ("hash", "mine"):
            assert f"{stage}: 1 units" in done and f"{stage}: 4 units" in done
    grown, fresh = (read_json(tmp_path / out / "records/regroup.json") for out in ("grown", "fresh"))
    assert (grown["digest"], grown["outputs"]) == (fresh["digest"], fresh["outputs"])


def test_texts_of_frequent_paragraphs(mined):
    folder, _ = mined
    found = read_json(folder / "out/records/mine.json")["result"]["frequent"]
    assert all(row["documents"] == 54 for row in found if row["text"] in MENU)
    assert [row["documents"] for row in found] == sorted((row["documents"] for row in found), reverse=True)
