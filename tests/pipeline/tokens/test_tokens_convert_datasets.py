"""Token shards to Hugging Face datasets and back: the same ids, the same bytes."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.__main__ import main
from pipeline.tokens import convert_datasets, tokenizer
from pipeline.tokens.convert_datasets import export_shards, import_shard
from pipeline.tokens.shards import Shard, ShardFiles, Vocabulary, dtype_for, write_shard

EOS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer.train(["The river of the library. " * 50, "Bread, windows and 13 gardens. " * 50], path, vocab_size=300)
    return path


def write(prefix: Path, texts: list[list[int]], model: Path) -> Path:
    pieces = tokenizer.load(model).get_piece_size()
    files = ShardFiles.of(prefix)
    write_shard((np.array([*text, EOS]) for text in texts), files.bin, files.idx, dtype_for(pieces))
    Vocabulary(tokenizer.digest(model), pieces, EOS).write(files.meta)
    return prefix


@pytest.fixture(params=[1 << 22, 7])
def row_group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_datasets, "ROW_GROUP_TOKENS", request.param)
    monkeypatch.setattr(convert_datasets, "BATCH", request.param)


def test_there_and_back_through_datasets(tmp_path: Path, model: Path, row_group: None) -> None:
    random = np.random.default_rng(0)
    texts = [random.integers(3, 300, random.integers(0, 20)).tolist() for _ in range(100)] + [[], [299] * 50, []]
    shards = [
        write(tmp_path / "a", texts[:40], model),
        write(tmp_path / "none", [], model),
        write(tmp_path / "b", texts[40:], model),
    ]
    assert export_shards(shards, tmp_path / "out.parquet") == len(texts)
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert rows.column_names == ["input_ids"]
    assert list(rows["input_ids"]) == [[*text, EOS] for text in texts]
    rows.to_parquet(tmp_path / "back.parquet")
    write(tmp_path / "whole", texts, model)
    for file in ("out.parquet", "back.parquet"):
        assert import_shard([tmp_path / file], model, tmp_path / "new") == {
            "documents": len(texts),
            "tokens": sum(map(len, texts)) + len(texts),
        }
        for suffix in (".bin", ".idx", ".json"):
            assert (tmp_path / f"whole{suffix}").read_bytes() == (tmp_path / f"new{suffix}").read_bytes()


def test_a_data_set_that_was_made_elsewhere(tmp_path: Path, model: Path) -> None:
    """int64 ids in large lists, sliced, without eos, with null."""
    texts = [[5, 6, 7], [], [8, EOS], None, [9]]
    table = pa.table({"input_ids": pa.array([[1]] * 3 + texts, pa.large_list(pa.int64())), "other": list("abcdefgh")})
    pq.write_table(table.slice(3), tmp_path / "theirs.parquet")
    import_shard([tmp_path / "theirs.parquet"] * 2, model, tmp_path / "part")
    shard = Shard(tmp_path / "part")
    assert [shard.document(n).tolist() for n in range(len(shard))] == [[5, 6, 7, EOS], [EOS], [8, EOS], [EOS], [9, EOS]] * 2


def test_errors_are_one_clear_line(tmp_path: Path, model: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"input_ids": [[0.5]]}), tmp_path / "floats.parquet")
    pq.write_table(pa.table({"input_ids": [[5, 300]]}), tmp_path / "large.parquet")
    pq.write_table(pa.table({"input_ids": [[5, -1]]}), tmp_path / "negative.parquet")
    pq.write_table(pa.table({"input_ids": [[5, None]]}), tmp_path / "holes.parquet")
    (tmp_path / "prose.parquet").write_text("not a Parquet file at all")
    cases = {
        "prose": "no Parquet file",
        "text": "no column input_ids",
        "floats": "no column input_ids",
        "large": "id 300;.*300 pieces",
        "negative": "id -1;",
        "holes": "1 ids are missing",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=f"{name}.parquet: {message}"):
            import_shard([tmp_path / f"{name}.parquet"], model, tmp_path / "part")
    with pytest.raises(ValueError, match=r"nowhere.bin: no such file"):
        export_shards([tmp_path / "nowhere"], tmp_path / "out.parquet")


def test_command_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, texts in (("a-0", [[5, 6], [7]]), ("a-1", [[8]]), ("whole", [[5, 6], [7], [8]])):
        write(tmp_path / name, texts, model)

    def command(*settings: str) -> str:
        """What the command prints, or the line of its error."""
        code = main(["convert_tokens", *settings])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "") or (code == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1)
        return out or err

    parquet, shard = tmp_path / "out" / "a.parquet", tmp_path / "in" / "b.bin"
    assert command(f"source={tmp_path}/a-*.bin", f"target={parquet}") == f"{parquet}: 3 documents\n"
    back = [f"source={parquet}", f"target={shard}"]
    assert "tokenizer is not given" in command(*back)
    assert command(*back, f"tokenizer={model}") == f"{shard}: 3 documents\n"
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"whole{suffix}").read_bytes() == shard.with_suffix(suffix).read_bytes()
    assert sorted(path.name for path in shard.parent.iterdir()) == ["b.bin", "b.idx", "b.json"]
    assert "already there" in command(*back, f"tokenizer={model}")
    assert "nowhere.bin: no such file" in command(f"source={tmp_path}/nowhere.bin", f"target={tmp_path}/c.parquet")
    assert "files that end in .bin" in command(f"source={parquet}", f"target={tmp_path}/c.parquet")
    assert "ends in .parquet or .bin" in command(f"source={parquet}", f"target={tmp_path}/c")
    assert "target is not given" in command(f"source={parquet}")
    (tmp_path / "whole.idx").unlink()
    assert "whole.idx: no such file" in command(f"source={tmp_path}/whole.bin", f"target={tmp_path}/c.parquet")
    assert not list(tmp_path.glob("*c.parquet*"))
