"""Work of units for tests of executors: each leaves a line a try in a file of its own."""

import os
import signal
import time
from pathlib import Path

from jobs.executor import Failure

Unit = tuple[Path, str]


def note(unit: Unit) -> None:
    folder, name = unit
    with (folder / name).open("a") as file:
        file.write(f"{os.environ.get('SLURMD_NODENAME')} {os.environ.get('SLURM_ARRAY_TASK_ID')}\n")


def tries(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text().splitlines()) for path in folder.iterdir()}


def nodes(folder: Path, name: str) -> list[str]:
    return [line.split()[0] for line in (folder / name).read_text().splitlines()]


def fail(unit: Unit) -> None:
    """Unit 3 always fails, 1 fails twice."""
    note(unit)
    folder, name = unit
    if name == "3":
        raise KeyError("three")
    if name == "1" and tries(folder)[name] < 3:
        raise OSError("stale file handle")


def mistake(unit: Unit) -> Failure | None:
    """Unit 1 is the user's mistake."""
    note(unit)
    return Failure("no such model", fatal=True) if unit[1] == "1" else None


def die(unit: Unit) -> None:
    """Unit 1 always takes its process along, 2 once."""
    note(unit)
    folder, name = unit
    if name == "1" or (name == "2" and tries(folder)[name] == 1):
        os.kill(os.getpid(), signal.SIGTERM)


def take_memory(unit: Unit) -> None:
    """Unit 1 needs 150 MB."""
    note(unit)
    kept = b"x" * (150 << 20 if unit[1] == "1" else 1)
    time.sleep(4 if unit[1] == "1" else 0)  # Slurm looks once a second
    del kept


def take_all_memory(unit: Unit) -> None:
    note(unit)
    raise MemoryError


def wait(unit: Unit) -> None:
    """A unit whose name begins with `long` takes as many seconds as the rest of it says."""
    note(unit)
    time.sleep(float(unit[1].removeprefix("long")) if unit[1].startswith("long") else 0)


def overtime(unit: Unit) -> None:
    """Unit 1 takes minutes the first time."""
    note(unit)
    if unit[1] == "1" and tries(unit[0])["1"] == 1:
        time.sleep(300)
