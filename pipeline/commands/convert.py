"""convert: a model in one of the formats of `model.convert` in, the same weights in another out."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import key, require

FORMATS = ("hugging_face", "meta", "llama2c")


@dataclass
class Settings:
    """Keys of the command."""

    source: str = key("", "a folder of Hugging Face's or Meta's files, or a file of llama2.c")
    target: str = key("", "the folder (llama2c: the file) to write; it must not be there yet")
    to: str = key("hugging_face", "hugging_face, meta or llama2c")
    max_sequence: int = key(2048, "longest sequence, which Meta's files don't say: 2048 for LLaMA 1, 4096 for LLaMA 2")
    bos: int = key(1, "id that documents begin with, for Hugging Face's config.json")
    eos: int = key(2, "id that ends documents, for Hugging Face's config.json; 1 for models of llama2.c, which end with <s>")

    def __post_init__(self) -> None:
        require(self.to in FORMATS, f"to={self.to}: choose {', '.join(FORMATS)}")


def run(settings: Settings) -> None:
    """Converts; the target appears when it is complete."""
    require(bool(settings.source), "source is not given: a folder of Hugging Face's or Meta's files, or a file of llama2.c")
    require(bool(settings.target), "target is not given")
    source, target = Path(settings.source), Path(settings.target)
    require(source.exists(), f"source={source}: no such file or folder")
    require(not target.exists(), f"target={target} is already there")
    from model.convert.hugging_face import from_hugging_face, to_hugging_face
    from model.convert.llama2c import from_llama2c, to_llama2c
    from model.convert.meta import PARAMS, from_meta, to_meta

    if source.is_file():
        weights, config = from_llama2c(source)
    elif (source / PARAMS).exists():
        weights, config = from_meta(source, settings.max_sequence)
    else:
        weights, config = from_hugging_face(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        made = Path(name) / "made"
        if settings.to == "llama2c":
            to_llama2c(weights, config, made)
        elif settings.to == "meta":
            to_meta(weights, config, made)
        else:
            to_hugging_face(weights, config, made, bos=settings.bos, eos=settings.eos)
        if made.is_dir() and source.is_dir() and (tokenizer := source / "tokenizer.model").exists():
            shutil.copyfile(tokenizer, made / "tokenizer.model")
        made.rename(target)
    print(f"{target}: {config.parameter_count():,} parameters, {settings.to}")
