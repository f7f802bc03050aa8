import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from model.attention import rotary_tables, rotate
from model.config import ACTIVATIONS, LlamaConfig
from model.convert.hugging_face import hugging_face_names, to_hugging_face
from model.llama import Attention, Llama, RMSNorm, initial_weight

SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped": {"heads": 6, "kv_heads": 2, "dim": 48},
    "one key head": {"kv_heads": 1},
    "tied": {"tied": True, "kv_heads": 2},
    "other theta": {"rope_theta": 500_000.0, "layers": 3},
    "other eps": {"norm_eps": 1e-2, "hidden": 33},
    "heads of 2": {"heads": 16, "kv_heads": 8, "layers": 1},
}


def small(**change: Any) -> LlamaConfig:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 4, "hidden": 88, "vocab_size": 61, "max_sequence": 24}
    return LlamaConfig(**{**sizes, **change})


def random_model(config: LlamaConfig, seed: int = 0, activations: str = "autograd") -> Llama:
    """Every parameter random (norms too) and large enough for all parts to matter."""
    model = Llama(config, activations)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        spread = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * spread if name.endswith("norm.weight") else 0.2 * spread
    return model


def random_tokens(config: LlamaConfig, batch: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, config.max_sequence), generator=generator)


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_transformers(shape: str, activations: str, tmp_path: Path) -> None:
    config = small(**SHAPES[shape])
    ours = random_model(config, activations=activations)
    to_hugging_face(ours.state_dict(), config, tmp_path, bos=1, eos=2)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = random_tokens(config)
    labels = random_tokens(config, seed=2)
    labels[:, :5] = -100

    logits = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), logits, rtol=1e-5, atol=1e-5)
    F.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    loss, count = ours(tokens, labels)
    (loss / count).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert len(gradients) == len(list(ours.parameters()))
    for name, their_name in hugging_face_names(config):
        gradient = ours.get_parameter(name).grad
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradient, gradients[their_name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_attention_against_float64(heads: int, kv_heads: int) -> None:
    config = small(dim=heads * 8, heads=heads, kv_heads=kv_heads)
    attention = Attention(config)
    generator = torch.Generator().manual_seed(0)
    x_td = torch.randn(9, config.dim, generator=generator)
    found = attention(x_td[None], *rotary_tables(config.head_dim, 9, config.rope_theta))[0]

    wq, wk, wv, wo = (getattr(attention, name).weight.detach().double() for name in ("wq", "wk", "wv", "wo"))
    x_td = x_td.double()
    half = config.head_dim // 2

    def turned(vector: Tensor, position: int) -> Tensor:
        """Each pair (i, i + half) as a complex number, times e^(j · angle)."""
        powers = torch.tensor([position * config.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
        pairs = torch.complex(vector[:half], vector[half:]) * torch.polar(torch.ones_like(powers), powers)
        return torch.cat((pairs.real, pairs.imag))

    expected = torch.zeros(9, config.dim, dtype=torch.float64)
    for head in range(heads):
        own = slice(head * 8, head * 8 + 8)
        group = head // (heads // kv_heads)
        shared = slice(group * 8, group * 8 + 8)
        for t in range(9):
            q = turned((wq @ x_td[t])[own], t)
            scores = [float(q @ turned((wk @ x_td[s])[shared], s)) / math.sqrt(8) for s in range(t + 1)]
            shares = torch.tensor(scores, dtype=torch.float64).softmax(0)
            expected[t, own] = sum(share * (wv @ x_td[s])[shared] for s, share in enumerate(shares))
    torch.testing.assert_close(found.double(), expected @ wo.T, rtol=1e-5, atol=1e-5)


def test_later_tokens_change_nothing_before_them() -> None:
    config = small(kv_heads=2)
    model = random_model(config)
    tokens = random_tokens(config)
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % config.vocab_size
    torch.testing.assert_close(model(tokens)[:, :10], model(changed)[:, :10])
    assert not torch.allclose(model(tokens)[:, 10:], model(changed)[:, 10:])


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_documents_of_a_row_are_as_if_alone(activations: str) -> None:
    config = small(kv_heads=2)
    model = random_model(config, activations=activations)
    tokens = random_tokens(config, batch=2)
    documents = torch.tensor([[0] * 7 + [1] + [2] * 16, [2] * 24], dtype=torch.int32)  # a row ends a document
    found = model(tokens, documents_bt=documents)
    for row, start, end in ((0, 0, 7), (0, 7, 8), (0, 8, 24), (1, 0, 24)):
        torch.testing.assert_close(found[row, start:end], model(tokens[row : row + 1, start:end])[0])
    labels = random_tokens(config, batch=2, seed=2)
    loss, count = model(tokens, labels, documents)
    torch.testing.assert_close(loss, F.cross_entropy(found.flatten(0, 1), labels.flatten(), reduction="sum"))
    assert count.item() == 48


def test_rotation_keeps_lengths_and_depends_on_distances_only() -> None:
    cos_tk, sin_tk = rotary_tables(16, 40, 10_000.0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    q_tk, k_tk = (rotate(x.expand(1, 40, 1, 16), cos_tk, sin_tk)[0, :, 0] for x in (q, k))
    torch.testing.assert_close(q_tk.norm(dim=-1), q.norm().expand(40))
    scores = q_tk @ k_tk.T
    for distance in range(40):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)


def test_norm_against_float64() -> None:
    norm = RMSNorm(32, 1e-3)
    norm.weight.data = torch.randn(32, generator=torch.Generator().manual_seed(0))
    x_btd = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1)) * 0.05
    x64 = x_btd.double()
    expected = x64 / (x64.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x_btd).double(), expected, rtol=1e-5, atol=1e-6)
    assert norm.bfloat16()(x_btd.bfloat16()).dtype == torch.bfloat16


