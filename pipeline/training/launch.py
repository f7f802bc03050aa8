"""Starts the ranks of a training run on this machine: a job file in; a finished run, or one telling line, out.

Ranks are processes of torchrun. They end with their launcher, however that ends; a SIGTERM to the launcher lets them save.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Self

PR_SET_PDEATHSIG = 1
RANK = re.compile(r" +rank +: (\d+) ")  # torchrun's table of the ranks that failed
EXITCODE = re.compile(r" +exitcode +: -(\d+) ")
STOPPED = 85  # the exit code of a command whose training goes on when it is run again


class Stopped(SystemExit):
    """The run was told to stop (SIGTERM) and has saved: the command ends with the exit code `STOPPED`."""


def launch(job: Path, processes: int, log: Path) -> None:
    """Runs `processes` ranks of `job` to their end; their output goes to `log`, progress to standard error.

    Raises ValueError for a mistake of the user that a rank reported, RuntimeError for a rank that failed otherwise, naming
    it, and Stopped after a SIGTERM, which is taken care of when this is called in the main thread.
    """
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])  # ninja
    environment["LOCAL_SIZE"] = str(processes)
    environment["LAUNCHER"] = str(os.getpid())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
        "--signals_to_handle=SIGINT,SIGHUP,SIGQUIT",  # not SIGTERM: that is for the ranks, and torchrun stays till they end
        *("-m", "pipeline.training.rank", str(job)),
    ]
    told: dict[str, str] = {}
    rank, lost = "", []
    with (
        _Sigterm() as sigterm,
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_as_torchrun,
        ) as torchrun,
    ):
        sigterm.forward_to(torchrun)
        assert torchrun.stdout is not None
        for line in torchrun.stdout:
            file.write(line)
            file.flush()
            kind, _, text = line.rstrip().partition(": ")
            if kind in ("train", "warning"):
                print(line, end="", file=sys.stderr, flush=True)
            elif kind in ("error", "failed", "stopped"):
                told.setdefault(kind, text)  # the first: other ranks fail because that one is gone
            elif match := RANK.match(line):
                rank = match[1]
            elif (match := EXITCODE.match(line)) and int(match[1]) != signal.SIGTERM:  # which torchrun ends the others with
                lost.append(f"rank {rank} was ended by {_name(int(match[1]))}")
    if "error" in told:
        raise ValueError(told["error"])
    if lost or "failed" in told:
        raise RuntimeError(f"a rank failed: {lost[0] if lost else told['failed']} (see {log})")
    if "stopped" in told or sigterm.received:
        how = told.get("stopped", "no step was done; the same command begins again")
        print(f"stopped: {how}", file=sys.stderr, flush=True)
        raise Stopped(STOPPED)
    if torchrun.returncode:
        raise RuntimeError(f"torchrun ended with exit code {torchrun.returncode} (see {log})")


class _Sigterm:
    """While it is open, a SIGTERM to this process goes to the ranks instead."""

    def __init__(self) -> None:
        self.received = False
        self._torchrun: subprocess.Popen[str] | None = None
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._in_main:
            self._former = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._former)

    def forward_to(self, torchrun: "subprocess.Popen[str]") -> None:
        """Names the parent of the ranks, also for a signal that was received before."""
        self._torchrun = torchrun
        if self.received:
            threading.Thread(target=self._forward, args=(torchrun,), daemon=True).start()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, True
        if first and self._torchrun:
            threading.Thread(target=self._forward, args=(self._torchrun,), daemon=True).start()

    def _forward(self, torchrun: "subprocess.Popen[str]") -> None:
        while torchrun.poll() is None:  # again and again: a rank that has just been started does not hear it yet
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # they have just ended
                ranks = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
                for rank in ranks:
                    os.kill(int(rank), signal.SIGTERM)
                if not ranks:  # none has been started, or all have ended
                    torchrun.kill()
            time.sleep(0.2)


def end_with_parent() -> None:
    """Lets the kernel end this process with its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_torchrun() -> None:
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _name(number: int) -> str:
    name = signal.Signals(number).name
    return f"{name}; the system may have been out of memory" if name == "SIGKILL" else name
