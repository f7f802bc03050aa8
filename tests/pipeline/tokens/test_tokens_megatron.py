"""Token shards in the hands of Megatron-LM: its reader reads ours, and its builder writes the same bytes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.tokens.shards import Shard, ShardFiles, Vocabulary, dtype_for, write_shard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of kernels for GPUs, which readers don't need
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

EOS = 2


@pytest.fixture(params=[300, 65536, 128_256], ids=["small", "uint16", "int32"])
def case(request: pytest.FixtureRequest) -> tuple[int, list[np.ndarray]]:
    """(pieces, documents): the largest id among them, a document of eos alone, a long one."""
    pieces, random = request.param, np.random.default_rng(0)
    texts = [random.integers(3, pieces, n) for n in (5, 0, 1, 70_000, 33)] + [np.array([pieces - 1] * 3)]
    return pieces, [np.append(text, EOS) for text in texts]


def write(prefix: Path, pieces: int, documents: list[np.ndarray]) -> None:
    files = ShardFiles.of(prefix)
    write_shard(documents, files.bin, files.idx, dtype_for(pieces))
    Vocabulary("a" * 64, pieces, EOS).write(files.meta)


def test_megatron_reads_the_same_documents(tmp_path: Path, case: tuple[int, list[np.ndarray]]) -> None:
    pieces, documents = case
    write(tmp_path / "part", pieces, documents)
    theirs = IndexedDataset(str(tmp_path / "part"))
    assert theirs.index.dtype == (np.uint16 if pieces <= 65536 else np.int32)
    assert len(theirs) == len(documents)
    assert theirs.sequence_lengths.tolist() == [len(ids) for ids in documents]
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    for number, ids in enumerate(documents):
        np.testing.assert_array_equal(theirs[number], ids)
        assert theirs[number].dtype == dtype_for(pieces)
    np.testing.assert_array_equal(theirs.get(3, offset=60_000, length=100), documents[3][60_000:60_100])


def test_megatron_writes_the_same_bytes(tmp_path: Path, case: tuple[int, list[np.ndarray]]) -> None:
    pieces, documents = case
    write(tmp_path / "ours", pieces, documents)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype_for(pieces).type)
    for ids in documents:
        builder.add_document(torch.from_numpy(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_ours_reads_what_megatron_wrote(tmp_path: Path, case: tuple[int, list[np.ndarray]]) -> None:
    pieces, documents = case
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype_for(pieces).type)
    for ids in documents:
        builder.add_document(torch.from_numpy(ids), [len(ids)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    Vocabulary("a" * 64, pieces, EOS).write(tmp_path / "theirs.json")
    shard = Shard(tmp_path / "theirs")
    assert [shard.document(n).tolist() for n in range(len(shard))] == [ids.tolist() for ids in documents]