def test_loss_is_that_of_the_logits() -> None:
    config = small(kv_heads=2)
    model = random_model(config)
    tokens, labels = random_tokens(config), random_tokens(config, seed=2)
    labels[0] = -100
    loss, count = model(tokens, labels)
    assert count.item() == (labels != -100).sum().item()
    expected = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_bfloat16_model_is_close_and_keeps_its_tables() -> None:
    config = small(kv_heads=2)
    model = random_model(config)
    tokens = random_tokens(config)
    expected = model(tokens)
    tables = model.rotary.cos_tk.clone(), model.rotary.sin_tk.clone()
    logits = model.bfloat16()(tokens)
    assert logits.dtype == torch.float32
    assert (logits - expected).norm() < 0.05 * expected.norm()
    assert torch.equal(model.rotary.cos_tk, tables[0]) and torch.equal(model.rotary.sin_tk, tables[1])


@pytest.mark.parametrize("tied", [False, True])
def test_from_the_meta_device(tied: bool) -> None:
    config = small(tied=tied)
    with torch.device("meta"):
        model = Llama(config)
    model.to_empty(device="cpu")
    model.init_weights(3)
    direct = Llama(config)
    direct.init_weights(3)
    assert len(list(model.parameters())) == len(list(direct.parameters()))
    tokens = random_tokens(config)
    assert torch.equal(model(tokens), direct(tokens))


@pytest.mark.parametrize("assign", [False, True])
def test_tied_weight_has_one_name_and_stays_tied(assign: bool) -> None:
    config = small(tied=True)
    source, target = random_model(config, 0), random_model(config, 1)
    state = source.state_dict()
    assert set(state) == {name for name, _ in source.named_parameters()} == {n for n, _ in hugging_face_names(config)}
    target.load_state_dict(state, assign=assign)
    assert target.output.weight is target.embedding.weight
    tokens = random_tokens(config)
    assert torch.equal(source(tokens), target(tokens))
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        target.load_state_dict({name: tensor for name, tensor in state.items() if name != "norm.weight"})
    assert copy.deepcopy(target).output.weight is not target.output.weight


def test_init_weights_depends_on_the_seed_only() -> None:
    config = small()
    model = Llama(config)
    model.init_weights(7)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(99)
        for name, weight in reversed(expected.items()):
            again = initial_weight(name, weight.shape, config.layers, 7)
            assert again.dtype == torch.float32
            assert torch.equal(again, weight), name
        with torch.device("meta"):
            assert initial_weight("norm.weight", (3,), 1, 7).device.type == "cpu"
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    model.init_weights(8)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]) == name.endswith("norm.weight"), name


def test_init_weights_are_distributed_as_said() -> None:
    for name, deviation in [("layers.3.attention.wq.weight", 0.02), ("layers.3.attention.wo.weight", 0.02 / 4)]:
        weight = initial_weight(name, (400, 400), 8, 0)
        assert weight.std().item() == pytest.approx(deviation, rel=0.01)
        assert abs(weight.mean().item()) < deviation / 100
    first, second = (initial_weight(f"layers.{i}.feed_forward.w2.weight", (40, 40), 8, 0) for i in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(initial_weight("layers.0.attention_norm.weight", (5,), 8, 0), torch.ones(5))


def test_first_loss_is_that_of_guessing() -> None:
    config = small(vocab_size=1000)
    model = Llama(config)
    model.init_weights(0)
    tokens = random_tokens(config)
    loss, count = model(tokens[:, :-1], tokens[:, 1:])
    assert (loss / count).item() == pytest.approx(math.log(1000), rel=0.02)


def test_sequence_limits() -> None:
    config = small()
    model = random_model(config)
    tokens = random_tokens(config)
    one = model(tokens[:, :1])
    torch.testing.assert_close(one, model(tokens)[:, :1])
    with pytest.raises(ValueError, match="a sequence of 25 tokens is longer than max_sequence=24"):
        model(torch.zeros(1, 25, dtype=torch.int64))
