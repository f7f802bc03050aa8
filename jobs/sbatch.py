"""Slurm by its commands: scripts that people can read in, job ids and states out. No accounting database is needed."""

import itertools
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.executor import Resources

ENDED = frozenset(
    (
        "COMPLETED",
        "BOOT_FAIL",
        "CANCELLED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    )
)
USABLE = frozenset(("idle", "allocated", "mixed", "completing", "planned"))  # nodes
# Reasons for which a job waits for ever.
HOPELESS = frozenset(("BadConstraints", "DependencyNeverSatisfied", "PartitionNodeLimit", "PartitionTimeLimit"))
LATER = re.compile(  # what sbatch says where the same command may be taken in a while
    "Unable to contact|Socket timed out|Connection refused|temporarily|try again|MaxSubmit|SubmitJobsLimit|Zero Bytes", re.I
)


class Refused(Exception):
    """sbatch does not take a job; `later`: it may in a while."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.later = LATER.search(message) is not None


@dataclass(frozen=True)
class State:
    """What Slurm says of a job or an array's task: state, node (or ""), the reason for which it waits, how it exited."""

    state: str
    node: str
    reason: str
    signal: int

    @property
    def ended(self) -> bool:
        """Whether it no longer runs, nor will."""
        return self.state in ENDED


def script(comment: str, options: Mapping[str, str | int | None], resources: Resources, lines: Iterable[str]) -> str:
    """A batch script: options whose value is None are left out, those that take none have the value ""."""
    fewest = f"{resources.min_nodes}-" if resources.min_nodes else ""
    needs = {
        "nodes": f"{fewest}{resources.nodes}" if resources.nodes else None,
        "gpus-per-node": resources.gpus,
        "cpus-per-task": resources.cores,
        "mem": resources.memory,
        "time": resources.minutes,
        "partition": resources.partition,
        "account": resources.account,
        "constraint": resources.constraint,
    }
    rows = [f"#SBATCH --{name}{_value(value)}" for name, value in {**options, **needs}.items() if value is not None]
    return "\n".join(["#!/bin/bash", *(f"# {line}" for line in comment.splitlines()), *rows, "", *lines, ""])


def submit(path: Path, *options: str) -> int:
    """Hands a script to Slurm; returns the job's id. Raises Refused."""
    done = _slurm("sbatch", "--parsable", *options, str(path))
    if done.returncode:
        raise Refused(done.stderr.strip().removeprefix("sbatch: error: ").replace("\nsbatch: error:", ";"))
    return int(done.stdout.split(";")[0])


def states() -> dict[str, State] | None:
    """{`12` or `12_3` (an array's task): its state} of all of the user's jobs that Slurm still knows, ended ones for a few
    minutes (MinJobAge); None when it does not answer."""
    widths = {"JobArrayID": 64, "State": 32, "NodeList": 256, "Reason": 64, "exit_code": 16}
    fields = ",".join(f"{name}:{width}" for name, width in widths.items())
    done = _slurm("squeue", "--me", "--noheader", "--array", "--states=all", f"--Format={fields}")
    if done.returncode:
        return None
    ends = list(itertools.accumulate(widths.values()))
    found = {}
    for line in done.stdout.splitlines():
        job, state, node, reason, code = (line[a:b].strip() for a, b in zip([0, *ends], ends, strict=False))
        found[job] = State(state, node, reason, _signal(code))
    return found


def cancel(jobs: Iterable[int | str]) -> None:
    """Ends jobs (ids) and tasks of arrays (`12_3`); those that have ended are no error. Raises ValueError for what is no id."""
    names = [str(job) for job in jobs]
    if wrong := [name for name in names if not re.fullmatch(r"\d+(_\d+)?", name)]:
        raise ValueError(f"{wrong[0]!r}: not the id of a job")
    if names:
        _slurm("scancel", *names)


def max_array_size() -> int:
    """The cluster's limit of the tasks of an array."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _slurm("scontrol", "show", "config").stdout, re.M)
    return int(found[1]) if found else 1000


def usable_nodes(partition: str | None) -> set[str]:
    """The names of the nodes on which jobs can start now or once others have ended."""
    options = [f"--partition={partition}"] if partition else []
    done = _slurm("sinfo", "--noheader", "--Node", "--format=%N %T", *options)
    rows = [line.split() for line in done.stdout.splitlines()]
    return {name for name, state in rows if not state.endswith("*") and state.strip("~#!%$@^-+") in USABLE}


def _slurm(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands; a job's own settings do not become those of the jobs that it sends."""
    environment = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM", "SBATCH"))}
    try:
        return subprocess.run([command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise ValueError(f"{command}: not found; executor=slurm works where Slurm's commands are installed") from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command}: Socket timed out")


def _value(value: str | int) -> str:
    if value == "":
        return ""
    text = str(value)
    if "\n" in text:
        raise ValueError(f"{text!r}: a path with a line break can't stand in a batch script")
    return f"={text}" if re.fullmatch(r"[\w./%,:@&|()\[\]*+-]+", text) else f"={shlex.quote(text)}"


def _signal(code: str) -> int:
    """The signal that ended a job: of `0:9`, of a wait status, or of the exit code 137 of a shell; 0: none."""
    parts: Sequence[str] = code.split(":")
    number = int(parts[0]) if parts[0].isdigit() else 0
    if len(parts) > 1:
        return int(parts[1]) or max(number - 128, 0)
    return number & 127 or max((number >> 8) - 128, 0)
