"""Units on a Slurm cluster: bundles of units as tasks of job arrays, watched until every unit has an outcome.

In: a round. Out: its outcomes as units end. Everything that was sent lies, to be read, in the round's folder:

    {n}/array.sbatch      the n-th array: its first line says what it does
    {n}/units.txt         a line a task: its units
    {n}/tasks/{t}.pickle  what the task is given, while the array is there
    {n}/answers/{t}.jsonl what it says of its units (`jobs.task`)
    {n}/logs/{t}.log      its output
    {n}/job               the array's job id, while it is there

At most `workers` tasks are there at a time, so neither a partition's limits nor a folder are filled up: when a quarter of
an array is free, the next one goes out. The fewer units are left, the smaller the bundles. A unit that failed goes out
again with others of its kind: not to nodes where it failed if there are others, and with twice the memory or time
where it ran out of it.
"""

import json
import os
import pickle
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs import sbatch
from jobs.executor import Failure, Outcomes, Round
from jobs.sbatch import HOPELESS, Refused, State

LARGEST = 1000  # tasks of an array, where Slurm would take more: each has a few files in one folder
POLL_SECONDS = (0.5, 10.0)  # at first, and after some minutes


@dataclass(frozen=True)
class Try:
    """A unit that waits: which attempt is its next, what it needs (times the stage's), where and how it failed."""

    name: str
    attempt: int = 1
    memory: int = 1
    minutes: int = 1
    nodes: frozenset[str] = frozenset()
    last: Failure | None = None

    @property
    def kind(self) -> tuple[int, int, frozenset[str]]:
        """Those of one kind go out in one array."""
        return self.memory, self.minutes, self.nodes


@dataclass
class Task:
    """A task that was sent: its units that have no outcome yet, in order, and how far its answers were read."""

    label: str
    folder: Path
    number: int
    left: dict[str, Try]
    begun: str | None = None
    node: str = ""
    answered: bool = False
    _offset: int = 0

    @property
    def log(self) -> Path:
        """Where its output is."""
        return self.folder / "logs" / f"{self.number}.log"

    def answers(self) -> Iterator[tuple[Try, Failure | None]]:
        """Outcomes that were not there before."""
        with (self.folder / "answers" / f"{self.number}.jsonl").open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            row = json.loads(line)
            if "begun" in row:
                self.begun, self.node = row["begun"], row["node"]
            else:
                self.begun, self.answered = None, True
                yield self.left.pop(row["ended"]), Failure(**row["failure"]) if row["failure"] else None

    def lost(self, state: State | None) -> tuple[Try, Failure] | None:
        """The unit that its end without an answer is put down to: the one it was at; the first, if it did not come so far."""
        preempted = state is not None and state.state == "PREEMPTED"
        if preempted or not self.left or (self.begun is None and self.answered):
            return None
        unit = self.left.pop(self.begun or next(iter(self.left)))
        self.node = self.node or (state.node if state else "")
        return unit, _why(state, self.node, self.log)


@dataclass
class _Sent:
    """What is under way, by the label of the task, and the ids and folders of the arrays."""

    tasks: dict[str, Task] = field(default_factory=dict)
    arrays: dict[int, Path] = field(default_factory=dict)

    def ended(self) -> None:
        """Forgets arrays none of whose tasks is left."""
        alive = {task.folder for task in self.tasks.values()}
        for job in [job for job, folder in self.arrays.items() if folder not in alive]:
            _clear(self.arrays.pop(job))


