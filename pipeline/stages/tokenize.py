"""tokenize: the corpus, other sources and a tokenizer in, token shards out
(`tokens/{train,validation}/{source}/*.{bin,idx,json}`)."""

from pathlib import Path
from typing import Any

from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit
from pipeline.stages.texts import text_files
from pipeline.tokens.documents import Slice, slices
from pipeline.tokens.encode import SPLITS, tokenize_part
from pipeline.tokens.shards import ShardFiles


def run(stage: Stage) -> None:
    """One unit a slice of a file. A source has as many shards as slices with tokens, in the order of its files."""
    tokenizer = stage.upstream("tokenizer")["result"]
    shards: dict[str, list[str]] = {}
    units: dict[str, Unit] = {}
    for file in text_files(stage):
        shards.setdefault(file.source, [])
        for number, part in enumerate(slices(file.path, stage.config.tokenize.shard_bytes)):
            shard = f"{file.source}/{file.name}-{number:04d}"
            arguments = {
                "shard": shard,
                "part": part,
                "model": stage.out / tokenizer["model"],
                "validation": stage.config.tokenize.validation,
            }
            inputs = {f"{file.source}/{file.name}": file.fingerprint, "tokenizer": tokenizer["digest"]}
            units[shard] = Unit(shard.replace("/", "."), arguments, inputs, part.bytes)
            shards[file.source].append(shard)
    records = stage.map("tokenize", tokenize_unit, list(units.values()))
    counts = {shard: record.statistics for shard, record in zip(units, records, strict=True)}
    sources = {source: _summed({shard: counts[shard] for shard in names}) for source, names in shards.items()}
    for source, entry in sources.items():
        if not any(entry[split]["tokens"] for split in SPLITS):
            raise StageError(f"tokenize: source {source} is empty: none of its files has a text")
        if not entry["train"]["tokens"]:
            raise StageError(f"tokenize: source {source} has no document to train on; tokenize.validation decides the shares")
    total = merge(list(counts.values()))
    if not total["validation"]["tokens"]:
        raise StageError("tokenize: no document is in the validation split; tokenize.validation decides the shares")
    stage.finish({**total, "sources": sources})


def _summed(counts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{split: its sums over the shards of a source, and the prefixes of those that have tokens}."""
    total = merge(list(counts.values())) or {split: {"tokens": 0} for split in SPLITS}
    return {
        split: total[split] | {"shards": [f"tokens/{split}/{shard}" for shard in counts if counts[shard][split]["tokens"]]}
        for split in SPLITS
    }


def tokenize_unit(outputs: Outputs, shard: str, part: Slice, model: Path, validation: float) -> dict[str, Any]:
    """Work of a unit: `pipeline.tokens.encode.tokenize_part`."""
    targets = {
        split: ShardFiles(*(outputs.path(f"tokens/{split}/{shard}{suffix}") for suffix in (".bin", ".idx", ".json")))
        for split in SPLITS
    }
    return tokenize_part([part], model, targets, validation=validation)
