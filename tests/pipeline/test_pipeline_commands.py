"""The commands beside the stages, run as users run them, on a real trained model."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from road import ROOT
from sentencepiece import SentencePieceProcessor
from transformers import LlamaForCausalLM

from pipeline.__main__ import main
from pipeline.commands import COMMANDS


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    """stories260K in Hugging Face format, made by `convert`, with its tokenizer."""
    folder = tmp_path_factory.mktemp("stories") / "model"
    models = shared_data / "models"
    assert main(["convert", f"source={models / 'stories260K.bin'}", f"target={folder}"]) == 0
    shutil.copyfile(models / "tok512.model", folder / "tokenizer.model")
    return folder


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_generate_streams_the_text_of_transformers(stories: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "generate", f"model_dir={stories}", "prompt=Once upon a time, a, b: c=d"]
    done = subprocess.run([*command, "temperature=0", "max_new=60"], cwd=ROOT, capture_output=True, text=True, check=True)
    processor = SentencePieceProcessor(model_file=str(stories / "tokenizer.model"))
    theirs = LlamaForCausalLM.from_pretrained(stories, dtype=torch.float32)
    tokens = torch.tensor([[1, *processor.encode("Once upon a time, a, b: c=d")]])
    [ids] = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=60, do_sample=False)
    assert done.stdout == processor.decode(ids.tolist()) + "\n"


def test_config_says_how_documents_begin_and_end(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Models of llama2.c end a story with <s>; other models have nothing before a document."""
    folder = tmp_path / "model"
    shutil.copytree(stories, folder)
    told_by = json.loads((folder / "config.json").read_text())
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = processor.encode("Once upon a time")
    for bos, eos in ((1, 1), (None, 2), (None, None)):
        (folder / "config.json").write_text(json.dumps(told_by | {"bos_token_id": bos, "eos_token_id": eos}))
        capsys.readouterr()
        assert main(["generate", f"model_dir={folder}", "prompt=Once upon a time", "temperature=0", "max_new=400"]) == 0
        tokens = torch.tensor([[bos, *prompt] if bos else prompt])
        [ids] = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=400, do_sample=False, eos_token_id=eos or 0
        )
        assert (len(ids) < 400) == (eos == 1)
        assert capsys.readouterr().out == processor.decode(ids.tolist()) + "\n"
    (folder / "config.json").write_text(json.dumps(told_by | {"eos_token_id": [1, 2]}))
    assert "eos_token_id is [1, 2]: one id of the model, or null" in told(["generate", f"model_dir={folder}"], capsys)


def test_samples_differ_and_the_seed_decides(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def texts(*settings: str) -> list[str]:
        assert main(["generate", f"model_dir={stories}", "prompt=Lily", "max_new=20", *settings]) == 0
        return capsys.readouterr().out.split("--- ")[1:]

    first = texts("samples=3", "seed=5")
    assert len({text.partition("\n")[2] for text in first}) == 3
    assert texts("samples=3", "seed=5") == first
    assert texts("samples=2", "seed=6")[0].partition("\n")[2] == first[1].partition("\n")[2]


def test_convert_goes_round_through_all_formats(stories: Path, shared_data: Path, tmp_path: Path) -> None:
    """Untied first, as Meta's files have an output of their own."""
    from model.convert.hugging_face import from_hugging_face, to_hugging_face

    weights, config = from_hugging_face(stories)
    config.tied = False
    weights["output.weight"] = weights["embedding.weight"] * 2
    to_hugging_face(weights, config, tmp_path / "a", bos=1, eos=2)
    shutil.copyfile(stories / "tokenizer.model", tmp_path / "a" / "tokenizer.model")
    for source, target, to in (("a", "b", "meta"), ("b", "c.bin", "llama2c"), ("c.bin", "d", "hugging_face")):
        arguments = [f"source={tmp_path / source}", f"target={tmp_path / target}", f"to={to}", "max_sequence=512"]
        assert main(["convert", *arguments]) == 0
    assert (tmp_path / "b" / "tokenizer.model").exists()
    assert (tmp_path / "d" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (tmp_path / "d" / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c.bin", "d"]


def test_mistakes_are_one_line(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert "model_dir is not given" in told(["generate"], capsys)
    assert "nowhere/config.json cannot be read" in told(["generate", "model_dir=nowhere"], capsys)
    assert "modeldir: no such key; did you mean model_dir?" in told(["generate", "modeldir=x"], capsys)
    assert "x: a setting is key=value" in told(["generate", "x"], capsys)
    assert "max_new" in told(["generate", "max_new=many"], capsys)
    assert "temperature=-1.0" in told(["generate", f"model_dir={stories}", "temperature=-1"], capsys)
    assert "samples=0: choose" in told(["generate", "samples=0"], capsys)
    assert "prompt='a\\udcff': not UTF-8" in told(["generate", "prompt=a\udcff"], capsys)
    assert f"seed={1 << 63}: choose" in told(["generate", f"seed={1 << 63}"], capsys)
    assert "to=onnx: choose hugging_face, meta, llama2c" in told(["convert", "to=onnx"], capsys)
    assert "no such file" in told(["convert", "source=nowhere", "target=x"], capsys)
    assert "is already there" in told(["convert", f"source={stories}", f"target={tmp_path}"], capsys)
    assert "tied" in told(["convert", f"source={stories}", f"target={tmp_path / 'meta'}", "to=meta"], capsys)
    assert not list(tmp_path.iterdir())
    bad = tmp_path / "bad"
    shutil.copytree(stories, bad)
    (bad / "tokenizer.model").write_bytes(b"nothing")
    assert "tokenizer.model" in told(["generate", f"model_dir={bad}"], capsys)


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for command, text in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines if line.endswith(text)] == [[command, text]]


def test_help_lists_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        assert f"usage: python -m pipeline {command}" in capsys.readouterr().out
