from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.attention import attend, document_lengths, joined, rotary_tables, rotate
from model.block_backward import rms_norm, rms_norm_backward, rms_scale, swiglu_backward
from model.config import LlamaConfig
from model.llama import Block, Llama

Gradients = dict[str, Tensor]
SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped": {"heads": 6, "kv_heads": 2, "dim": 48},
    "one key head": {"kv_heads": 1, "hidden": 33},
    "tied": {"tied": True, "kv_heads": 2},
}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 12 + [2], [0] + [3] * 17, [0] * 18], dtype=torch.int32)


def small(**change: Any) -> LlamaConfig:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 4, "hidden": 88, "vocab_size": 61, "max_sequence": 18}
    return LlamaConfig(**{**sizes, **change})


def random_model(config: LlamaConfig, activations: str, dtype: torch.dtype = torch.float32) -> Llama:
    """Every parameter random, norms too, about as large as first weights are: rounding is no larger than in training."""
    model = Llama(config, activations)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = torch.randn(parameter.shape, generator=generator)
        parameter.data = (1 + 0.3 * spread if name.endswith("norm.weight") else 0.05 * spread).to(dtype)
    return model


def batch(config: LlamaConfig, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(config.vocab_size, (2, 3, config.max_sequence), generator=generator)
    labels[:, :3] = -100
    return tokens, labels


def gradients(model: Llama, documents: Tensor | None = None, steps: int = 1) -> Gradients:
    """Of the mean loss, summed over `steps` batches; fp64."""
    for step in range(steps):
        loss, count = model(*batch(model.config, step), documents)
        (loss / count).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def difference(found: Gradients, expected: Gradients) -> float:
    """The largest relative difference of a parameter's gradient."""
    assert found.keys() == expected.keys()
    return max(((found[name] - expected[name]).norm() / expected[name].norm()).item() for name in expected)


# Pieces, each against finite differences in fp64


class Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_d: Tensor) -> Tensor:
        scale_n1 = rms_scale(x_nd, 1e-3)
        ctx.save_for_backward(x_nd, scale_n1, weight_d)
        return rms_norm(x_nd, scale_n1, weight_d)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return rms_norm_backward(grad.clone(), *ctx.saved_tensors)


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_nf: Tensor, up_nf: Tensor) -> Tensor:
        ctx.save_for_backward(gate_nf, up_nf)
        return F.silu(gate_nf) * up_nf

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        product, grad_gate, grad_up = swiglu_backward(grad.clone(), *ctx.saved_tensors)
        gate_nf, up_nf = ctx.saved_tensors
        assert torch.equal(product, F.silu(gate_nf) * up_nf)
        return grad_gate, grad_up


class Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bthk: Tensor, cos_tk: Tensor, sin_tk: Tensor) -> Tensor:
        ctx.save_for_backward(cos_tk, sin_tk)
        return rotate(x_bthk, cos_tk, sin_tk)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos_tk, sin_tk = ctx.saved_tensors
        return rotate(grad, cos_tk, -sin_tk), None, None


def random64(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_norm(spread: float) -> None:
    torch.autograd.gradcheck(Norm.apply, ((random64(5, 6) * spread).detach().requires_grad_(), random64(6)), eps=1e-6 * spread)


def test_norm_of_zeros_is_finite() -> None:
    x_nd, weight_d = torch.zeros(2, 6, dtype=torch.float64), random64(6)
    grads = rms_norm_backward(torch.ones_like(x_nd), x_nd, rms_scale(x_nd, 1e-5), weight_d.detach())
    assert all(grad.isfinite().all() for grad in grads)


def test_swiglu() -> None:
    torch.autograd.gradcheck(SwiGLU.apply, (random64(5, 6), (random64(5, 6) * 3).detach().requires_grad_()))


def test_rotation() -> None:
    tables = (table.double() for table in rotary_tables(6, 5, 100.0))
    torch.autograd.gradcheck(Rotation.apply, (random64(2, 5, 3, 6), *tables))


@pytest.mark.parametrize("lengths", [None, [1, 3, 2, 2]])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention(kv_heads: int, lengths: list[int] | None) -> None:
    inputs = (random64(2, 4, 4, 2), random64(2, 4, kv_heads, 2), random64(2, 4, kv_heads, 2))
    torch.autograd.gradcheck(lambda *qkv: joined(attend(*qkv, lengths)), inputs)


@pytest.mark.parametrize("documents", [None, torch.tensor([[0, 1, 1], [2, 2, 3]])])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_block(kv_heads: int, documents: Tensor | None) -> None:
    config = small(dim=4, heads=2, kv_heads=kv_heads, hidden=3)
    lengths = None if documents is None else document_lengths(documents)
    tables = rotary_tables(2, 3, 1e4)
    layer = random_model(config, "manual", torch.float64).layers[0]
    for parameter in layer.parameters():
        parameter.data *= 1 if parameter.ndim == 1 else 10  # so that no part is lost beside the residual stream
    names = [name for name, _ in layer.named_parameters()]

    def run(x_btd: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x_btd, *tables, lengths))

    torch.autograd.gradcheck(run, (random64(2, 3, 4), *(p.detach().requires_grad_() for p in layer.parameters())))


