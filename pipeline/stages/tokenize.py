"""tokenize: the corpus and a tokenizer in, token shards out (`tokens/{train,validation}/part-*.{bin,idx,json}`)."""

from pathlib import Path
from typing import Any

from ccnet.stats import merge
from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit
from pipeline.stages.tokenizer import chosen_parts
from pipeline.tokens.encode import SPLITS, tokenize_part
from pipeline.tokens.shards import ShardFiles


def run(stage: Stage) -> None:
    """One unit a corpus file."""
    tokenizer = stage.upstream("tokenizer")["result"]
    parts = chosen_parts(stage)
    units = [
        Unit(
            name := part["path"].removeprefix("corpus/").partition(".")[0].replace("/", "-"),
            {
                "name": name,
                "part": stage.out / part["path"],
                "model": stage.out / tokenizer["model"],
                "validation": stage.config.tokenize.validation,
            },
            {part["path"]: part["digest"], "tokenizer": tokenizer["digest"]},
            (stage.out / part["path"]).stat().st_size,
        )
        for part in parts
    ]
    records = stage.map("tokenize", tokenize_unit, units)
    total = merge([record.statistics for record in records])
    for split in SPLITS:
        if not total[split]["tokens"]:
            raise StageError(f"tokenize: no document is in the {split} split; tokenize.validation decides the shares")
    stage.finish(
        {
            split: total[split] | {"shards": [f"tokens/{split}/{r.unit}" for r in records if r.statistics[split]["tokens"]]}
            for split in SPLITS
        }
    )


def tokenize_unit(outputs: Outputs, name: str, part: Path, model: Path, validation: float) -> dict[str, Any]:
    """Work of a unit: `pipeline.tokens.encode.tokenize_part`."""
    targets = {
        split: ShardFiles(*(outputs.path(f"tokens/{split}/{name}{suffix}") for suffix in (".bin", ".idx", ".json")))
        for split in SPLITS
    }
    return tokenize_part([part], model, targets, validation=validation)
