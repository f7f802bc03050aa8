"""validate: a model in Hugging Face format, measured by source, beside transformers' own numbers."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from model.config import LlamaConfig
from model.llama import Llama
from pipeline.__main__ import main
from pipeline.commands.validate import Settings, harness, measure
from pipeline.stages.export import write_model
from pipeline.tokens import tokenizer
from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard


def split(out: Path, source: str, count: int, pieces: int, digest: str) -> dict[str, dict[str, list[str]]]:
    """A validation split of random tokens below `out`; its entry in the manifest of tokenize."""
    prefix = f"tokens/validation/{source}/00000"
    (out / prefix).parent.mkdir(parents=True)
    files = ShardFiles.of(out / prefix)
    ids = np.random.default_rng(count).integers(3, pieces, count)
    write_shard([ids], files.bin, files.idx, np.dtype("<u2"))
    Vocabulary(digest, pieces, 2).write(files.meta)
    return {"validation": {"shards": [prefix]}}


def manifest(out: Path, sources: dict[str, dict[str, dict[str, list[str]]]]) -> None:
    (out / "records").mkdir()
    (out / "records" / "tokenize.json").write_text(json.dumps({"result": {"sources": sources}}))


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260K in Hugging Face format with its tokenizer, and a run's tokens beside it."""
    out = tmp_path_factory.mktemp("stories")
    models = shared_data / "models"
    assert main(["convert", f"source={models / 'stories260K.bin'}", f"target={out / 'model'}"]) == 0
    shutil.copyfile(models / "tok512.model", out / "model" / "tokenizer.model")
    digest = tokenizer.digest(models / "tok512.model")
    manifest(out, {name: split(out, name, count, 512, digest) for name, count in (("crawl", 1000), ("books", 300))})
    return out


def test_losses_are_those_of_transformers(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = measure(Settings(model=str(stories / "model"), out=str(stories), sequence=64, micro_batch=3))
    theirs = LlamaForCausalLM.from_pretrained(stories / "model", dtype=torch.float32)
    whole, tokens = 0.0, 0
    for source, count in (("crawl", 1000), ("books", 300)):
        ids = torch.from_numpy(np.random.default_rng(count).integers(3, 512, count))
        rows = torch.stack([ids[at : at + 65] for at in range(0, count - 64, 64)])
        with torch.no_grad():
            logits = theirs(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
        assert result["sources"][source]["loss"] == pytest.approx(loss, rel=1e-5)
        assert result["sources"][source]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert result["sources"][source]["tokens"] == len(rows) * 64
        whole, tokens = whole + loss * len(rows) * 64, tokens + len(rows) * 64
    assert result["loss"] == pytest.approx(whole / tokens, rel=1e-5)
    assert main(["validate", f"model={stories / 'model'}", f"out={stories}", "sequence=64"]) == 0
    told = capsys.readouterr().out
    assert f"{result['loss']:.4f}" in told and "books" in told


def test_a_mistake_is_one_line(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stories / "model", tmp_path / "model")
    with (tmp_path / "model" / "tokenizer.model").open("ab") as file:
        file.write(b" ")
    for arguments, said in (
        ([], "model is not given"),
        ([f"model={stories / 'model'}", f"out={tmp_path}"], "has no tokens"),
        ([f"model={tmp_path / 'model'}", f"out={stories}", "sequence=64"], "made with tokenizer"),
        ([f"model={stories / 'model'}", f"out={stories}", "sequence=100000"], "the model takes at most 512 tokens"),
    ):
        assert main(["validate", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.slow
def test_tasks_of_the_harness(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of this machine, without a network; the choices are those that are likelier by transformers."""
    pytest.importorskip("lm_eval")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    model = Llama(LlamaConfig(dim=32, layers=1, heads=2, kv_heads=2, hidden=64, vocab_size=32000, max_sequence=128))
    model.init_weights(0)
    write_model(model, False, shared_data / "models" / "llama2_tokenizer.model", folder)
    words = ["house", "river", "quickly", "the", "seven", "of stone", "?"]
    questions = [{"question": f"It was {word}", "choices": [f" {other}" for other in words], "label": 0} for word in words]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (tmp_path / "words.yaml").write_text(
        f"""
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "words.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: label
doc_to_choice: choices
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    processor = AutoTokenizer.from_pretrained(folder)
    right = 0
    for question in questions:
        prompt = processor(question["question"])["input_ids"]
        scores = []
        for choice in question["choices"]:
            ids = processor(f"{question['question']}{choice}")["input_ids"]
            with torch.no_grad():
                shares = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(shares[at - 1, ids[at]].item() for at in range(len(prompt), len(ids))))
        right += int(np.argmax(scores)) == question["label"]
    found = harness(folder, [str(tmp_path / "words.yaml")], 4, "cpu")
    assert found == {"local_words": {"acc": pytest.approx(right / len(questions))}}
    with pytest.raises(ValueError, match="tasks: no_such_task: lm-evaluation-harness has no such task"):
        harness(folder, ["no_such_task"], 4, "cpu")
