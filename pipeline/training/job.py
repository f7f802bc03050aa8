"""What a training process is told: one JSON file, written by the `train` stage, read by every rank."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import LlamaConfig
from pipeline.outputs import read_json, write_json
from pipeline.training.settings import TrainConfig, ZeroConfig


@dataclass(frozen=True)
class Job:
    """`train` and `validation` are prefixes of token shards, `tokenizer` the digest that they must carry, `folder` takes
    checkpoints and metrics."""

    model: LlamaConfig
    train: TrainConfig
    zero: ZeroConfig
    train_shards: list[str]
    validation_shards: list[str]
    tokenizer: str
    folder: Path

    def write(self, path: Path) -> None:
        """Writes the job as JSON."""
        write_json(path, self.json())

    def json(self) -> dict[str, Any]:
        """The job as JSON value."""
        return dataclasses.asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Reads what `write` wrote."""
        value = read_json(path)
        value["model"] = LlamaConfig(**value["model"])
        value["train"] = TrainConfig(**value["train"])
        value["zero"] = ZeroConfig(**value["zero"])
        value["folder"] = Path(value["folder"])
        return cls(**value)
