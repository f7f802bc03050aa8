"""Starts the ranks of a training run: a job file in; a finished run, or one telling line, out.

Ranks are processes of torchrun, on this machine, or on every node of Slurm's allocation that this process is the first of.
They end with their launcher, however that ends; SIGTERM and SIGUSR1 to the launcher let them save. Beside the merged log
there is one for each rank, `logs/rank-*.txt`.
"""

import contextlib
import ctypes
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Self, TextIO

PR_SET_PDEATHSIG = 1
SAVE = (signal.SIGTERM, signal.SIGUSR1)  # let a run save at its next step and end; Slurm sends USR1 before the time is up
RANK_LINE = re.compile(r"rank (\d+): (.*)")  # of the merged log
RANK = re.compile(r" +rank +: (\d+) ")  # torchrun's table of the ranks that failed
EXITCODE = re.compile(r" +exitcode +: -(\d+) ")
NODE_FAILURE = re.compile(r"srun: error: .*[Nn]ode failure on (\S+)")
STOPPED = 85  # the exit code of a command whose training goes on when it is run again
SHUTDOWN = 15  # seconds that torchrun leaves to the ranks beside one that failed
RESTARTS = 3  # of a job whose rank was lost, without a new checkpoint
GRACE = 45  # seconds after the first word of a failure, in which all others have to end by themselves


class Stopped(SystemExit):
    """The run was told to stop (SIGTERM, SIGUSR1) and has saved: the command ends with the exit code `STOPPED`."""


def allocated_nodes() -> int:
    """Nodes of Slurm's allocation around this process; 1 where there is none."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def launch(job: Path, processes: int, log: Path, nodes: int = 1) -> None:
    """Runs `job` with `processes` ranks on each of `nodes` nodes to its end; output goes to `log`, progress to standard error.

    Raises ValueError for a mistake of the user that a rank reported, RuntimeError for a rank that failed otherwise, naming
    it, and Stopped after SIGTERM or SIGUSR1, which are taken care of when this is called in the main thread.
    """
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])  # ninja
    environment["LOCAL_SIZE"] = str(processes)
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SHUTDOWN)
    environment["TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"] = "rank ${rank}: "
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    if nodes == 1:
        environment["LAUNCHER"] = str(os.getpid())
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    pieces = log.with_name(".torchrun")  # where torchrun gathers what the ranks write
    shutil.rmtree(pieces, ignore_errors=True)
    before = _newest(log)
    with (
        _Logs(log) as logs,
        _Signals() as signals,
        subprocess.Popen(
            _command(job, processes, nodes, pieces),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=end_with_parent,
        ) as run,
    ):
        told = _Told()
        grace = threading.Timer(GRACE, run.kill)
        assert run.stdout is not None
        for line in run.stdout:
            rank, text = logs.write(line)
            kind = told.hear(rank, text)
            if kind in ("train", "warning"):
                print(text, file=sys.stderr, flush=True)
            elif kind == "started":
                signals.reaches(text)
            if told.failure and grace.ident is None:
                grace.start()
        if grace.ident is not None and not grace.is_alive():
            told.give_up()
        grace.cancel()
    shutil.rmtree(pieces, ignore_errors=True)
    if told.mistake:
        raise ValueError(told.mistake)
    if told.failure:
        message = f"a rank failed: {told.failure} (see {log})"
        if told.lost and _goes_on(_newest(log) != before):
            print(f"error: {message}; the job goes on from its newest checkpoint", file=sys.stderr, flush=True)
            raise Stopped(STOPPED)
        raise RuntimeError(message)
    if told.stopped or signals.received:
        how = told.stopped or "no step was done; the same command begins again"
        print(f"stopped: {how}", file=sys.stderr, flush=True)
        raise Stopped(STOPPED)
    if run.returncode:
        raise RuntimeError(f"torchrun ended with exit code {run.returncode} (see {log})")


def _command(job: Path, processes: int, nodes: int, pieces: Path) -> list[str]:
    """torchrun on this machine, or by srun on each node; the ranks' output comes line by line, with the rank before it."""
    torchrun = [sys.executable, "-m", "pipeline.training.node", f"--nproc-per-node={processes}"]
    torchrun += ["--tee=3", f"--log-dir={pieces}"]
    torchrun += ["--signals-to-handle=SIGINT,SIGHUP,SIGQUIT"]  # not those of SAVE
    ranks = ["-m", "pipeline.training.rank", str(job)]
    if nodes == 1:
        return [*torchrun, "--standalone", *ranks]
    rendezvous = f"--nnodes={nodes}", f"--master-addr={socket.gethostname()}", f"--master-port={_free_port()}"
    tasks = f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"
    cores = os.environ.get("SLURM_CPUS_PER_TASK")  # which srun does not take from sbatch
    each = ["--mem=0", *([f"--cpus-per-task={cores}"] if cores else [])]
    return ["srun", *tasks, *each, "--kill-on-bad-exit=0", *torchrun, *rendezvous, *ranks]


