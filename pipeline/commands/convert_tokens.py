"""convert_tokens: token shards in, a Parquet file for Hugging Face `datasets` out; or such files in, a token shard out."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import key, require

PARQUET = ".parquet"


@dataclass
class Settings:
    """Keys of the command."""

    source: str = key("", "path or glob of token shards (their .bin files), or of Parquet files with a column input_ids")
    target: str = key("", "the Parquet file to write, or the token shard (its .bin file); it must not be there yet")
    tokenizer: str = key("", "the SentencePiece model that made the ids; for a token shard")


def run(settings: Settings) -> None:
    """Converts; the target appears when it is complete."""
    require(bool(settings.source), "source is not given: token shards (.bin), or Parquet files with a column input_ids")
    require(bool(settings.target), "target is not given")
    from pipeline.stage import expand_files
    from pipeline.tokens.convert_datasets import export_shards, import_shard

    sources, target = [Path(path) for path in expand_files([settings.source])], Path(settings.target)
    wanted, suffixes = (".bin", (PARQUET,)) if target.suffix == PARQUET else (PARQUET, (".bin", ".idx", ".json"))
    require(target.suffix == suffixes[0], f"target={target}: name a file that ends in .parquet or .bin")
    for path in sources:
        require(path.suffix == wanted, f"source={path}: to {target} go files that end in {wanted}")
    require(not target.exists(), f"target={target} is already there")
    require(wanted == ".bin" or bool(settings.tokenizer), "tokenizer is not given: the model that made the ids")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        made = Path(name) / "made"
        if wanted == ".bin":
            documents = export_shards([path.with_suffix("") for path in sources], made.with_suffix(PARQUET))
        else:
            documents = import_shard(sources, Path(settings.tokenizer), made)["documents"]
        for suffix in reversed(suffixes):  # a shard's .bin file last
            made.with_suffix(suffix).rename(target.with_suffix(suffix))
    print(f"{target}: {documents:,} documents")
