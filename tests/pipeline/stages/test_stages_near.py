"""near as a stage: its three rounds over the files of `mine`, which are written here, and its absence."""

import random
from pathlib import Path
from string import ascii_lowercase

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load
from pipeline.outputs import digest_file, read_json, write_json
from pipeline.stage import FORMAT, Stage
from pipeline.stages import SPECS, near

SEGMENTS = {"b-0": [0, 1, 2, 3], "b-1": [], "a-2": [10, 0, 11, 3, 12]}  # crawl order; equal numbers are near-duplicates


@pytest.fixture
def out(tmp_path) -> Path:
    """An `out` with a finished `mine`."""
    outputs = {}
    for name, numbers in SEGMENTS.items():
        path = tmp_path / "mine" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        texts = [text(number, row) for row, number in enumerate(numbers)]
        urls = [f"http://{name}/{row}" for row in range(len(numbers))]
        pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "raw_content": pa.array(texts, pa.string())}), path)
        outputs[f"mine/{name}.parquet"] = {"bytes": path.stat().st_size, "digest": digest_file(path)}
    manifest = {"format": FORMAT, "inputs": {}, "digest": "d", "outputs": outputs | {"corpus/en/all/a.parquet": {}}}
    write_json(tmp_path / "records/mine.json", manifest)
    return tmp_path


def text(number: int, row: int) -> str:
    letter = random.Random(number).choice
    words = ["".join(letter(ascii_lowercase) for _ in range(5)) for _ in range(400)]
    return " ".join([*words[:200], "r" * row, *words[200:]])


def run(out: Path, *overrides: str) -> dict:
    stage = Stage(SPECS["near"], load([f"out={out}", "executor.workers=2", *overrides]))
    with stage.opened():
        if not stage.is_finished():
            near.run(stage)
    return read_json(out / "records/near.json")


@pytest.mark.slow
def test_pairs_for_any_number_of_partitions(out):
    manifest = run(out, "near.threshold=0.8", "near.partitions=2")
    assert manifest["result"]["pairs"] == "near/pairs.parquet" and manifest["units"] == 6
    counts = {"documents": 9, "without_words": 0, "dropped": 2, "clusters": 2}
    assert counts.items() <= manifest["result"]["statistics"].items()
    table = pq.read_table(out / "near/pairs.parquet")
    rows = [tuple(row.values()) for row in table.drop_columns("similarity").to_pylist()]
    assert rows == [
        ("a-2", 1, "http://a-2/1", "b-0", 0, "http://b-0/0"),
        ("a-2", 3, "http://a-2/3", "b-0", 3, "http://b-0/3"),
    ]
    assert min(table.column("similarity").to_pylist()) > 0.9
    digest = manifest["outputs"]["near/pairs.parquet"]["digest"]
    again = run(out, "near.threshold=0.8", "near.partitions=8", "overwrite=true", "executor.workers=1")
    assert again["outputs"]["near/pairs.parquet"]["digest"] == digest


def test_off(out):
    manifest = run(out)
    assert (manifest["result"], manifest["units"]) == ({"pairs": None}, 0)
    assert not (out / "near").exists()