def run_units(job: Round[Any]) -> Outcomes:
    """Runs a round as job arrays. Raises ValueError where Slurm refuses them. Closing the iterator cancels them."""
    shutil.rmtree(job.folder, ignore_errors=True)
    limit = min(sbatch.max_array_size(), LARGEST, job.workers)
    waiting: dict[tuple[int, int, frozenset[str]], list[Try]] = defaultdict(list)
    waiting[Try("").kind] = [Try(name) for name in job.units]
    sent, told = _Sent(), ""
    begin = time.monotonic()

    def judge(unit: Try, failure: Failure | None, node: str) -> bool:
        """Whether that is the unit's outcome; otherwise it waits again."""
        if failure is None or failure.fatal or unit.attempt >= job.attempts:
            return True
        again = replace(
            unit,
            attempt=unit.attempt + 1,
            memory=unit.memory * (2 if failure.out_of == "memory" else 1),
            minutes=unit.minutes * (2 if failure.out_of == "time" else 1),
            nodes=unit.nodes if failure.out_of or not node else unit.nodes | {node},
            last=failure,
        )
        waiting[again.kind].append(again)
        return False

    try:
        while sent.tasks or any(waiting.values()):
            free = min(limit, job.workers - len(sent.tasks))
            for kind in [kind for kind, tries in waiting.items() if tries]:
                if free < max(1, limit // 4):
                    break
                try:
                    free -= _send(job, waiting[kind], free, sent)
                except Refused as refused:
                    if refused.later:
                        if str(refused) != told:
                            told = str(refused)
                            print(f"{job.name}: Slurm takes no more for now: {told}", file=sys.stderr, flush=True)
                        break
                    if kind == Try("").kind:
                        raise ValueError(f"{job.name}: Slurm refuses it: {refused}") from None
                    for unit in waiting.pop(kind):  # what it is given now is more than there is
                        assert unit.last is not None, "only a unit that failed is of another kind"
                        yield unit.name, replace(unit.last, message=f"{unit.last.message}; Slurm refuses more: {refused}")
            time.sleep(min(max(POLL_SECONDS[0], (time.monotonic() - begin) / 20), POLL_SECONDS[1]))
            states = sbatch.states()
            for label, task in list(sent.tasks.items()):
                for unit, failure in task.answers():
                    if judge(unit, failure, task.node):
                        yield unit.name, failure
                if states is None:
                    continue
                state = states.get(label)
                if state and state.reason in HOPELESS and not state.ended:
                    sbatch.cancel([label])
                    del sent.tasks[label]
                    for unit in task.left.values():
                        yield unit.name, Failure(f"Slurm would never start it: {state.reason}")
                elif state is None or state.ended:
                    for unit, failure in task.answers():  # its last ones, written since
                        if judge(unit, failure, task.node):
                            yield unit.name, failure
                    if (lost := task.lost(state)) and judge(*lost, task.node):
                        yield lost[0].name, lost[1]
                    for unit in task.left.values():
                        waiting[unit.kind].append(unit)
                    del sent.tasks[label]
            sent.ended()
    finally:
        sbatch.cancel(sent.arrays)
        for folder in sent.arrays.values():
            _clear(folder)


def end_former(folder: Path) -> None:
    """Cancels arrays that a killed process left below `folder`, and waits for their end.

    Raises ValueError where that can't be done from here.
    """
    left = {path.read_text().strip(): path for path in folder.glob("*/*/job")}
    if not left:
        return
    try:
        sbatch.cancel(left)
        while (states := sbatch.states()) is None or any(
            label.split("_")[0] in left and not state.ended for label, state in states.items()
        ):
            time.sleep(POLL_SECONDS[0])
    except ValueError as error:
        raise ValueError(f"jobs {', '.join(left)} of Slurm may still work on it: {error}") from None
    for path in left.values():
        _clear(path.parent)


def _send(job: Round[Any], tries: list[Try], free: int, sent: _Sent) -> int:
    """Sends one array of up to `free` tasks, takes their units from `tries`; returns how many tasks they are."""
    bundle = min(-(-len(tries) // free), job.resources.bundle or 1)
    chosen = tries[: bundle * free]
    bundles = [chosen[at : at + bundle] for at in range(0, len(chosen), bundle)]
    number = 1 + max((int(path.name) for path in job.folder.glob("*")), default=0)
    folder = job.folder.absolute() / str(number)
    for name in ("tasks", "answers", "logs"):
        (folder / name).mkdir(parents=True)
    for task, units in enumerate(bundles):
        content = pickle.dumps((job.work, {unit.name: job.units[unit.name] for unit in units}))
        with open(folder / "tasks" / f"{task}.pickle", "wb", opener=_private) as file:
            file.write(content)
        (
            folder / "answers" / f"{task}.jsonl"
        ).touch()  # so that no client of a shared file system remembers that it isn't there
    names = (" ".join(unit.name for unit in units) for units in bundles)
    (folder / "units.txt").write_text("".join(f"{task}: {line}\n" for task, line in enumerate(names)), encoding="utf-8")
    path = folder / "array.sbatch"
    path.write_text(_script(job, folder, bundles), encoding="utf-8")
    try:
        array = sbatch.submit(path)
    except Refused:
        shutil.rmtree(folder)
        raise
    (folder / "job").write_text(f"{array}\n")
    sent.arrays[array] = folder
    for task, units in enumerate(bundles):
        sent.tasks[f"{array}_{task}"] = Task(f"{array}_{task}", folder, task, {unit.name: unit for unit in units})
    del tries[: len(chosen)]
    return len(bundles)


def _script(job: Round[Any], folder: Path, bundles: Sequence[Sequence[Try]]) -> str:
    first = bundles[0][0]
    avoided = first.nodes
    if not sbatch.usable_nodes(job.resources.partition) - avoided - {os.environ.get("SLURMD_NODENAME", "")}:
        avoided = frozenset()  # there are no others, but perhaps the one that this process itself fills
    units = sum(map(len, bundles))
    comment = f"{job.name}: {units} units, up to {len(bundles[0])} a task, one after another; units.txt says which."
    if first.attempt > 1:
        comment += f"\nThey have failed before: memory × {first.memory}, time × {first.minutes}."
    options = {
        "job-name": job.name,
        "array": f"0-{len(bundles) - 1}",
        "chdir": os.getcwd(),
        "output": f"{str(folder / 'logs').replace('%', '%%')}/%a.log",
        "no-requeue": "",  # the process that sent it decides what is tried again, and where
        "exclude": ",".join(sorted(avoided)) or None,
    }
    command = f"exec {shlex.quote(sys.executable)} -m jobs.task {shlex.quote(str(folder))} $SLURM_ARRAY_TASK_ID"
    lines = ["export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}", command]
    return sbatch.script(comment, options, job.resources.times(first.memory, first.minutes), lines)


def _why(state: State | None, node: str, log: Path) -> Failure:
    """What the end of a task says of the unit that it was at."""
    if state is None:
        return Failure(f"its task is unknown to Slurm, and has not answered (see {log})")
    if state.state in ("TIMEOUT", "DEADLINE"):
        return Failure("its task ran into its time limit: raise minutes of its stage, or lower bundle", out_of="time")
    if state.state == "OUT_OF_MEMORY" or (state.state == "FAILED" and state.signal == 9):
        return Failure(f"its task was killed, out of memory (see {log}): raise memory of its stage", out_of="memory")
    how = f" by signal {state.signal}" if state.signal else ""
    return Failure(f"its task ended as {state.state}{how} on {node or 'no node'} (see {log})")


def _clear(folder: Path) -> None:
    """Of an array that has ended stays what people read."""
    (folder / "job").unlink(missing_ok=True)
    shutil.rmtree(folder / "tasks", ignore_errors=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
