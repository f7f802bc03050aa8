"""Bad input, through the real command line: one clear line, or counted and passed over; what was finished stays."""

import gzip

import pytest
from road import run, run_bad, run_good
from wet_files import write_wet

from pipeline.outputs import read_json

WORDS = ["river", "bread", "library", "weather", "morning", "window", "garden", "paper", "number", "engine"]
WORDS += ["letter", "season", "market", "music", "village"]


def page(number: int, language: str = "en") -> tuple[str, str, list[str]]:
    """A page of prose of its own, long enough to be kept."""
    lines = [
        f"The {WORDS[(number + k) % 15]} of the {WORDS[(number * 7 + k * 3) % 15]} was seen by {number * 31 + k} people"
        f" before the {WORDS[(number * 5 + k) % 15]} came back to town."
        for k in range(12)
    ]
    return f"https://site-{number}.example/{language}", f"Page {number}", lines


@pytest.fixture
def crawl(tmp_path):
    for segment in range(3):
        write_wet(tmp_path / f"seg-{segment}.warc.wet.gz", [page(segment * 40 + n) for n in range(40)])
    return tmp_path


def local(folder, *more):
    return ["crawl=local", f"crawl.files=[{folder}/*.warc.wet.gz]", *more]


def statistics(out, stage):
    return read_json(out / "records" / f"{stage}.json")["result"]["statistics"]


def test_a_missing_file(tmp_path):
    assert "nothing-here.warc.wet.gz: no such file" in run_bad(
        "fetch", tmp_path / "out", "crawl=local", f"crawl.files=[{tmp_path}/nothing-here.warc.wet.gz]"
    )
    assert "crawl.files is empty" in run_bad("fetch", tmp_path / "out", "crawl=local")


def test_a_stage_whose_input_is_not_there(tmp_path):
    assert "mine reads what fetch writes" in run_bad("mine", tmp_path / "out")


def test_an_empty_crawl(tmp_path):
    write_wet(tmp_path / "empty.warc.wet.gz", [])
    out = tmp_path / "out"
    run_good("fetch", out, *local(tmp_path))
    assert "no page of 300 characters or more in 1 segments (0 pages)" in run_bad("hash", out, *local(tmp_path))


def test_a_crawl_of_records_that_are_all_refused(tmp_path, shared_data):
    out, crawl = tmp_path / "out", ["crawl=local", f"crawl.files=[{shared_data}/crawl/odd/giant_html.warc.gz]"]
    run_good("fetch", out, *crawl)
    assert "(0 pages, too_large 1)" in run_bad("hash", out, *crawl, "max_bad_fraction=1")


def test_a_wet_file_cut_in_the_middle_costs_what_is_behind_the_cut(crawl):
    cut = crawl / "seg-1.warc.wet.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    out = crawl / "out"
    run_good("fetch", out, *local(crawl))
    run_good("hash", out, *local(crawl))
    read = statistics(out, "hash")
    assert read["bad"] == {"truncated": 1}
    assert 90 <= read["pages_read"] < 120
    run_good("dedup", out, *local(crawl))


def test_a_segment_that_is_garbage_is_counted_and_too_many_bad_records_fail(crawl):
    (crawl / "seg-9.warc.wet.gz").write_bytes(gzip.compress(b"no crawl at all\n" * 1000))
    out = crawl / "out"
    run_good("fetch", out, *local(crawl))
    assert "not_a_crawl_file 1" in run_bad("hash", out, *local(crawl, "max_bad_fraction=0"))
    run_good("hash", out, *local(crawl))
    assert statistics(out, "hash")["bad"] == {"not_a_crawl_file": 1}


def test_a_new_file_is_taken_in_and_only_it(crawl):
    out = crawl / "out"
    for stage in ("fetch", "hash", "dedup"):
        run_good(stage, out, *local(crawl))
    write_wet(crawl / "seg-3.warc.wet.gz", [page(n) for n in range(100, 160)])
    run_good("fetch", out, *local(crawl))
    assert "fetch is newer than that: run hash first" in run_bad("lm", out, *local(crawl))
    done = run("hash", out, *local(crawl))
    assert done.returncode == 0 and "hash: 1 units" in done.stderr
    assert len(read_json(out / "records/hash.json")["result"]["segments"]) == 4


@pytest.mark.slow
def test_a_language_without_documents(crawl):
    out = crawl / "out"
    more = local(crawl, "language.keep=[xx]")
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "near"):
        run_good(stage, out, *more)
    line = run_bad("regroup", out, *more)
    assert "no document is left" in line and "language_not_kept" in line


@pytest.mark.slow
def test_a_vocabulary_larger_than_the_text_allows(crawl):
    out = crawl / "out"
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup"):
        run_good(stage, out, *local(crawl))
    assert "tokenizer.vocab_size=30000" in run_bad(
        "tokenizer", out, *local(crawl, "tokenizer.vocab_size=30000", "model.vocab_size=30000")
    )


@pytest.mark.slow
def test_a_model_file_that_is_no_model(crawl):
    out = crawl / "out"
    wrong = crawl / "lid.bin"
    wrong.write_bytes(b"not a model")
    for stage in ("fetch", "hash", "dedup"):
        run_good(stage, out, *local(crawl))
    assert "lid.bin" in run_bad("lm", out, *local(crawl, f"language.model={wrong}"))
