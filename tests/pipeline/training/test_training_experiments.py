"""The experiments of the LLaMA papers, against their tables."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import load

ROOT = Path(__file__).resolve().parents[3]
SHARES = {"crawl": 0.67, "c4": 0.15, "github": 0.045, "wikipedia": 0.045, "books": 0.045, "arxiv": 0.025, "stackexchange": 0.02}
# dim, heads, kv_heads, layers, hidden, parameters, peak of the learning rate, tokens, sequence
# (arXiv 2302.13971, table 2; arXiv 2307.09288, table 1 and section 2.2)
PAPERS = {
    "llama_7b": (4096, 32, 32, 32, 11008, 6_738_415_616, 3e-4, 1.0e12, 2048),
    "llama_13b": (5120, 40, 40, 40, 13824, 13_015_864_320, 3e-4, 1.0e12, 2048),
    "llama_33b": (6656, 52, 52, 60, 17920, 32_528_943_616, 1.5e-4, 1.4e12, 2048),
    "llama_65b": (8192, 64, 64, 80, 22016, 65_285_660_672, 1.5e-4, 1.4e12, 2048),
    "llama2_7b": (4096, 32, 32, 32, 11008, 6_738_415_616, 3e-4, 2.0e12, 4096),
    "llama2_13b": (5120, 40, 40, 40, 13824, 13_015_864_320, 3e-4, 2.0e12, 4096),
    "llama2_34b": (8192, 64, 8, 48, 22016, 33_743_970_304, 1.5e-4, 2.0e12, 4096),
    "llama2_70b": (8192, 64, 8, 80, 28672, 68_976_648_192, 1.5e-4, 2.0e12, 4096),
}


@pytest.mark.parametrize("name", PAPERS)
def test_hyper_parameters_are_the_papers(name: str) -> None:
    config = load([f"experiment={name}"])
    dim, heads, kv_heads, layers, hidden, parameters, lr, tokens, sequence = PAPERS[name]
    model, train = config.model, config.train
    assert (model.dim, model.heads, model.kv_heads, model.layers, model.hidden) == (dim, heads, kv_heads, layers, hidden)
    assert model.parameter_count() == parameters
    assert (model.vocab_size, model.max_sequence, model.rope_theta, model.tied) == (32000, sequence, 10000, False)
    assert (train.lr, train.sequence, train.schedule, train.min_lr_ratio) == (lr, sequence, "cosine", 0.1)
    assert (train.warmup_steps, train.batch_tokens, train.batch_warmup) == (2000, 2048 * 2048, [])
    assert (train.beta1, train.beta2, train.weight_decay, train.clip) == (0.9, 0.95, 0.1, 1.0)
    assert (train.dtype, train.document_mask) == ("bf16", False)
    assert 0 <= tokens - train.tokens(train.steps) < train.batch_tokens
    if name.startswith("llama2"):
        assert (train.adam_eps, model.norm_eps) == (1e-5, 1e-5)
    assert (config.mixture.shares, config.tokenizer.vocab_size) == (SHARES, 32000)
    assert config.stages[-6:] == ["tokenizer", "tokenize", "train", "evaluate", "export", "report"]


@pytest.mark.parametrize("name", PAPERS)
def test_they_fit_gpus_of_80_gb(name: str) -> None:
    """Weights, fp32 gradients, AdamW's states and kept activations on the machines that the experiment names."""
    config = load([f"experiment={name}"])
    first = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()[1]
    told = re.search(r"(One|\d+) machines? of 8 GPUs of 80 GB", first)
    assert told is not None
    world = config.train.processes * (1 if told[1] == "One" else int(told[1]))
    assert config.train.processes == 8 and config.train.accumulation(world) > 1
    shared = [world if config.zero.stage >= stage else 1 for stage in (3, 2, 1)]
    parts = sum(size / ranks for size, ranks in zip((2, 4, 12), shared, strict=True)) * config.model.parameter_count()
    tokens = config.train.micro_batch * config.train.sequence
    kept = tokens * config.model.activation_bytes_per_token(config.train.activations, 2)
    assert parts + kept < 73e9


def test_help_of_an_experiment() -> None:
    command = [sys.executable, "-m", "pipeline", "train", "--help", "experiment=llama_7b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for setting in ("train.lr=0.0003", "train.steps=238418", "model.dim=4096", "zero.stage=1", "mixture.shares={crawl:0.67,"):
        assert setting in done.stdout


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["tokenizer.vocab_size=32001"], "model.vocab_size=32000: too small for the tokenizer's 32001 pieces"),
        (["train.sequence=4096"], "train.sequence=4096: the model takes at most model.max_sequence=2048"),
        (
            ["train.processes=3"],
            "train.batch_tokens=4194304 is no multiple of sequence 2048 x micro_batch 2 x 3 processes = 12288",
        ),
        (["zero=0"], "zero=0: train.dtype=bf16 needs ZeRO's master weights; choose zero=1, 2 or 3"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_stage(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(said)}$"):
        load(["experiment=llama_7b", *overrides])
    assert load(["experiment=llama_7b", "tokenizer.model=some.model"]).tokenizer.model == "some.model"
