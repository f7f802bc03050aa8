"""Documents to shards against SentencePiece itself; the split of a document."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tokens import tokenizer
from pipeline.tokens.documents import slices
from pipeline.tokens.encode import SPLITS, is_validation, tokenize_part
from pipeline.tokens.shards import Shard, ShardFiles


def write_part(path: Path, documents: list[tuple[str, str]]) -> Path:
    digests, texts = [d for d, _ in documents], [t for _, t in documents]
    pq.write_table(pa.table({"digest": pa.array(digests, pa.string()), "raw_content": pa.array(texts, pa.string())}), path)
    return path


def tokenize(folder: Path, parts: list[Path], model: Path, validation: float) -> tuple[dict[str, Any], dict[str, Shard]]:
    folder.mkdir()
    targets = {split: ShardFiles.of(folder / split) for split in SPLITS}
    counts = tokenize_part(
        [part for path in parts for part in slices(str(path), 1 << 30)], model, targets, validation=validation
    )
    return counts, {split: Shard(folder / split) for split in SPLITS}


def ids(shard: Shard) -> list[list[int]]:
    return [shard.document(i).tolist() for i in range(len(shard))]


@pytest.fixture(scope="module")
def documents(shared_data: Path) -> list[tuple[str, str]]:
    text = (shared_data / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8")[:300_000]
    odd = ["", " ", "\n", "  two  spaces \n\n", "日本語 🦙 \x00\x07", "ﬁ ligature é"]
    return [(f"sha1:{i}", text) for i, text in enumerate([*text.split("\n = "), *odd])]


@pytest.fixture(scope="module")
def model(documents: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "new.model"
    tokenizer.train((text for _, text in documents), path, vocab_size=800)
    return path


def test_ids_are_sentencepieces_and_eos(tmp_path: Path, documents: list[tuple[str, str]], model: Path) -> None:
    half = len(documents) // 2
    parts = [write_part(tmp_path / "0", documents[:half]), write_part(tmp_path / "1", documents[half:])]
    counts, shards = tokenize(tmp_path / "tokens", parts, model, 0.2)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    for split in SPLITS:
        mine = [text for digest, text in documents if is_validation(digest, 0.2) == (split == "validation")]
        expected = [[*processor.encode(text), 2] for text in mine]
        assert ids(shards[split]) == expected
        assert counts[split] == {
            "documents": len(mine),
            "tokens": sum(map(len, expected)),
            "bytes": sum(len(text.encode()) for text in mine),
            "chars": sum(map(len, mine)),
        }
        assert shards[split].vocabulary.tokenizer == tokenizer.digest(model)
        assert (shards[split].vocabulary.pieces, shards[split].vocabulary.eos) == (800, 2)
    assert len(documents) > counts["train"]["documents"] > counts["validation"]["documents"] > 0


def test_a_document_is_always_in_the_same_split(tmp_path: Path, documents: list[tuple[str, str]], model: Path) -> None:
    """In whatever order and company it comes; and its ids are the same."""
    some = documents[-60:]
    _, together = tokenize(tmp_path / "a", [write_part(tmp_path / "0", some)], model, 0.3)
    _, mixed = tokenize(
        tmp_path / "b", [write_part(tmp_path / "1", some[40:]), write_part(tmp_path / "2", some[:40])], model, 0.3
    )
    for split in SPLITS:
        assert sorted(ids(together[split])) == sorted(ids(mixed[split]))


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_takes_documents_in_and_none_out(digest: str, one: float, other: float) -> None:
    assert is_validation(digest, min(one, other)) <= is_validation(digest, max(one, other))
    assert not is_validation(digest, 0.0)
    assert is_validation(digest, 1.0)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_met(share: float) -> None:
    taken = sum(is_validation(f"sha1:{i}", share) for i in range(20_000))
    assert abs(taken - 20_000 * share) < 5 * (20_000 * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("validation", [0.0, 1.0])
def test_a_split_without_documents_is_an_empty_shard(tmp_path: Path, model: Path, validation: float) -> None:
    counts, shards = tokenize(tmp_path / "t", [write_part(tmp_path / "0", [("sha1:A", "some text")])], model, validation)
    empty = SPLITS[1 if validation == 0 else 0]
    assert counts[empty] == {"documents": 0, "tokens": 0, "bytes": 0, "chars": 0}
    assert len(shards[empty]) == 0


def test_no_documents_at_all(tmp_path: Path, model: Path) -> None:
    counts, _ = tokenize(tmp_path / "t", [write_part(tmp_path / "0", [])], model, 0.5)
    assert [counts[split]["tokens"] for split in SPLITS] == [0, 0]


def test_same_bytes_twice(tmp_path: Path, documents: list[tuple[str, str]], model: Path) -> None:
    part = write_part(tmp_path / "0", documents[:50])
    tokenize(tmp_path / "a", [part], model, 0.3)
    tokenize(tmp_path / "b", [part], model, 0.3)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
