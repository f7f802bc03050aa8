"""The models of `conf/model/`."""

from pathlib import Path

import pytest
import torch

from model.llama import Llama
from pipeline.config import load

# Of the released weights: arXiv 2302.13971, table 2; 2307.09288, table 1; 2407.21783, table 3; TinyLlama; llama2.c.
RELEASED = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_33b": 32_528_943_616,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_34b": 33_743_970_304,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama_1_1b": 1_100_048_384,
    "llama_1_3b": 1_345_423_360,
    "llama_110m": 109_529_856,
    "llama_15m": 15_191_712,
    "llama_260k": 260_032,
}
GROUPED = {"llama2_34b", "llama2_70b", "llama3_8b", "llama3_70b", "llama_1_1b", "llama_260k"}


@pytest.mark.parametrize("name", RELEASED)
def test_parameters_are_those_of_the_released_model(name: str) -> None:
    config = load([f"model={name}"]).model
    assert config.parameter_count() == RELEASED[name]
    assert (config.kv_heads < config.heads) == (name in GROUPED)
    with torch.device("meta"):
        model = Llama(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == RELEASED[name]


def test_every_preset_is_a_model() -> None:
    names = {path.stem for path in Path("conf/model").glob("*.yaml")}
    assert names == {*RELEASED, "demo", "debug"}
    for name in ("demo", "debug"):
        assert load([f"model={name}"]).model.parameter_count() < 5_000_000
