"""Meta's files, against a forward pass in their layout that is written here from the papers, number by number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import LlamaConfig
from model.convert.hugging_face import from_hugging_face, to_hugging_face
from model.convert.layout import halves_from_pairs, pairs_from_halves, tensor_shapes
from model.convert.meta import _hidden_params, from_meta, hidden_width, to_meta
from model.llama import Llama


def small(**change: Any) -> LlamaConfig:
    sizes = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 48, "vocab_size": 30, "max_sequence": 16}
    return LlamaConfig(**{**sizes, **change})


def random_weights(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: (0.3 * torch.randn(s, generator=generator)).to(dtype) for name, s in tensor_shapes(config).items()}


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def logits_of_meta_weights(weights: dict[str, Tensor], params: dict[str, Any], tokens: list[int]) -> Tensor:
    """LLaMA's forward pass in float64 with Meta's names and complex rotary pairs, one position and one head at a time."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv_heads = params["n_heads"], params["n_kv_heads"]
    size = params["dim"] // heads

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean() + params["norm_eps"]).sqrt() * weight

    def rotated(x: Tensor, position: int) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(-1, 2))
        frequencies = params["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        return torch.view_as_real(pairs * torch.exp(1j * position * frequencies)).flatten()

    stream = [w["tok_embeddings.weight"][token] for token in tokens]
    for layer in range(params["n_layers"]):

        def of(name: str, layer: int = layer) -> Tensor:
            return w[f"layers.{layer}.{name}.weight"]

        normed = [norm(x, of("attention_norm")) for x in stream]
        for position in reversed(range(len(tokens))):  # the positions before must not have been changed yet
            outputs = []
            for head in range(heads):
                rows, kv = slice(head * size, (head + 1) * size), head * kv_heads // heads
                kv_rows = slice(kv * size, (kv + 1) * size)
                q = rotated(of("attention.wq")[rows] @ normed[position], position)
                seen = range(position + 1)
                k = torch.stack([rotated(of("attention.wk")[kv_rows] @ normed[t], t) for t in seen])
                v = torch.stack([of("attention.wv")[kv_rows] @ normed[t] for t in seen])
                outputs.append((k @ q / size**0.5).softmax(0) @ v)
            stream[position] = stream[position] + of("attention.wo") @ torch.cat(outputs)
        for position, x in enumerate(stream):
            h = norm(x, of("ffn_norm"))
            gate = of("feed_forward.w1") @ h
            stream[position] = x + of("feed_forward.w2") @ (gate * gate.sigmoid() * (of("feed_forward.w3") @ h))
    return torch.stack([w["output.weight"] @ norm(x, w["norm.weight"]) for x in stream])


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_are_those_of_the_files(kv_heads: int, tmp_path: Path) -> None:
    config = small(kv_heads=kv_heads, rope_theta=500.0, norm_eps=1e-4)
    weights = random_weights(config)
    to_meta(weights, config, tmp_path)
    theirs = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    params = json.loads((tmp_path / "params.json").read_text())
    model = Llama(config)
    model.load_state_dict(weights)
    tokens = [3, 7, 7, 21, 0, 29, 3]
    expected = logits_of_meta_weights(theirs, params, tokens)
    torch.testing.assert_close(model(torch.tensor([tokens]))[0].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back(shards: int, dtype: torch.dtype, tmp_path: Path) -> None:
    config = small()
    weights = random_weights(config, dtype)
    to_meta(weights, config, tmp_path, shards)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == shards
    found, found_config = from_meta(tmp_path, max_sequence=16)
    assert found_config == config and found.keys() == weights.keys()
    for name, weight in weights.items():
        assert found[name].dtype == dtype and torch.equal(found[name], weight), name
    to_hugging_face(found, config, tmp_path / "hf", bos=1, eos=2)
    for name, weight in from_hugging_face(tmp_path / "hf")[0].items():
        assert torch.equal(weight, weights[name]), name


def test_released_files_of_each_generation(tmp_path: Path) -> None:
    """LLaMA 1 and 2: no vocabulary in params.json, rotary tables stored, embedding dealt out by columns; 3: by rows."""
    config = small()
    weights = random_weights(config)
    to_meta(weights, config, tmp_path, 2)
    params = json.loads((tmp_path / "params.json").read_text())
    first = {**params, "vocab_size": -1}
    del first["rope_theta"]
    parts = [torch.load(tmp_path / f"consolidated.0{n}.pth", weights_only=True) for n in (0, 1)]
    for n, part in enumerate(parts):
        torch.save({**part, "rope.freqs": torch.ones(4)}, tmp_path / f"consolidated.0{n}.pth")
    (tmp_path / "params.json").write_text(json.dumps(first))
    found, found_config = from_meta(tmp_path, max_sequence=16)
    assert found_config == config and torch.equal(found["embedding.weight"], weights["embedding.weight"])
    for n, part in enumerate(parts):
        rows = weights["embedding.weight"].chunk(2)[n].clone()
        torch.save({**part, "tok_embeddings.weight": rows}, tmp_path / f"consolidated.0{n}.pth")
    for told in (first, params):
        (tmp_path / "params.json").write_text(json.dumps(told))
        found, found_config = from_meta(tmp_path, max_sequence=16)
        assert found_config == config and torch.equal(found["embedding.weight"], weights["embedding.weight"])


@pytest.mark.parametrize(
    ("dim", "multiple_of", "multiplier", "hidden"),
    [
        (4096, 256, None, 11008),
        (5120, 256, None, 13824),
        (6656, 256, None, 17920),
        (8192, 256, None, 22016),
        (8192, 4096, 1.3, 28672),
        (4096, 1024, 1.3, 14336),
    ],
)
def test_widths_of_the_released_models(dim: int, multiple_of: int, multiplier: float | None, hidden: int) -> None:
    assert hidden_width(dim, multiple_of, multiplier) == hidden


@given(dim=st.integers(1, 10_000), hidden=st.integers(1, 40_000))
def test_any_width_can_be_said(dim: int, hidden: int) -> None:
    config = LlamaConfig(dim=2 * dim, heads=1, kv_heads=1, hidden=hidden)
    told = _hidden_params(config)
    assert hidden_width(config.dim, told["multiple_of"], told.get("ffn_dim_multiplier")) == hidden


@given(heads=st.integers(1, 4), half=st.integers(1, 5), width=st.integers(1, 3))
def test_row_orders_are_inverse(heads: int, half: int, width: int) -> None:
    weight = torch.arange(heads * 2 * half * width).view(-1, width)
    assert torch.equal(halves_from_pairs(pairs_from_halves(weight, 2 * half), 2 * half), weight)
    rows = halves_from_pairs(torch.arange(2 * half)[:, None], 2 * half)[:, 0].tolist()
    assert rows == [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    config = small(tied=True)
    assert "tied to the embedding" in error_of(lambda: to_meta(random_weights(config), config, tmp_path / "new"))
    good = random_weights(small())
    assert "shards=3 must divide kv_heads=2" in error_of(lambda: to_meta(good, small(), tmp_path / "new", 3))
    del good["layers.1.attention.wv.weight"]
    assert "layers.1.attention.wv.weight is missing" in error_of(lambda: to_meta(good, small(), tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    to_meta(random_weights(small()), small(), tmp_path, 2)
    path, params = tmp_path / "consolidated.01.pth", tmp_path / "params.json"
    good, told = torch.load(path, weights_only=True), json.loads(params.read_text())
    name = "layers.0.attention.wq.weight"

    def error(**change: Any) -> str:
        torch.save({key: tensor for key, tensor in {**good, **change}.items() if tensor is not None}, path)
        return error_of(lambda: from_meta(tmp_path))

    assert f"{name} is missing" in error(**{name: None})
    assert "extra.weight belongs to no such model (1 " in error(**{"extra.weight": torch.ones(1)})
    assert f"parts of {name} have shapes that don't fit together: (16, 32), (16, 31)" in error(**{name: torch.ones(16, 31)})
    assert "attention.wq.weight has the shape (24, 32)" in error(**{name: torch.ones(8, 32)})
    assert "holds other things than tensors" in error(**{name: "text"})
    torch.save(good, path)
    for content in (b"", b"no file of torch", path.read_bytes()[:3000]):
        path.write_bytes(content)
        assert f"{path}: no file of weights" in error_of(lambda: from_meta(tmp_path))
    torch.save(good, path)
    for change, message in (
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"n_heads": 5}, "heads=5 must divide dim=32"),
        ({"dim": "wide"}, f"{params}: "),
    ):
        params.write_text(json.dumps({**told, **change}))
        assert message in error_of(lambda: from_meta(tmp_path))
    params.write_text(json.dumps({key: value for key, value in told.items() if key != "n_layers"}))
    assert "'n_layers' is missing" in error_of(lambda: from_meta(tmp_path))
    params.unlink()
    assert "params.json cannot be read" in error_of(lambda: from_meta(tmp_path))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    to_meta(random_weights(small()), small(), tmp_path)
    torch.save({"tok_embeddings.weight": Evil()}, tmp_path / "consolidated.00.pth")
    assert "no file of weights" in error_of(lambda: from_meta(tmp_path))
    assert not (tmp_path / "ran").exists()
