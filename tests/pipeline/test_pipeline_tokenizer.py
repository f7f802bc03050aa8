"""The tokenizer stage on the command line: what lies beside the model, trained here or given; shards made with it."""

from pathlib import Path

import pytest
from road import run_good

from pipeline.outputs import read_json
from pipeline.tokens import tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup", "tokenizer"):
        run_good(stage, out)
    return out


def result(out: Path, stage: str = "tokenizer") -> dict:
    return read_json(out / "records" / f"{stage}.json")["result"]


def test_what_lies_beside_the_model(out: Path) -> None:
    folder = out / "tokenizer"
    assert sorted(path.name for path in folder.iterdir()) == ["fertility.json", "settings.json", "tokenizer.model"]
    assert read_json(folder / "settings.json") == tokenizer.stored_settings(folder / "tokenizer.model")
    made = result(out)
    assert made["digest"] == tokenizer.digest(folder / "tokenizer.model")
    assert made["fertility"] == read_json(folder / "fertility.json")
    total = made["fertility"][0]
    assert (total["source"], total["language"]) == ("crawl", "all")
    assert {key: total[key] for key in ("documents", "bytes")} == made["trained_on"]
    assert 1 < total["bytes_per_token"] < 8
    languages = [row["language"] for row in made["fertility"][1:]]
    assert languages == sorted(set(languages) & set(result(out, "regroup")["buckets"]))


def test_a_given_model_is_taken_as_it_is(out: Path, tmp_path: Path) -> None:
    before = result(out)
    model = tmp_path / "given.model"
    model.write_bytes((out / "tokenizer" / "tokenizer.model").read_bytes())
    run_good("tokenizer", out, f"tokenizer.model={model}", "overwrite=true")
    assert result(out) == before | {"trained_on": None}
