"""A run while it goes on: its records and metrics in, the report's page out, with how far the running stage is.

A stage's plan (`records/{stage}/{round}.plan`: units, missing, begun) says how many units a round has, how many of them were
missing when it began, and when that was (Unix time).
"""

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.figures import Column, Figure, Run, Section, figures
from pipeline.outputs import read_json
from pipeline.progress import human_seconds
from pipeline.stages import SPECS
from pipeline.stages.report import render
from pipeline.stages.train import FOLDER
from pipeline.training.metrics import read_metrics


@dataclass(frozen=True)
class Round:
    """How far a round of a stage is: units done, those planned (None: not known) and failed, units a second since it began
    and seconds that the others will take (None: not known)."""

    name: str
    done: int
    planned: int | None
    failed: int
    rate: float | None
    left: float | None


class LivePage:
    """The page of a run, made anew when it is older than `every` seconds. Many threads may ask for it."""

    def __init__(self, out: Path, every: int) -> None:
        self._out, self._every = out, every
        self._run = Run(out)
        self._lock = threading.Lock()
        self._made, self._page = float("-inf"), ""

    def text(self) -> str:
        """The page as HTML, which a browser loads again after `every` seconds."""
        with self._lock:
            if time.monotonic() - self._made >= self._every:
                try:
                    sections = [*_now(self._out), *figures(self._out, self._run.read())]
                except (FileNotFoundError, json.JSONDecodeError):  # a stage that begins anew removes its records
                    sections = None
                if sections is not None or not self._page:
                    self._page = render(self._out.resolve().name, sections or [], refresh=self._every)
                self._made = time.monotonic()
            return self._page


def running_rounds(out: Path) -> dict[str, list[Round]]:
    """{stage: rounds in the order in which they began} of the stages that have begun and have no manifest yet."""
    running: dict[str, list[Round]] = {}
    for stage in SPECS:
        records = out / "records"
        if (records / stage / "config.json").exists() and not (records / f"{stage}.json").exists():
            folders = sorted((path for path in (records / stage).iterdir() if path.is_dir()), key=_begun)
            running[stage] = [_round(folder) for folder in folders]
    return running


def _begun(folder: Path) -> float:
    plan = folder.with_suffix(".plan")
    return float(read_json(plan)["begun"]) if plan.exists() else folder.stat().st_mtime


def _round(folder: Path) -> Round:
    parts = [part for part in folder.iterdir() if part.is_dir()]
    names = [name for part in parts for name in os.listdir(part)]
    done = sum(name.endswith(".json") for name in names)
    failed = sum(name.endswith(".error") for name in names)
    if not (plan := folder.with_suffix(".plan")).exists():
        return Round(folder.name, done, None, failed, None, None)
    told = read_json(plan)
    new = done - (told["units"] - told["missing"])
    last = max((part.stat().st_mtime for part in parts), default=0.0)
    seconds = max(last - told["begun"], 0)  # until the last record: also of a stage that stands still
    rate = new / seconds if new > 0 and seconds else None
    return Round(folder.name, done, told["units"], failed, rate, (told["units"] - done) / rate if rate else None)


def _now(out: Path) -> list[Section]:
    """How far the stages are that have begun and not finished; [] where there is none."""
    rows: list[list[Any]] = []
    for stage, rounds in running_rounds(out).items():
        if stage == "train":
            rows += _training(out)
            continue
        for part in rounds:
            rate = f"{60 * part.rate:,.4g} units a minute" if part.rate else None
            left = human_seconds(part.left) if part.left is not None else None
            name = stage if part.name == stage else f"{stage}: {part.name}"
            rows.append([name, part.done, part.planned, part.failed, rate, left])
        if not rounds:
            rows.append([stage, 0, None, 0, None, None])
    columns = (
        Column("stage", "text"),
        Column("done", "count"),
        Column("planned", "count"),
        Column("failed", "count"),
        Column("rate", "text"),
        Column("time left", "text"),
    )
    note = (
        "Stages that have begun and not finished, in units; a training in steps. A stage that was stopped is one of them too."
    )
    return [Section("now", "Now", [Figure("now", "Running", columns, rows, note)])] if rows else []


def _training(out: Path) -> list[list[Any]]:
    told = out / FOLDER / "job.json"
    metrics = read_metrics(out / FOLDER)
    if not (told.exists() and metrics):
        return [["train", 0, None, 0, None, None]]
    last, steps = metrics[-1], read_json(told)["train"]["steps"]
    left = human_seconds(last["seconds"] * (steps - last["step"]))
    return [["train", last["step"], steps, 0, f"{last['tokens_per_second']:,.0f} tokens a second", left]]