class _Logs:
    """The merged log, each line with its rank, and the ranks' own."""

    def __init__(self, merged: Path) -> None:
        self._merged = merged.open("a", encoding="utf-8")
        self._folder = merged.with_name("logs")
        self._ranks: dict[int, TextIO] = {}
        self._folder.mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (self._merged, *self._ranks.values()):
            file.close()

    def write(self, line: str) -> tuple[int | None, str]:
        """(rank or None, text) of a line that is now in the logs."""
        self._merged.write(line)
        self._merged.flush()
        match = RANK_LINE.match(line)
        if match is None:
            return None, line.rstrip("\n")
        rank, text = int(match[1]), match[2]
        if rank not in self._ranks:
            self._ranks[rank] = (self._folder / f"rank-{rank:05d}.txt").open("a", encoding="utf-8", buffering=1)
        self._ranks[rank].write(f"{text}\n")
        return rank, text


class _Told:
    """What the ranks, torchrun and srun have said of how it goes."""

    def __init__(self) -> None:
        self.mistake = self.stopped = ""
        self.lost: list[str] = []
        self._exception = math.inf, ""  # when (seconds), and what: the first, as the ranks' lines come in any order
        self._failed: set[int] = set()
        self._nodes: dict[int, str] = {}
        self._rank = -1

    @property
    def failure(self) -> str:
        """The first that went wrong, and where: others fail because that one is gone."""
        return self.lost[0] if self.lost else self.mistake or self._exception[1]

    def hear(self, rank: int | None, text: str) -> str:
        """Takes a line; returns what kind of line a rank's is."""
        if rank is None:
            self._hear_starter(text)
            return ""
        kind, _, what = text.partition(": ")
        if kind in ("error", "failed"):
            self._failed.add(rank)
        if kind == "started":
            self._nodes[rank] = what.split()[-1]
        elif kind == "error":
            self.mistake = self.mistake or what
        elif kind == "failed":
            when, _, exception = what.partition(" ")
            self._exception = min(self._exception, (float(when), f"{exception}{self._place(rank)}"))
        elif kind == "stopped":
            self.stopped = self.stopped or what
        return kind

    def give_up(self) -> None:
        """Those that have said nothing when the others had failed are lost: ranks fail when they miss one."""
        self.lost += [f"rank {rank}{self._place(rank)} did not answer" for rank in sorted(self._nodes.keys() - self._failed)]

    def _hear_starter(self, text: str) -> None:
        if match := NODE_FAILURE.match(text):
            self.lost.append(f"node {match[1]} is lost")
        elif match := RANK.match(text):
            self._rank = int(match[1])
        elif (match := EXITCODE.match(text)) and int(match[1]) != signal.SIGTERM:  # with which torchrun ends the others
            self.lost.append(f"rank {self._rank}{self._place(self._rank)} was ended by {_name(int(match[1]))}")

    def _place(self, rank: int) -> str:
        return f" on {self._nodes[rank]}" if rank in self._nodes and len(set(self._nodes.values())) > 1 else ""


def _newest(log: Path) -> str:
    return max((path.name for path in log.with_name("checkpoints").glob("step-*")), default="")


def _goes_on(further: bool) -> bool:
    """Whether a job of Slurm is worth another start after a rank was lost: it has come further, or it is an early try."""
    return "SLURM_JOB_ID" in os.environ and (further or int(os.environ.get("SLURM_RESTART_COUNT", "0")) < RESTARTS)


class _Signals:
    """While it is open, the signals of `SAVE` to this process go to the ranks of this machine instead.

    One rank is enough: they agree at every step on whether to stop.
    """

    def __init__(self) -> None:
        self.received = False
        self._ranks: list[int] = []
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._in_main:
            self._former = {number: signal.signal(number, self._receive) for number in SAVE}
        return self

    def __exit__(self, *exception: object) -> None:
        if self._in_main:
            for number, handler in self._former.items():
                signal.signal(number, handler)

    def reaches(self, started: str) -> None:
        """Notes a rank that now listens, also to a signal that was received before."""
        _, host, process, _ = started.split()
        if host == socket.gethostname():
            self._ranks.append(int(process))
            if self.received:
                _tell(int(process))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        for rank in self._ranks:
            _tell(rank)


def _tell(rank: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(rank, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def end_with_parent() -> None:
    """Lets the kernel end this process with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _name(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}; the system may have been out of memory" if name == "SIGKILL" else name
