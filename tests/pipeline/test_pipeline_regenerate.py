"""A corpus again from the crawl and its metadata: the same bytes, without keys or models."""

import shutil
from pathlib import Path

import pytest
from road import run_bad, run_good

pytestmark = pytest.mark.slow


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def mined(shared_data, tmp_path_factory):
    """Two real segments, mined with real models; (folder, settings)."""
    out = tmp_path_factory.mktemp("regenerate") / "first"
    crawl = tmp_path_factory.mktemp("crawl")
    for source in sorted((shared_data / "crawl" / "segments").glob("*.gz"))[:2]:
        shutil.copyfile(source, crawl / source.name)
    settings = ["crawl=local", f"crawl.files=[{crawl}/*.gz]", f"lm.dir={shared_data / 'lm'}"]
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "near"):
        run_good(stage, out, *settings)
    return out, settings, crawl


@pytest.mark.parametrize("preset", ["corpus=parquet", "corpus=ccnet"])
def test_the_corpus_is_the_same_byte_for_byte(mined, preset, tmp_path):
    first, settings, _ = mined
    thresholds = [preset, "language.keep=[en,de,fr]", "language.threshold=0.6", "overwrite=true", "dedup.keep=first"]
    run_good("regroup", first, *settings, *thresholds)
    again = tmp_path / "again"
    for stage in ("fetch", "regenerate", "near", "regroup"):
        run_good(stage, again, *settings, *thresholds, f"regenerate.metadata={first / 'mine' / 'metadata'}")
    expected = files(first / "corpus")
    assert len(expected) >= 7
    assert files(again / "corpus") == expected
    assert not (again / "hash").exists()


def test_what_is_not_there_is_told(mined, tmp_path):
    first, settings, crawl = mined
    out, metadata = tmp_path / "out", f"regenerate.metadata={first / 'mine' / 'metadata'}"
    run_good("fetch", out, *settings)
    assert "regenerate.metadata is not given" in run_bad("regenerate", out, *settings)
    (tmp_path / "few").mkdir()
    shutil.copyfile(first / "mine" / "metadata" / "seg-00000.parquet", tmp_path / "few" / "seg-00000.parquet")
    told = run_bad("regenerate", out, *settings, f"regenerate.metadata={tmp_path / 'few'}")
    assert "no metadata of the segment seg-00001 (1 of 2 are missing)" in told
    one = tmp_path / "one"
    run_good("fetch", one, *settings, f"crawl.files=[{crawl}/seg-00000*.gz]")
    assert "has metadata of seg-00001" in run_bad("regenerate", one, *settings, metadata)
    swapped = tmp_path / "crawl"  # the same names, other pages
    swapped.mkdir()
    for ours, theirs in ((0, 1), (1, 0)):
        shutil.copyfile(crawl / f"seg-0000{theirs}.warc.wet.gz", swapped / f"seg-0000{ours}.warc.wet.gz")
    other = tmp_path / "other"
    run_good("fetch", other, *settings, f"crawl.files=[{swapped}/*.gz]")
    assert "page_missing" in run_bad("regenerate", other, *settings, metadata)
