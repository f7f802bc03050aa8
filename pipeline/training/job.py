"""What a training process is told: one JSON file, written by the `train` stage, read by every rank.

It lies in the folder that takes checkpoints and metrics; paths in it are relative to that folder's parent, so a run can
be moved.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import LlamaConfig
from pipeline.outputs import read_json
from pipeline.training.settings import HOW, MixtureConfig, TrainConfig, ZeroConfig


@dataclass(frozen=True)
class Job:
    """A training run. `train_shards` and `validation_shards` are prefixes of token shards by source; `tokenizer` and `tokens`
    are the digests of the tokenizer (the shards must carry it) and of the shards."""

    model: LlamaConfig
    train: TrainConfig
    zero: ZeroConfig
    mixture: MixtureConfig
    train_shards: dict[str, list[str]]
    validation_shards: dict[str, list[str]]
    tokenizer: str
    tokens: str

    def json(self) -> dict[str, Any]:
        """The job as a JSON value."""
        return dataclasses.asdict(self)

    def result(self) -> dict[str, Any]:
        """What the result is a function of: `json` without how it is computed (`pipeline.training.settings.HOW`)."""
        value = self.json()
        for name in HOW:
            *group, last = name.split(".")
            del functools.reduce(dict.__getitem__, group, value)[last]
        return value

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Reads a job file."""
        value = read_json(path)
        value["model"] = LlamaConfig(**value["model"])
        value["train"] = TrainConfig(**value["train"])
        value["zero"] = ZeroConfig(**value["zero"])
        value["mixture"] = MixtureConfig(**value["mixture"])
        return cls(**value)
