import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from model.config import LlamaConfig
from model.convert.hugging_face import INDEX, WEIGHTS, from_hugging_face, to_hugging_face
from model.convert.layout import tensor_shapes
from model.convert.llama2c import from_llama2c, to_llama2c
from model.generate import generate
from model.llama import Llama

SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {"kv_heads": 4},
    "grouped": {},
    "tied": {"tied": True},
    "others": {"rope_theta": 5e5, "norm_eps": 1e-6, "max_sequence": 77, "layers": 3},
}


def small(**change: Any) -> LlamaConfig:
    sizes = {"dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "vocab_size": 30, "max_sequence": 16}
    return LlamaConfig(**{**sizes, **change})


def random_weights(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in tensor_shapes(config).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ValueError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good folder of a small model."""
    to_hugging_face(random_weights(small()), small(), tmp_path / "good", bos=1, eos=2)
    return tmp_path / "good"


def edit(path: Path, **change: Any) -> None:
    """Changes the values of a JSON object; None deletes."""
    value = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_are_the_models(shape: str) -> None:
    config = small(**SHAPES[shape])
    assert tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in Llama(config).state_dict().items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = small(**SHAPES[shape])
    weights = random_weights(config, dtype)
    to_hugging_face(weights, config, tmp_path / "new" / "folder", bos=1, eos=2)
    found, found_config = from_hugging_face(tmp_path / "new" / "folder")
    assert found_config == config
    assert_equal(found, weights)
    Llama(config).load_state_dict(found)
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["dtype"] == str(dtype)[len("torch.") :]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shard", ["5GB", "4KB"])
def test_reads_what_transformers_writes(shape: str, shard: str, tmp_path: Path) -> None:
    config = small(**SHAPES[shape])
    to_hugging_face(random_weights(config), config, tmp_path / "ours", bos=1, eos=2)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / INDEX).exists() == (shard == "4KB")
    found, found_config = from_hugging_face(tmp_path / "theirs")
    assert found_config == config
    assert_equal(found, random_weights(config))


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_reads_the_files_of_a_large_model(shape: str, tmp_path: Path) -> None:
    config = small(**SHAPES[shape])
    to_hugging_face(random_weights(config), config, tmp_path, bos=1, eos=2, shard_bytes=4000)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) > 4 and INDEX in files and WEIGHTS not in files
    assert all(path.stat().st_size < 6000 for path in tmp_path.iterdir() if path.name != INDEX)
    assert_equal(from_hugging_face(tmp_path)[0], random_weights(config))
    theirs, report = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values())
    model = Llama(config)
    model.load_state_dict(random_weights(config))
    tokens = torch.arange(12)[None]
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


def test_what_older_releases_stored_beside_the_weights(tmp_path: Path) -> None:
    config = small(tied=True)
    to_hugging_face(random_weights(config), config, tmp_path, bos=1, eos=2)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / WEIGHTS)
    assert_equal(from_hugging_face(tmp_path)[0], random_weights(config))


def test_transformers_gets_the_tokens_and_sizes(folder: Path) -> None:
    theirs = TheirConfig.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert (theirs.hidden_size, theirs.num_key_value_heads, theirs.head_dim) == (16, 2, 4)
    _, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_all_files_can_be_read_by_the_same_people(folder: Path) -> None:
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_same_weights_same_bytes(folder: Path, tmp_path: Path) -> None:
    weights = random_weights(small())
    to_hugging_face(dict(reversed(weights.items())), small(), tmp_path / "again", bos=1, eos=2)
    for name in ("config.json", WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_one_file_goes_before_a_left_over_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "old.safetensors"}}))
    assert_equal(from_hugging_face(folder)[0], random_weights(small()))


def test_older_names_of_the_rotary_base(folder: Path) -> None:
    edit(folder / "config.json", rope_parameters=None, rope_theta=1234.5, num_key_value_heads=2, rope_scaling=None)
    assert from_hugging_face(folder)[1] == small(rope_theta=1234.5)
    edit(folder / "config.json", rope_theta=None)
    assert from_hugging_face(folder)[1] == small()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', not 'llama'"),
        ({"model_type": None}, "model_type is None, not 'llama'"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"hidden_size": "wide"}, "config.json: "),
        ({"num_attention_heads": 5}, "heads=5 must divide dim=16"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not 'silu'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope_type is 'linear'"),
    ],
)
def test_configurations_that_do_not_fit(folder: Path, change: dict[str, Any], told: str) -> None:
    edit(folder / "config.json", **change)
    message = error_of(lambda: from_hugging_face(folder))
    assert told in message and str(folder / "config.json") in message


@pytest.mark.parametrize("text", [b"", b'{"model_type": "llama"', b"[1]", b"\xff\xfe", b"3"])
def test_configuration_that_is_not_json(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    assert re.search(r"config\.json is not (a )?JSON", error_of(lambda: from_hugging_face(folder)))


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    assert "config.json cannot be read: No such file" in error_of(lambda: from_hugging_face(tmp_path / "nowhere"))
    (folder / WEIGHTS).rename(folder / "part.safetensors")
    assert WEIGHTS in error_of(lambda: from_hugging_face(folder))
    (folder / INDEX).write_text("{}")
    assert f"{INDEX}: weight_map is missing" in error_of(lambda: from_hugging_face(folder))
    for name in (7, None, ["part.safetensors"], "../good/part.safetensors", str(folder / "part.safetensors")):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        assert f"{INDEX}: weight_map has {name!r}" in error_of(lambda: from_hugging_face(folder))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "part.safetensors", "b": "lost.safetensors"}}))
    assert "lost.safetensors" in error_of(lambda: from_hugging_face(folder))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))
    assert_equal(from_hugging_face(folder)[0], random_weights(small()))


@pytest.mark.parametrize("length", [0, 5, 2000])
def test_broken_weights(folder: Path, length: int) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:length])
    assert str(folder / WEIGHTS) in error_of(lambda: from_hugging_face(folder))


def test_tensors_that_do_not_fit(folder: Path) -> None:
    good = load_file(folder / WEIGHTS)
    key = "model.layers.1.self_attn.k_proj.weight"

    def told(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, folder / WEIGHTS)
        return error_of(lambda: from_hugging_face(folder))

    without = {name: tensor for name, tensor in good.items() if name != key}
    assert f"{key} is missing (1 " in told(without)
    assert "model.embed_tokens.weight is missing (21 " in told({})
    assert "q_proj.bias belongs to no such model (1 " in told({**good, "model.layers.0.self_attn.q_proj.bias": torch.ones(16)})
    assert f"{key} has the shape (16, 16), the configuration says (8, 16)" in told({**good, key: torch.ones(16, 16)})
    assert f"{key} has the shape (128,), the configuration says (8, 16)" in told({**good, key: good[key].flatten().clone()})


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    config, good = small(), random_weights(small())

    def told(weights: dict[str, Tensor], config: LlamaConfig = config) -> str:
        return error_of(lambda: to_hugging_face(weights, config, tmp_path / "bad", bos=1, eos=2))

    assert "norm.weight is missing (1 " in told({name: t for name, t in good.items() if name != "norm.weight"})
    assert "layers.2.attention.wq.weight belongs to no" in told({**good, "layers.2.attention.wq.weight": torch.ones(1)})
    assert "output.weight belongs to no" in told(good, small(tied=True))
    assert "output.weight has the shape (30, 15)" in told({**good, "output.weight": torch.ones(30, 15)})
    assert not (tmp_path / "bad").exists()


def llama2c_file(path: Path, weights: dict[str, Tensor], config: LlamaConfig) -> None:
    """Written number by number as llama2.c's run.c reads it; weights in our names, rotary halves."""
    head = config.head_dim
    sign = 1 if config.tied else -1
    sizes = (config.dim, config.hidden, config.layers, config.heads, config.kv_heads, sign * config.vocab_size)
    numbers = [weights["embedding.weight"]]
    kinds = "attention_norm attention.wq attention.wk attention.wv attention.wo feed_forward_norm"
    for kind in f"{kinds} feed_forward.w1 feed_forward.w2 feed_forward.w3".split():
        for layer in range(config.layers):
            tensor = weights[f"layers.{layer}.{kind}.weight"]
            if kind in ("attention.wq", "attention.wk"):
                rows = [
                    h * head + i + half * head // 2
                    for h in range(len(tensor) // head)
                    for i in range(head // 2)
                    for half in (0, 1)
                ]
                tensor = tensor[rows]
            numbers.append(tensor)
    numbers += [weights["norm.weight"], torch.full((config.max_sequence * head,), torch.nan)]
    numbers += [] if config.tied else [weights["output.weight"]]
    flat = torch.cat([tensor.flatten() for tensor in numbers])
    path.write_bytes(struct.pack("<7i", *sizes, config.max_sequence) + struct.pack(f"<{len(flat)}f", *flat.tolist()))


@pytest.mark.parametrize(
    "shape", [{"tied": True}, {"tied": False}, {"kv_heads": 1, "layers": 3, "tied": True}, {"heads": 1, "kv_heads": 1}]
)
def test_llama2c_every_tensor(shape: dict[str, Any], tmp_path: Path) -> None:
    config = small(**shape)
    llama2c_file(tmp_path / "model.bin", random_weights(config), config)
    weights, found = from_llama2c(tmp_path / "model.bin")
    assert found == config
    assert_equal(weights, random_weights(config))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_there_and_back(tied: bool, tmp_path: Path) -> None:
    config = small(tied=tied, layers=3)
    to_llama2c(random_weights(config), config, tmp_path / "model.bin")
    weights, found = from_llama2c(tmp_path / "model.bin")
    assert found == config
    assert_equal(weights, random_weights(config))


def test_llama2c_writes_the_bytes_of_the_trained_model(shared_data: Path, tmp_path: Path) -> None:
    """All of them but the rotary tables, which differ in the last bit of some numbers."""
    path = shared_data / "models" / "stories260K.bin"
    weights, config = from_llama2c(path)
    to_llama2c(weights, config, tmp_path / "again.bin")
    tables = 4 * config.max_sequence * config.head_dim
    theirs, ours = path.read_bytes(), (tmp_path / "again.bin").read_bytes()
    assert ours[:-tables] == theirs[:-tables] and len(ours) == len(theirs)
    expected, found = (torch.frombuffer(bytearray(content[-tables:]), dtype=torch.float32) for content in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_llama2c_cannot_say_everything(tmp_path: Path) -> None:
    for change in ({"norm_eps": 1e-6}, {"rope_theta": 5e5}):
        config = small(**change)
        message = error_of(lambda config=config: to_llama2c(random_weights(config), config, tmp_path / "model.bin"))
        assert "llama2.c computes with norm_eps=1e-05 and rope_theta=10000.0" in message
    missing = {name: weight for name, weight in random_weights(small()).items() if name != "norm.weight"}
    assert "norm.weight is missing" in error_of(lambda: to_llama2c(missing, small(), tmp_path / "model.bin"))
    assert not (tmp_path / "model.bin").exists()


def test_llama2c_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    llama2c_file(path, random_weights(small(tied=True)), small(tied=True))
    content = path.read_bytes()

    def told(changed: bytes) -> str:
        path.write_bytes(changed)
        message = error_of(lambda: from_llama2c(path))
        assert message.startswith(f"{path}: ")
        return message

    assert f"{len(content) - 4} bytes, but the sizes in its header give {len(content)}" in told(content[:-4])
    assert f"{len(content) + 1} bytes, but the sizes in its header give {len(content)}" in told(content + b"\0")
    assert "0 bytes, less than llama2.c's header of 28" in told(b"")
    assert "27 bytes, less than" in told(content[:27])
    assert "dim=0: must be at least 1" in told(bytes(len(content)))
    assert "heads=5 must divide dim=16" in told(struct.pack("<7i", 16, 24, 2, 5, 2, 30, 16) + content[28:])
    assert "in its header give" in told(struct.pack("<7i", *[2**31 - 2] * 3, 1, 1, -(2**31), 2**31 - 1) + content[28:])


def test_trained_llama2c_model_tells_transformers_story(shared_data: Path, tmp_path: Path) -> None:
    weights, config = from_llama2c(shared_data / "models" / "stories260K.bin")
    assert config == LlamaConfig(64, 5, 8, 4, 172, 512, 512, norm_eps=1e-5, rope_theta=10000.0, tied=True)
    model = Llama(config)
    model.load_state_dict(weights)
    processor = SentencePieceProcessor(model_file=str(shared_data / "models" / "tok512.model"))
    prompt = [processor.bos_id(), *processor.encode("Once upon a time")]
    ids = prompt + generate(model, [prompt], max_new=200)[0]

    to_hugging_face(weights, config, tmp_path, bos=processor.bos_id(), eos=processor.eos_id())
    theirs = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.tensor([prompt])
    [expected] = theirs.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=200, do_sample=False, eos_token_id=None
    ).tolist()
    assert ids == expected

    text = processor.decode(ids)
    assert text.startswith("Once upon a time, there was a little girl named ")
    assert text.count(".") >= 5 and "�" not in text
    words = re.findall(r"[a-z]+", text.lower())
    assert len(set(words)) > 40
    # A trained model finds its own story far likelier than the same words in disorder.
    shuffled = torch.tensor(ids)[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    losses = []
    for sequence in (torch.tensor(ids), shuffled):
        loss, count = model(sequence[None, :-1], sequence[None, 1:])
        losses.append((loss / count).item())
    assert losses[0] < 1 < 4 < losses[1]
