"""The tokenizer's sample: shares, evenness, determinism; the table of characters and bytes a token."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens import tokenizer
from pipeline.tokens.sample import Sample, Stratum, fertility


def stratum(folder: Path, source: str, language: str, texts: list[str], files: int = 1) -> Stratum:
    paths = tuple(str(folder / f"{source}-{language}-{number}.parquet") for number in range(files))
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"raw_content": pa.array(texts[number::files], pa.string())}), path)
    return Stratum(source, language, paths, sum(map(len, texts)))


def drawn(sample: Sample) -> list[tuple[str, str, str]]:
    return [(stratum.source, stratum.language, text) for stratum, texts in sample.documents() for text in texts.to_pylist()]


@pytest.fixture
def strata(tmp_path: Path) -> list[Stratum]:
    return [
        stratum(tmp_path, "crawl", "de", [f"äöü {number:06}" for number in range(30_000)], files=3),
        stratum(tmp_path, "crawl", "en", [f"abc {number:06}" for number in range(10_000)]),
        stratum(tmp_path, "books", "en", [f"xyz {number:096}" for number in range(1_000)]),
    ]


def test_shares(strata: list[Stratum]) -> None:
    """Of all texts; and a source's within its languages, by their size."""
    sample = Sample(strata, {"crawl": 3.0, "books": 1.0}, 100_000)
    chars = Counter[tuple[str, str]]()
    for source, language, text in drawn(sample):
        chars[source, language] += len(text)
    assert chars["crawl", "de"] == pytest.approx(75_000 * 3 / 4, abs=10)
    assert chars["crawl", "en"] == pytest.approx(75_000 / 4, abs=10)
    assert chars["books", "en"] == pytest.approx(25_000, abs=100)
    assert drawn(sample) == drawn(sample)


def test_a_source_whose_size_is_not_known(strata: list[Stratum]) -> None:
    """It is counted, and then drawn from as if it had been known."""
    unknown = [replace(stratum, chars=None) for stratum in strata]
    shares = {"crawl": 3.0, "books": 1.0}
    assert drawn(Sample(unknown, shares, 100_000)) == drawn(Sample(strata, shares, 100_000))


def test_documents_are_spread_evenly(strata: list[Stratum]) -> None:
    numbers = [int(text[4:]) for _, _, text in drawn(Sample(strata[1:2], {"crawl": 1.0}, 1_000))]
    assert numbers == list(range(0, 10_000, 100))


def test_a_source_with_less_than_its_share_gives_all(strata: list[Stratum]) -> None:
    chars = Counter[str]()
    for source, _, text in drawn(Sample(strata, {"crawl": 1.0, "books": 9.0}, 200_000)):
        chars[source] += len(text)
    assert chars["books"] == strata[2].chars
    assert chars["crawl"] == pytest.approx(20_000, abs=20)


@given(lengths=st.lists(st.integers(0, 200), max_size=60), chars=st.integers(1, 5_000))
def test_the_size_is_met(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], chars: int) -> None:
    """Within the longest document, whatever the lengths."""
    one = stratum(tmp_path_factory.mktemp("sample"), "crawl", "en", ["x" * length for length in lengths])
    taken = sum(len(text) for _, _, text in drawn(Sample([one], {"crawl": 1.0}, chars)))
    assert abs(taken - min(chars, sum(lengths))) <= max([*lengths, 1])


def test_fertility(tmp_path: Path, strata: list[Stratum]) -> None:
    sample = Sample([*strata, stratum(tmp_path, "empty", "fr", [""])], {"crawl": 1.0, "books": 1.0, "empty": 1.0}, 30_000)
    texts = [text for _, _, text in drawn(sample)]
    tokenizer.train(texts, tmp_path / "model", vocab_size=290)
    rows = fertility(sample, tmp_path / "model")
    keys = [("books", "all"), ("books", "en"), ("crawl", "all"), ("crawl", "de"), ("crawl", "en")]
    assert [(row["source"], row["language"]) for row in rows] == [*keys, ("empty", "all"), ("empty", "fr")]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model"))
    for row in rows[:5]:
        mine = [text for s, language, text in drawn(sample) if s == row["source"] and row["language"] in (language, "all")]
        tokens = sum(map(len, processor.encode(mine)))
        assert row == {
            "source": row["source"],
            "language": row["language"],
            "documents": len(mine),
            "chars": sum(map(len, mine)),
            "bytes": len("".join(mine).encode()),
            "tokens": tokens,
            "chars_per_token": sum(map(len, mine)) / tokens,
            "bytes_per_token": len("".join(mine).encode()) / tokens,
        }
    assert (rows[5]["documents"], rows[5]["tokens"], rows[5]["bytes_per_token"]) == (1, 0, None)
