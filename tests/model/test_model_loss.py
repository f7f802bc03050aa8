import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.config import LlamaConfig
from model.llama import Llama
from model.loss import CHUNK_BYTES, IGNORED, cross_entropy

TOKENS, DIM, VOCABULARY = 13, 8, 11
ONE_TOKEN = 1  # bytes: less than a token's logits, so that each is its own chunk
FOUR_TOKENS = 4 * VOCABULARY * 4
CHUNKS = [ONE_TOKEN, FOUR_TOKENS, CHUNK_BYTES]  # 13, 4 and 1 chunks


def inputs(dtype: torch.dtype = torch.float32, ignored: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_td = torch.randn(TOKENS, DIM, generator=generator).to(dtype).requires_grad_()
    weight_vd = torch.randn(VOCABULARY, DIM, generator=generator).to(dtype).requires_grad_()
    labels_t = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    labels_t[list(ignored)] = IGNORED
    return x_td, weight_vd, labels_t


def plain(x_td: Tensor, weight_vd: Tensor, labels_t: Tensor) -> Tensor:
    logits_nv = (x_td @ weight_vd.T).flatten(0, -2)
    return F.cross_entropy(logits_nv, labels_t.flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("chunk_bytes", [ONE_TOKEN, CHUNK_BYTES])
@pytest.mark.parametrize("labels", [[3, 0, 1], [2, IGNORED, 2], [IGNORED] * 3])
def test_gradients_are_the_numerical_ones(chunk_bytes: int, labels: list[int]) -> None:
    """What gradcheck does, but for its second backward of one graph."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in ((3, 2), (4, 2))]

    def loss() -> Tensor:
        return cross_entropy(*tensors, torch.tensor(labels), chunk_bytes=chunk_bytes)[0]

    for tensor, grad in zip(tensors, torch.autograd.grad(loss(), tensors), strict=True):
        numerical = torch.zeros_like(grad)
        for element, slope in zip(tensor.detach().view(-1), numerical.view(-1), strict=True):
            element += 1e-6
            above = loss().item()
            element -= 2e-6
            slope += (above - loss().item()) / 2e-6
            element += 1e-6
        torch.testing.assert_close(grad, numerical)


def test_a_second_backward_is_an_error() -> None:
    x_td, weight_vd, labels_t = inputs()
    loss, _ = cross_entropy(x_td, weight_vd, labels_t)
    torch.autograd.grad(loss, (x_td, weight_vd), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, (x_td, weight_vd))


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("ignored", [(), (3,), (0, 1, 2, 3, 12), tuple(range(1, TOKENS))])
def test_equals_torchs(chunk_bytes: int, ignored: tuple[int, ...]) -> None:
    x_td, weight_vd, labels_t = inputs(ignored=ignored)
    loss, count = cross_entropy(x_td, weight_vd, labels_t, chunk_bytes=chunk_bytes)
    assert (loss.dtype, count.dtype, count.item()) == (torch.float32, torch.int64, TOKENS - len(ignored))
    expected = plain(x_td, weight_vd, labels_t)
    torch.testing.assert_close(loss, expected)
    # A factor stands for the division by the count and for loss scaling.
    ours = torch.autograd.grad(loss * 0.37, (x_td, weight_vd))
    torch.testing.assert_close(ours, torch.autograd.grad(expected * 0.37, (x_td, weight_vd)))


@settings(deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    vocabulary=st.integers(1, 7),
    chunk_bytes=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
def test_equals_torchs_for_any_shape(batch: int, tokens: int, vocabulary: int, chunk_bytes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_btd = torch.randn(batch, tokens, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight_vd = torch.randn(vocabulary, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels_bt = torch.randint(vocabulary, (batch, tokens), generator=generator)
    labels_bt[torch.rand(batch, tokens, generator=generator) < 0.3] = IGNORED
    loss, count = cross_entropy(x_btd, weight_vd, labels_bt, chunk_bytes=chunk_bytes)
    assert count.item() == (labels_bt != IGNORED).sum().item()
    expected = plain(x_btd, weight_vd, labels_bt)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, (x_btd, weight_vd))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (x_btd, weight_vd)))


def test_all_ignored_gives_zero_even_of_what_is_not_finite() -> None:
    _, weight_vd, labels_t = inputs(ignored=tuple(range(TOKENS)))
    x_td = torch.full((TOKENS, DIM), math.inf, requires_grad=True)
    loss, count = cross_entropy(x_td, weight_vd, labels_t, chunk_bytes=FOUR_TOKENS)
    loss.backward()
    assert (loss.item(), count.item()) == (0, 0)
    assert x_td.grad is not None and not x_td.grad.any()
    assert weight_vd.grad is not None and not weight_vd.grad.any()


def test_no_tokens() -> None:
    weight_vd = torch.randn(VOCABULARY, DIM, requires_grad=True)
    loss, count = cross_entropy(torch.empty(2, 0, DIM), weight_vd, torch.empty(2, 0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), count.item()) == (0, 0)
    assert weight_vd.grad is not None and not weight_vd.grad.any()


def test_another_label_is_ignored_when_asked() -> None:
    x_td, weight_vd, labels_t = inputs()
    loss, count = cross_entropy(x_td, weight_vd, labels_t, ignore=int(labels_t[0]))
    kept = labels_t != labels_t[0]
    assert count.item() == kept.sum().item() < TOKENS
    torch.testing.assert_close(loss, plain(x_td[kept], weight_vd, labels_t[kept]))


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_only_wanted_gradients(wanted: tuple[bool, bool]) -> None:
    x_td, weight_vd, labels_t = inputs()
    expected = torch.autograd.grad(plain(x_td, weight_vd, labels_t), (x_td, weight_vd))
    leaves = [x_td.detach().requires_grad_(wanted[0]), weight_vd.detach().requires_grad_(wanted[1])]
    loss, _ = cross_entropy(*leaves, labels_t, chunk_bytes=FOUR_TOKENS)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for leaf, gradient, want in zip(leaves, expected, wanted, strict=True):
        assert (leaf.grad is not None) == want
        if want:
            torch.testing.assert_close(leaf.grad, gradient)


def test_no_gradients_under_no_grad() -> None:
    x_td, weight_vd, labels_t = inputs()
    with torch.no_grad(), Largest() as seen:
        loss, _ = cross_entropy(x_td, weight_vd, labels_t, chunk_bytes=FOUR_TOKENS)
    assert not loss.requires_grad
    assert not any(function in seen.functions for function in ("aten.exp_.default", "aten.addmm_.default"))


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_bfloat16_is_close(chunk_bytes: int) -> None:
    x_td, weight_vd, labels_t = inputs(torch.bfloat16, ignored=(2, 7))
    loss, _ = cross_entropy(x_td, weight_vd, labels_t, chunk_bytes=chunk_bytes)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, (x_td, weight_vd))
    x64_td, weight64_vd = (tensor.detach().double().requires_grad_() for tensor in (x_td, weight_vd))
    expected = plain(x64_td, weight64_vd, labels_t)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=0)
    for gradient, exact in zip(ours, torch.autograd.grad(expected, (x64_td, weight64_vd)), strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - exact).norm() < 0.01 * exact.norm()


def test_large_logits_stay_finite() -> None:
    x_td = torch.full((2, DIM), 1e3, requires_grad=True)
    weight_vd = torch.randn(VOCABULARY, DIM, generator=torch.Generator().manual_seed(0)) * 1e3
    labels_t = torch.tensor([0, 1])
    loss, _ = cross_entropy(x_td, weight_vd, labels_t)
    torch.testing.assert_close(loss, plain(x_td, weight_vd, labels_t))
    loss.backward()
    assert x_td.grad is not None and x_td.grad.isfinite().all()


class Largest(TorchDispatchMode):
    """Records which operations run, and the bytes of the largest tensor that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.add(str(function))
        result = function(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        self.largest = max([self.largest, *(tensor.untyped_storage().nbytes() for tensor in made)])
        return result


def saved_and_largest(loss_of: Any, leaves: tuple[Tensor, ...]) -> tuple[int, int]:
    """Bytes of the largest tensor that is saved for backward, and of the largest made in forward and backward."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of()
        torch.autograd.grad(loss, leaves)
    return max(saved), seen.largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_logits_never_exist(dtype: torch.dtype) -> None:
    tokens, dim, vocabulary, chunk_bytes = 512, 4, 1000, 64 << 10
    x_td = torch.randn(tokens, dim).to(dtype).requires_grad_()
    weight_vd = torch.randn(vocabulary, dim).to(dtype).requires_grad_()
    labels_t = torch.randint(vocabulary, (tokens,))
    whole = tokens * vocabulary * dtype.itemsize
    leaves = (x_td, weight_vd)

    saved, largest = saved_and_largest(lambda: plain(*leaves, labels_t), leaves)
    assert saved >= whole and largest >= whole  # the measure sees what it is meant to see
    saved, largest = saved_and_largest(lambda: cross_entropy(*leaves, labels_t, chunk_bytes=chunk_bytes)[0], leaves)
    assert largest <= chunk_bytes < whole / 10
    assert saved <= 4 * vocabulary * dim


def test_whole_logits_never_exist_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk_bytes = 32 << 10
    monkeypatch.setattr("model.llama.cross_entropy", partial(cross_entropy, chunk_bytes=chunk_bytes))
    config = LlamaConfig(dim=8, layers=1, heads=2, kv_heads=1, hidden=16, vocab_size=1000, max_sequence=128)
    model = Llama(config)
    model.init_weights(0)
    tokens = torch.randint(config.vocab_size, (2, 128))
    saved, largest = saved_and_largest(lambda: model(tokens, tokens)[0], tuple(model.parameters()))
    whole = 4 * tokens.numel() * config.vocab_size
    assert max(saved, largest) <= 4 * config.vocab_size * config.dim < whole / 20