# Whole models, against autograd


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activations", ["manual", "recompute"])
def test_gradients_are_autograds(activations: str, shape: str, documents: Tensor | None) -> None:
    config = small(**SHAPES[shape])
    for dtype, most in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        expected = gradients(random_model(config, "autograd", dtype), documents)
        assert difference(gradients(random_model(config, activations, dtype), documents), expected) < most


def mixed(run: Callable[[], Gradients], autocast: bool) -> Gradients:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return run()


@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_is_no_further_from_float64_than_autograd(autocast: bool, shape: str, documents: Tensor | None) -> None:
    config = small(**SHAPES[shape])
    dtype = torch.float32 if autocast else torch.bfloat16
    errors = []
    for activations in ("autograd", "manual"):
        model = random_model(config, activations, dtype)
        found = mixed(lambda model=model: gradients(model, documents), autocast)
        exact = random_model(config, "autograd", torch.float64)
        with torch.no_grad():
            for parameter, rounded in zip(exact.parameters(), model.parameters(), strict=True):
                parameter.copy_(rounded)
        errors.append(difference(found, gradients(exact, documents)))
    by_autograd, by_hand = errors
    assert by_hand < 1.25 * by_autograd < 0.1
    assert by_autograd > 1e-4, "nothing was computed in bfloat16"


def test_types_under_autocast() -> None:
    config = small()
    for activations in ("autograd", "manual"):
        layer = random_model(config, activations).layers[0]
        x_btd = torch.randn(1, 4, 32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            y_btd = layer(x_btd, *rotary_tables(8, 4, 1e4))
        y_btd.sum().backward()
        assert y_btd.dtype == torch.float32
        assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


def test_gradients_accumulate() -> None:
    config = small(kv_heads=2)
    expected = gradients(random_model(config, "autograd"), steps=3)
    assert difference(gradients(random_model(config, "manual"), steps=3), expected) < 1e-6


def train_only(model: Llama, chosen: Callable[[str], bool]) -> Llama:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))
    return model


CHOICES: dict[str, Callable[[str], bool]] = {
    "last block": lambda name: name.startswith("layers.1."),
    "first block": lambda name: name.startswith("layers.0."),
    "norms": lambda name: name.endswith("norm.weight"),
    "matrices": lambda name: not name.endswith("norm.weight"),
    "embedding": lambda name: name == "embedding.weight",
    "output": lambda name: name == "output.weight",
    **{
        weight: lambda name, weight=weight: name.endswith(f".{weight}.weight")
        for weight in ("wq", "wk", "wv", "wo", "w1", "w2", "w3", "attention_norm", "feed_forward_norm")
    },
}


@pytest.mark.parametrize("choice", CHOICES)
def test_frozen_parameters(choice: str) -> None:
    config = small(kv_heads=2)
    expected = gradients(train_only(random_model(config, "autograd"), CHOICES[choice]))
    assert expected and len(expected) < len(list(random_model(config, "autograd").parameters()))
    assert difference(gradients(train_only(random_model(config, "manual"), CHOICES[choice])), expected) < 1e-6


class Products(TorchDispatchMode):
    """Counts the multiplications in products of two matrices."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            left, right = args[-2:]
            self.count += left.numel() * right.shape[1] if left.shape[0] > 1 else 0
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("choice", sorted(CHOICES.keys() - {"w2"}))  # its gradient needs no other product, which is not used
def test_frozen_parameters_cost_no_products(choice: str) -> None:
    counts = []
    for activations in ("autograd", "manual"):
        model = train_only(random_model(small(kv_heads=2), activations), CHOICES[choice])
        with Products() as products:
            gradients(model)
        counts.append(products.count)
    assert counts[0] == counts[1] > 0


def test_nothing_is_kept_without_gradients() -> None:
    model = random_model(small(), "manual")
    tokens, labels = batch(model.config)
    with torch.no_grad():
        loss, _ = model(tokens, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, random_model(small(), "autograd")(tokens, labels)[0])


def test_backward_twice() -> None:
    """As with autograd: right with retain_graph, an error without it."""
    layer = random_model(small(), "manual").layers[0]
    assert isinstance(layer, Block)
    x_btd = torch.randn(2, 5, 32, requires_grad=True)
    loss = layer(x_btd, *rotary_tables(layer.attention.head_dim, 5, 1e4), None).sum()
    inputs = [x_btd, *layer.parameters()]
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    for again, before in zip(torch.autograd.grad(loss, inputs), first, strict=True):
        assert torch.equal(again, before)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


def test_weights_changed_before_the_backward_are_noticed() -> None:
    model = random_model(small(), "manual")
    loss, _ = model(*batch(model.config))
    with torch.no_grad():
        model.layers[0].feed_forward.w1.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_stay_as_they_are() -> None:
    layer = random_model(small(), "manual").layers[0]
    assert isinstance(layer, Block)
    x_btd = torch.randn(2, 5, 32, requires_grad=True)
    before = x_btd.detach().clone()
    grad_btd = torch.randn(2, 5, 32)
    grad_before = grad_btd.clone()
    layer(x_btd, *rotary_tables(8, 5, 1e4)).backward(grad_btd)
    assert torch.equal(x_btd, before) and torch.equal(grad_btd, grad_before)


def test_unknown_activations() -> None:
    with pytest.raises(ValueError, match=r"^activations=none: choose autograd, recompute, manual$"):
        Llama(small(), "none")
