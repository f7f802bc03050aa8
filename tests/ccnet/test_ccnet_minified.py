"""Metadata of mined documents, and the documents again from it."""

import gzip
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import open_marks, prose
from hypothesis import given
from hypothesis import strategies as st
from wet_files import write_wet

from ccnet.filter import Rules, filter_segment
from ccnet.language import default_model
from ccnet.minified import MINIFIED, minify, pack_lines, read_minified, unpack_lines
from ccnet.perplexity import find_models
from ccnet.regenerate import regenerate_segment
from ccnet.schema import SCORED


@given(st.sets(st.one_of(st.integers(0, 50), st.integers(0, 3_000_000)), min_size=1))
def test_line_numbers_come_back(numbers: set[int]) -> None:
    ids = sorted(numbers)
    packed = pack_lines(np.array(ids, np.int32))
    assert list(unpack_lines(packed, ids[-1] + 1)) == ids
    assert list(unpack_lines(packed, ids[-1])) == ids[:-1]  # a page that has become shorter


def mined(sources: list[Path], folder: Path, models: dict[str, tuple[Path, Path]]) -> list[Path]:
    """The documents of each segment, and their metadata beside them."""
    targets = [folder / f"{number}.parquet" for number in range(len(sources))]
    for source, target, marks in zip(sources, targets, open_marks(sources, folder / "marks", min_length=20), strict=True):
        filter_segment(
            str(source),
            target,
            target.with_suffix(".min"),
            marks=marks,
            language_model=default_model(),
            rules=Rules(min_length=20),
            models=models,
        )
    return targets


def without_paragraphs(path: Path) -> pa.Table:
    return pq.read_table(path).drop_columns(["paragraph_perplexity"])


def pages(seed: int, number: int) -> list[tuple[str, str, list[str]]]:
    chosen = random.Random(seed)
    menu = ["Home", "", "Impressum", "About us"]
    return [
        (
            f"http://{chosen.choice('abc')}.example/{seed}/{n}",
            f"Title {n}",
            [*menu, *prose(chosen.choice(["en", "de"]), chosen.randrange(30), chosen.randrange(1, 9)), *menu[:2]],
        )
        for n in range(number)
    ]


def test_documents_come_back(tmp_path: Path) -> None:
    sources = [write_wet(tmp_path / f"{n}.wet.gz", pages(n, 30)) for n in range(3)]
    for source, target in zip(sources, mined(sources, tmp_path, {}), strict=True):
        counts = regenerate_segment(str(source), target.with_suffix(".min"), tmp_path / "again")
        assert without_paragraphs(tmp_path / "again").equals(without_paragraphs(target))
        assert len(pq.read_table(target)) > 15
        assert counts["documents"]["kept"] == len(pq.read_table(target)) and not any(counts["bad"].values())


def test_real_documents_come_back_from_less_than_60_bytes(shared_data: Path, tmp_path: Path) -> None:
    sources = sorted((shared_data / "crawl" / "segments").glob("*.gz"))[:1]
    [target] = mined(sources, tmp_path, find_models(shared_data / "lm"))
    metadata = target.with_suffix(".min")
    regenerate_segment(str(sources[0]), metadata, tmp_path / "again")
    assert without_paragraphs(tmp_path / "again").equals(without_paragraphs(target))
    documents = pq.read_table(target)
    assert documents.column("perplexity").null_count < len(documents) / 2
    assert metadata.stat().st_size <= 60 * len(documents)


def test_a_page_of_many_lines(tmp_path: Path) -> None:
    """Line numbers beyond 16 bits, in many runs."""
    letters = str.maketrans("0123456789", "abcdefghij")
    lines = [f"line {n} of a long page".translate(letters) if n % 3 else "again and again" for n in range(150_000)]
    source = write_wet(tmp_path / "long.wet.gz", [("http://a.example/", "Long", lines)])
    [target] = mined([source], tmp_path, {})
    regenerate_segment(str(source), target.with_suffix(".min"), tmp_path / "again")
    [row] = pq.read_table(tmp_path / "again").to_pylist()
    assert len(row["line_ids"]) == 100_001 and row["line_ids"][-1] == 149_999 and row["line_ids"][:3] == [0, 1, 2]
    assert without_paragraphs(tmp_path / "again").equals(without_paragraphs(target))


def test_pages_that_are_gone_or_changed(tmp_path: Path) -> None:
    before = pages(1, 20)
    source = write_wet(tmp_path / "before.wet.gz", before)
    [target] = mined([source], tmp_path, {})
    rows = pq.read_table(target).to_pylist()
    gone = next(page for page in before if page[0] == rows[3]["url"])
    content = source.read_bytes()
    write_wet(tmp_path / "after.wet.gz", [page for page in before if page != gone])
    counts = regenerate_segment(str(tmp_path / "after.wet.gz"), target.with_suffix(".min"), tmp_path / "again")
    assert counts["bad"] == {"page_missing": 1, "page_changed": 0}
    assert [row["url"] for row in pq.read_table(tmp_path / "again").to_pylist()] == [
        row["url"] for row in rows if row["url"] != gone[0]
    ]
    kept = rows[0]["raw_content"].split("\n")[0].encode()  # another letter under the digest of before
    assert content == source.read_bytes()
    source.write_bytes(gzip.compress(gzip.decompress(content).replace(kept, kept[:-2] + b"X" + kept[-1:])))
    counts = regenerate_segment(str(source), target.with_suffix(".min"), tmp_path / "again")
    assert counts["bad"]["page_changed"] >= 1 and counts["bad"]["page_missing"] == 0
    assert rows[0]["url"] not in pq.read_table(tmp_path / "again").column("url").to_pylist()


def test_files_that_are_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "metadata.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match="no minified metadata"):
        read_minified(path)
    pq.write_table(pa.table({"url": ["x"]}), path)
    with pytest.raises(ValueError, match="its columns are url"):
        read_minified(path)
    with pytest.raises(ValueError, match="no minified metadata"):
        read_minified(tmp_path / "missing")


def test_no_documents(tmp_path: Path) -> None:
    minify(SCORED.empty_table(), tmp_path / "none")
    assert read_minified(tmp_path / "none").schema.names == MINIFIED.names and not len(read_minified(tmp_path / "none"))
    write_wet(tmp_path / "empty.wet.gz", [])
    counts = regenerate_segment(str(tmp_path / "empty.wet.gz"), tmp_path / "none", tmp_path / "again")
    assert counts["documents"]["kept"] == 0 and pq.read_table(tmp_path / "again").schema.names == SCORED.names


def test_pages_whose_headers_have_the_same_digest(tmp_path: Path) -> None:
    """Digests come from headers, and these may say anything: no document is lost, or taken for another one."""
    source = write_wet(tmp_path / "same.wet.gz", pages(2, 12))
    content = gzip.decompress(source.read_bytes())
    source.write_bytes(gzip.compress(re.sub(rb"(WARC-Block-Digest:)[^\r]+", rb"\1 sha1:AAAA", content)))
    [target] = mined([source], tmp_path, {})
    assert len(pq.read_table(target)) > 5
    counts = regenerate_segment(str(source), target.with_suffix(".min"), tmp_path / "again")
    assert without_paragraphs(tmp_path / "again").equals(without_paragraphs(target))
    assert not any(counts["bad"].values())
