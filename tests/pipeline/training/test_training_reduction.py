"""Norms beside float64, and engines that have neither a copy of their fp32 weights nor what they have reduced already."""

import math

import pytest
import torch

from model.config import LlamaConfig
from pipeline.training.engine import build_engine, build_model
from pipeline.training.reduction import ROW, norm
from pipeline.training.settings import TrainConfig, ZeroConfig

MODEL = LlamaConfig(dim=64, layers=2, heads=4, kv_heads=4, hidden=128, vocab_size=300, max_sequence=32)
TRAIN = TrainConfig(sequence=32, batch_tokens=64, micro_batch=1, steps=10, warmup_steps=1, dtype="fp32")


@pytest.mark.parametrize("shapes", [[()], [(1,)], [(0,), (3,)], [(ROW,)], [(ROW - 1,), (5, ROW + 1)], [(3, 2 * ROW), (7, 11)]])
def test_norm_is_float64s(shapes: list[tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) * 10 ** (3 * i) for i, shape in enumerate(shapes)]
    expected = torch.linalg.vector_norm(torch.cat([tensor.double().flatten() for tensor in tensors]))
    assert norm(tensors).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_norm_of_many_elements() -> None:
    """torch's own sum in fp32 is off by 2e-3 there."""
    tensor = torch.randn(33_000_000, generator=torch.Generator().manual_seed(0))
    assert norm([tensor]).item() == pytest.approx(torch.linalg.vector_norm(tensor, dtype=torch.float64).item(), rel=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", [0, ROW, 2 * ROW])
def test_what_is_not_finite_stays_so(place: int, bad: float) -> None:
    tensor = torch.ones(2 * ROW + 1)
    tensor[place] = bad
    assert not norm([torch.ones(3), tensor]).isfinite()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("stage", [1, 2])
def test_an_engine_holds_fp32_weights_once_and_no_gradient_twice(stage: int) -> None:
    zero = ZeroConfig(stage)
    engine = build_engine(build_model(MODEL, TRAIN, zero, 1), TRAIN, zero, 1)
    places = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
    masters = {share.untyped_storage().data_ptr() for share in engine.optimizer.single_partition_of_fp32_groups}
    assert places == masters and len(masters) == 2  # matrices, norms
    held = [parameter._hp_mapping.hp_fragment for parameter in engine.module.parameters()]
    assert {fragment.untyped_storage().data_ptr() for fragment in held} == masters
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    for boundary in (False, True):
        engine.set_gradient_accumulation_boundary(boundary)
        tokens = torch.randint(MODEL.vocab_size, (1, 33))
        loss, count = engine(tokens[:, :-1], tokens[:, 1:])
        engine.backward(loss / count, scale_wrt_gas=False)
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    engine.step()
    for parameter, was in zip(engine.module.parameters(), before, strict=True):
        assert not torch.equal(parameter, was)
    engine.destroy()
