"""The tokenizer stage on the command line: what lies beside the model, trained here or given; shards made with it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import sentencepiece
from road import run, run_good

from pipeline.outputs import read_json
from pipeline.tokens import tokenizer
from pipeline.tokens.shards import Shard

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


def test_a_model_unlike_llamas_is_encoded_by_sentencepiece(out: Path, tmp_path: Path) -> None:
    """It is said, the tokens are SentencePiece's, and the export has the model without a `tokenizer.json`."""
    other = tmp_path / "other" / "out"
    shutil.copytree(out, other)
    model = tmp_path / "unlike.model"
    texts = pq.read_table(next(other.glob("corpus/en/head/*.parquet")), partitioning=None)["raw_content"].to_pylist()
    lines = [line for text in texts for line in text.split("\n")]
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, model_type="bpe", vocab_size=600, minloglevel=2
        )
    overrides = (f"tokenizer.model={model}", "overwrite=true", "train.steps=4")
    said = run("tokenizer", other, *overrides)
    assert said.returncode == 0 and "is unlike LLaMA's" in said.stderr and said.stderr.count("warning: ") == 1
    for stage in ("tokenize", "train", "export"):
        run_good(stage, other, *overrides)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    expected = {(*processor.encode(text), processor.eos_id()) for text in texts}
    shards = [Shard(path.with_suffix("")) for path in (other / "tokens" / "train" / "crawl").glob("en-head-*.bin")]
    found = {tuple(shard.document(n).tolist()) for shard in shards for n in range(len(shard))}
    assert len(found) > 10 and len(found & expected) > 10
    assert (other / "model" / "tokenizer.model").read_bytes() == model.read_bytes()
    assert not (other / "model" / "tokenizer.json").exists()
