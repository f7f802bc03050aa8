"""What all executors have in common: a round of units goes in, one outcome for each comes out.

In: a `Round`, that is a function and its units, what a unit needs, how often it is tried. Out: (name, None or `Failure`)
pairs as units end. A unit leaves its results on the file system that all workers share; an outcome only says that it did.
Which executor did the work can't be told from the results.
"""

import importlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

U = TypeVar("U")
EXECUTORS = {"local": "jobs.local", "slurm": "jobs.slurm", "ray": "jobs.ray_cluster"}
MEMORY = {"M": 1, "G": 1 << 10, "T": 1 << 20}  # MiB


def _described(help: str) -> Any:
    return field(default=None, metadata={"help": help})


@dataclass
class Resources:
    """What one task of a stage needs; None is what the executor's own `resources` say, then what the cluster does."""

    cores: int | None = _described("CPU cores of a task")
    memory: str | None = _described("memory of a task, e.g. 4G; a unit that ran out of it is tried again with twice as much")
    minutes: int | None = _described("time limit of a task; a unit that ran into it is tried again with twice as much")
    workers: int | None = _described("tasks that work at a time, at most; executor.workers for all stages")
    bundle: int | None = _described("units that one task does, one after another, at most")
    nodes: int | None = _described("nodes on which the ranks of train work, as many on each")
    min_nodes: int | None = _described("train begins, or goes on, with so few nodes where there are no more")
    gpus: int | None = _described("GPUs of each node")
    warning: int | None = _described("seconds before the end of its time limit in which train is told to save; 120")
    partition: str | None = _described("Slurm's partition")
    account: str | None = _described("Slurm's account")
    constraint: str | None = _described("node features that Slurm must find, e.g. avx2")

    def __post_init__(self) -> None:
        for name in ("cores", "minutes", "workers", "bundle", "nodes", "min_nodes", "gpus", "warning"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: choose 1 or more")
        if self.memory is not None and not re.fullmatch(r"[1-9]\d*[MGT]", self.memory):
            raise ValueError(f"memory={self.memory}: choose a number with M, G or T, such as 4G")
        if (self.min_nodes or 1) > (self.nodes or 1):
            raise ValueError(f"min_nodes={self.min_nodes}: choose at most nodes={self.nodes or 1}")
        for name in ("partition", "account", "constraint"):
            if (text := getattr(self, name)) is not None and not re.fullmatch(r"[\w.,&|()\[\]*:+-]+", text):
                raise ValueError(f"{name}={text!r}: not a name that Slurm takes")

    def over(self, base: "Resources") -> "Resources":
        """These, and where they say nothing those of `base`."""
        return replace(base, **{f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None})

    def times(self, memory: int, minutes: int) -> "Resources":
        """With `memory` and `minutes` times as much of them, where they are known."""
        return replace(
            self,
            memory=f"{self.megabytes * memory}M" if memory > 1 and self.megabytes else self.memory,
            minutes=self.minutes * minutes if self.minutes else None,
        )

    @property
    def megabytes(self) -> int | None:
        """Memory in MiB."""
        return int(self.memory[:-1]) * MEMORY[self.memory[-1]] if self.memory else None


@dataclass(frozen=True)
class Failure:
    """Why a unit was not done. `fatal`: every other attempt would end the same way (the user's mistake, a full disk).

    `out_of` is `memory` or `time` where the unit needed more of it than it was given.
    """

    message: str
    trace: str = ""
    fatal: bool = False
    out_of: str | None = None


@dataclass(frozen=True)
class Round(Generic[U]):
    """Units that don't depend on each other.

    `name` says which (`lm/train`). `folder` is where an executor that needs files (scripts, logs) keeps them. `work` gets
    one of the values of `units`; both are picklable, `work` by its module and name. At most `workers` tasks run at a time,
    and a unit is tried `attempts` times unless it fails fatally.

    A unit may be done twice at the same time, where one attempt at it was taken for lost: `work` must allow for that.
    """

    name: str
    folder: Path
    work: Callable[[U], Failure | None]
    units: Mapping[str, U]
    workers: int = 1
    attempts: int = 3
    resources: Resources = field(default_factory=Resources)


Outcomes = Iterator[tuple[str, Failure | None]]


def run_units(executor: str, job: Round[Any]) -> Outcomes:
    """Runs a round on the named executor. A closed iterator ends what still runs."""
    outcomes: Outcomes = importlib.import_module(EXECUTORS[executor]).run_units(job)
    return outcomes


def attempt(work: Callable[[U], Failure | None], unit: U) -> Failure | None:
    """One attempt of one unit, in the process that calls it: an exception of the work becomes its failure."""
    try:
        return work(unit)
    except Exception as error:
        out_of = "memory" if isinstance(error, MemoryError) else None
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc(), out_of=out_of)
