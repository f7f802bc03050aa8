"""The data stage against a slow and obvious version of it, on random small crawls."""

import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import prose
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wet_files import write_wet

import pipeline.stage
from benchmarks.obvious import Models, corpus, paragraph_key
from ccnet.language import default_model
from ccnet.train_lm import SAMPLE, train
from jobs.executor import attempt
from pipeline.__main__ import run
from pipeline.config import load

STAGES = ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup")
COMPARED = ("url", "raw_content", "line_ids", "language", "language_score", "perplexity", "bucket")
POOL = [
    "",
    "Home",
    "home!",
    "HOME",
    "Seite 1 von 20",
    "Seite 7 von 31",
    "１２",
    "Ωσ",
    "İ",
    "all rights reserved",
    "\u200b",
    "►",
]

lines = st.one_of(
    st.sampled_from(POOL),
    st.builds(lambda language, seed: prose(language, seed, 1)[0], st.sampled_from(["en", "de", "ru"]), st.integers(0, 12)),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=40),
)
pages = st.lists(lines, max_size=9)
crawls = st.lists(st.lists(pages, max_size=6), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with real models of one language, trained on a little text."""
    folder = tmp_path_factory.mktemp("lm")
    rows = [{"language": "en", "digest": str(n), "text": "\n".join(prose("en", n, 5))} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows, SAMPLE), folder / "sample")
    train("en", [folder / "sample"], folder / "en.sp.model", folder / "en.arpa.bin", vocab_size=300)
    (folder / "sample").unlink()
    return folder


def mined(folder: Path, crawl: list[list[list[str]]], models: Path, options: dict[str, object]) -> dict:
    """The stages' corpus, as `benchmarks.obvious.corpus` gives it."""
    (folder / "crawl").mkdir(parents=True)
    for number, segment in enumerate(crawl):
        page = ((f"http://x.example/{number}/{n}", "title", content) for n, content in enumerate(segment))
        write_wet(folder / "crawl" / f"{number}.warc.wet.gz", page)
    out = folder / "out"
    settings = [f"{key}={value}" for key, value in options.items()]
    config = load([f"out={out}", f"crawl.files=['{folder}/crawl/*.gz']", f"lm.dir={models}", *settings])
    for stage in STAGES:
        run(stage, config)
    found = {}
    for path in sorted((out / "corpus").rglob("*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            found.setdefault((row["language"], row["bucket"]), []).append({name: row[name] for name in COMPARED})
    return found


def stripped(crawl: list[list[list[str]]]) -> list[list[tuple[str, str]]]:
    return [
        [(f"http://x.example/{number}/{n}", "\n".join(line.strip() for line in content)) for n, content in enumerate(segment)]
        for number, segment in enumerate(crawl)
    ]


def check(crawl: list[list[list[str]]], models: Path, keep: str, min_length: int, **options: object) -> None:
    oracle = Models(str(default_model()), {"en": (str(models / "en.sp.model"), str(models / "en.arpa.bin"))})
    expected = corpus(stripped(crawl), oracle, keep=keep, min_length=min_length, threshold=0.2)
    options |= {"dedup.keep": keep, "crawl.min_length": min_length, "language.threshold": 0.2, "language.whole": "true"}
    with tempfile.TemporaryDirectory() as name:
        try:
            found = mined(Path(name), crawl, models, {**options, "max_removed": 1.0})
        except pipeline.stage.StageError as error:  # a crawl of which nothing is left is an error there
            assert "no document is left" in str(error) or "no page of" in str(error)
            found = {}
    assert {key: [row["url"] for row in rows] for key, rows in found.items()} == {
        key: [row["url"] for row in rows] for key, rows in expected.items()
    }
    for key, rows in expected.items():
        for row, other in zip(found[key], rows, strict=True):
            assert row.pop("language_score") == pytest.approx(other.pop("language_score"), abs=1e-5)  # summed in another order
            assert row == other


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    crawl=crawls,
    keep=st.sampled_from(["first", "none"]),
    min_length=st.sampled_from([0, 1, 20]),
    partitions=st.sampled_from([1, 2, 16]),
)
def test_random_crawls(models, monkeypatch, crawl, keep, min_length, partitions):
    """In this process, which takes less time than starting workers does."""
    here = lambda executor, job: ((name, attempt(job.work, unit)) for name, unit in job.units.items())  # noqa: E731
    monkeypatch.setattr(pipeline.stage, "run_units", here)
    check(crawl, models, keep, min_length, **{"dedup.partitions": partitions})


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    crawl=st.lists(st.lists(st.lists(lines, min_size=2, max_size=9), min_size=1, max_size=6), min_size=2, max_size=5),
    keep=st.sampled_from(["first", "none"]),
    partitions=st.sampled_from([1, 4, 16]),
    workers=st.integers(1, 5),
)
def test_random_crawls_with_workers(models, crawl, keep, partitions, workers):
    check(crawl, models, keep, 10, **{"dedup.partitions": partitions, "executor.workers": workers})


def test_the_obvious_key_is_ccnets():
    assert paragraph_key("hello") == 0xA2E8C5DC1DC6F4AA


def test_segments_in_another_order_keep_other_copies(models, tmp_path):
    """The order of the segments is the order of the files: what is kept first follows from it alone."""
    one, two = [["menu", *prose("en", 1, 4)]], [["menu", *prose("en", 2, 4)]]
    for number, crawl in enumerate(([one, two], [two, one])):
        check(crawl, models, "first", 1)
        found = mined(tmp_path / str(number), crawl, models, {"crawl.min_length": 1, "language.whole": "true"})
        kept = {row["url"]: row["line_ids"] for rows in found.values() for row in rows}
        assert kept == {"http://x.example/0/0": [0, 1, 2, 3, 4], "http://x.example/1/0": [1, 2, 3, 4]}
    shutil.rmtree(tmp_path / "0")
