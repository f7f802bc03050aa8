"""One task of a job array: its units, one after another: `python -m jobs.task FOLDER NUMBER`.

In: `FOLDER/tasks/NUMBER.pickle`, written by the process that sent the array, and nobody else's. Out: lines of JSON in
`FOLDER/answers/NUMBER.jsonl`, one when a unit begins and one when it ends.
"""

import dataclasses
import json
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

from jobs.executor import attempt


def main(folder: Path, number: int) -> None:
    """Does the task's units; what becomes of one does not touch the others, unless it takes the process along."""
    work, units = _read_own(folder / "tasks" / f"{number}.pickle")
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with (folder / "answers" / f"{number}.jsonl").open("a", encoding="utf-8") as answers:
        for name, unit in units.items():
            _say(answers, {"begun": name, "node": node})
            failure = attempt(work, unit)
            _say(answers, {"ended": name, "failure": failure and dataclasses.asdict(failure)})
            if failure and failure.fatal:
                return


def _read_own(path: Path) -> Any:
    """Pickles can run anything, so only a file that this user wrote, and no one else can write, is read."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise ValueError(f"{path}: is not this user's own, or others may write it")
        return pickle.load(file)


def _say(answers: Any, row: dict[str, Any]) -> None:
    answers.write(json.dumps(row) + "\n")
    answers.flush()
    os.fsync(answers.fileno())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
