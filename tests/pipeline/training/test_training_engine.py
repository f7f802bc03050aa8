"""The model with its first weights: the same from every stage, and never whole in a rank of ZeRO-3."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.config import LlamaConfig
from model.llama import Llama
from pipeline.training.settings import TrainConfig, ZeroConfig

ROOT = Path(__file__).resolve().parents[3]
SHAPE = {"dim": 320, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 330, "vocab_size": 100, "max_sequence": 32}
TRAIN = TrainConfig(sequence=32, batch_tokens=64, micro_batch=1, dtype="fp32", seed=3)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "zero", [ZeroConfig(1), ZeroConfig(3), ZeroConfig(3, offload=True)], ids=lambda z: f"{z.stage}{z.offload}"
)
def test_first_weights(zero: ZeroConfig, tied: bool, one_rank: None) -> None:
    import deepspeed

    from pipeline.training.engine import build_model

    config = LlamaConfig(**SHAPE, tied=tied)
    expected = Llama(config)
    expected.init_weights(TRAIN.seed)
    model = build_model(config, TRAIN, zero, 1)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=zero.stage == 3):
        for (name, weight), other in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert weight.dtype == torch.float32 and torch.equal(weight, other), name
    assert (model.output.weight is model.embedding.weight) == tied
    for table, other in zip(model.rotary.buffers(), expected.rotary.buffers(), strict=True):
        assert torch.equal(table, other)


def test_bf16_rounds_parameters_only(one_rank: None) -> None:
    from pipeline.training.engine import build_model

    config = LlamaConfig(**SHAPE)
    expected = Llama(config)
    expected.init_weights(1)
    model = build_model(config, TrainConfig(sequence=32, batch_tokens=64), ZeroConfig(1), 1)
    for weight, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, other.bfloat16())
    assert torch.equal(model.rotary.cos_tk, expected.rotary.cos_tk)


def test_offload_is_on(one_rank: None) -> None:
    from pipeline.training.engine import build_engine, build_model

    zero = ZeroConfig(3, offload=True)
    engine = build_engine(build_model(LlamaConfig(**SHAPE), TRAIN, zero, 1), TRAIN, zero, 1)
    assert engine.zero_offload_optimizer() is not None and engine.zero_offload_param() is not None
    assert engine.optimizer.optimizer.defaults["fused"]


PEAK = """
import json, sys
import torch.distributed as dist
from model.config import LlamaConfig
from pipeline.training.engine import build_model, join_ranks
from pipeline.training.settings import TrainConfig, ZeroConfig

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

join_ranks()
config = LlamaConfig(dim=1024, layers=8, heads=16, kv_heads=16, hidden=2816, vocab_size=1000, max_sequence=32)
before = peak()
model = build_model(config, TrainConfig(sequence=32, batch_tokens=64, dtype="fp32"), ZeroConfig(int(sys.argv[1])), 2)
share = (peak() - before) / config.parameter_bytes(4)
dist.barrier()
print(f"share: {share:.3f}", flush=True)
dist.barrier()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "most"), [(1, 1.3), (3, 0.8)])
def test_a_rank_of_zero_3_never_holds_the_whole_model(stage: int, most: float, tmp_path: Path) -> None:
    """Half of it and a block, of 2 ranks; other stages hold all of it."""
    script = tmp_path / "peak.py"
    script.write_text(PEAK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LOCAL_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), str(stage)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shares = [float(share) for share in re.findall(r"share: (\d+\.\d{3})", done.stdout)]  # both may be on one line
    assert len(shares) == 2 and max(shares) < most, shares
    assert stage == 3 or min(shares) > 0.95
