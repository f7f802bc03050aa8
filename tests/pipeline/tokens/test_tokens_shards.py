"""Token shards against a reader of Megatron's format that unpacks every field by itself, and broken shards."""

import gc
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens.shards import Shard, ShardFiles, Vocabulary, dtype_for, write_shard

UINT16, INT32 = np.dtype("<u2"), np.dtype("<i4")


def write(prefix: Path, documents: list[list[int]], dtype: np.dtype = UINT16, pieces: int = 32000) -> dict[str, int]:
    files = ShardFiles.of(prefix)
    counts = write_shard((np.array(ids, np.int64) for ids in documents), files.bin, files.idx, dtype)
    Vocabulary("a" * 64, pieces, 2).write(files.meta)
    return counts


def read_plainly(prefix: Path) -> tuple[str, list[list[int]]]:
    """Megatron's index field by field: (struct code of an id, documents)."""
    index = Path(f"{prefix}.idx").read_bytes()
    data = Path(f"{prefix}.bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    (version,) = struct.unpack_from("<Q", index, 9)
    assert version == 1
    code = {4: "i", 8: "H"}[index[17]]
    sequences, indices = struct.unpack_from("<QQ", index, 18)
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    starts = struct.unpack_from(f"<{indices}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * indices
    assert list(starts) == list(range(sequences + 1))  # each document is one sequence
    assert len(data) == struct.calcsize(f"<{code}") * sum(lengths)
    return code, [list(struct.unpack_from(f"<{n}{code}", data, at)) for n, at in zip(lengths, pointers, strict=True)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65535), max_size=20), max_size=20), st.sampled_from([UINT16, INT32]))
def test_reads_back(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: np.dtype) -> None:
    prefix = tmp_path_factory.mktemp("shard") / "part-00000"
    assert write(prefix, documents, dtype) == {"documents": len(documents), "tokens": sum(map(len, documents))}
    assert read_plainly(prefix) == ({UINT16: "H", INT32: "i"}[dtype], documents)
    shard = Shard(prefix)
    assert len(shard) == len(documents)
    assert [shard.document(i).tolist() for i in range(len(shard))] == documents
    assert shard.tokens.dtype == dtype
    assert shard.tokens.tolist() == [token for ids in documents for token in ids]
    assert shard.vocabulary == Vocabulary("a" * 64, 32000, 2)


def test_empty_shard(tmp_path: Path) -> None:
    assert write(tmp_path / "none", []) == {"documents": 0, "tokens": 0}
    assert (tmp_path / "none.bin").stat().st_size == 0
    shard = Shard(tmp_path / "none")
    assert (len(shard), len(shard.tokens)) == (0, 0)


def test_dtype_follows_the_vocabulary() -> None:
    assert dtype_for(65536) == UINT16
    assert dtype_for(65537) == INT32


def test_ids_of_a_large_vocabulary(tmp_path: Path) -> None:
    write(tmp_path / "large", [[128255, 2], [0, 70000, 2]], dtype_for(128256), 128256)
    assert read_plainly(tmp_path / "large") == ("i", [[128255, 2], [0, 70000, 2]])


@pytest.mark.parametrize(("ids", "worst"), [([1, 65536], 65536), ([-1, 3], -1)])
def test_an_id_that_does_not_fit(tmp_path: Path, ids: list[int], worst: int) -> None:
    with pytest.raises(ValueError, match=f"^token id {worst} does not fit .*uint16"):
        write(tmp_path / "wrong", [ids])


def test_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, [[5, 6, 2], [7, 2]])
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def broken(prefix: Path) -> str:
    with pytest.raises(ValueError) as error:
        Shard(prefix)
    message = str(error.value)
    assert "\n" not in message
    assert str(prefix) in message
    return message


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write(tmp_path / "part", [[5, 6, 7, 2], [8, 2], [9, 10, 2]])
    return tmp_path / "part"


@pytest.mark.parametrize("kept", [0, 1, 8, 16, 17])
def test_truncated_bin(prefix: Path, kept: int) -> None:
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:kept])
    assert f"part.bin: truncated: {kept} bytes, the index speaks of 18" in broken(prefix)


def test_bin_of_another_shard(prefix: Path) -> None:
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes() + b"\x00\x00")
    assert "does not match its index" in broken(prefix)


@pytest.mark.parametrize("kept", range(0, 34 + 3 * 12 + 4 * 8))
def test_truncated_idx(prefix: Path, kept: int) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:kept])
    assert f"part.idx: {'truncated: ' if kept < 34 else ''}{kept} bytes" in broken(prefix)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(0, 0x00, "not an index of Megatron's format"), (9, 2, "version 1"), (17, 5, "dtype code 5")],
)
def test_wrong_header(prefix: Path, at: int, value: int, said: str) -> None:
    path = Path(f"{prefix}.idx")
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)
    assert said in broken(prefix)


def test_absurd_lengths_in_the_index(prefix: Path) -> None:
    path = Path(f"{prefix}.idx")
    data = bytearray(path.read_bytes())
    struct.pack_into("<QQ", data, 18, 2**63, 2**62)
    path.write_bytes(data)
    assert "its header speaks of" in broken(prefix)


@pytest.mark.parametrize("indices", [3, 5])
def test_an_index_that_is_not_one_sequence_a_document(prefix: Path, indices: int) -> None:
    path = Path(f"{prefix}.idx")
    data = path.read_bytes()[: 34 + 36] + bytes(8 * indices)
    path.write_bytes(data[:26] + struct.pack("<Q", indices) + data[34:])
    assert Shard(prefix).tokens.tolist() == [5, 6, 7, 2, 8, 2, 9, 10, 2]  # Megatron groups sequences so; tokens are the same


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_missing_file(prefix: Path, suffix: str) -> None:
    Path(f"{prefix}{suffix}").unlink()
    assert f"part{suffix}: no such file" in broken(prefix)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"tokenizer": "a", "pieces": 5}', "\x00\x01"])
def test_wrong_description(prefix: Path, text: str) -> None:
    Path(f"{prefix}.json").write_text(text)
    assert "not the description of a token shard" in broken(prefix)


def test_more_pieces_than_the_dtype_has(prefix: Path) -> None:
    path = Path(f"{prefix}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pieces": 65537}))
    assert "65537 pieces do not fit" in broken(prefix)


def test_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    write(tmp_path / "part", [[5, 6, 2]])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    shards = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
        for _ in range(100):
            shards.append(Shard(tmp_path / "part"))
            assert shards[-1].tokens.tolist() == [5, 6, 2]
            assert shards[-1].lengths.tolist() == [3]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert maps(tmp_path) == 200
    kept = shards[0].document(0)
    del shards
    gc.collect()
    assert maps(tmp_path) == 1  # a view keeps what it is of
    assert kept.tolist() == [5, 6, 2]
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def maps(folder: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(folder))
