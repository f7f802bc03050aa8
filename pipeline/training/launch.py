"""Starts the ranks of a training run on this machine: a job file in, a finished run or one telling line out.

Ranks are processes of torchrun. They end with their launcher, however that ends.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
RANK = re.compile(r" +rank +: (\d+) ")  # torchrun's table of the ranks that failed
SIGNAL = re.compile(r" +exitcode +: -\d+ \(pid: \d+\) +\((\w+)\)")


def launch(job: Path, processes: int, log: Path) -> None:
    """Runs `processes` ranks of `job` to their end; their output goes to `log`, progress to standard error.

    Raises ValueError for a mistake of the user that a rank reported, RuntimeError for a rank that failed otherwise.
    """
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])  # ninja
    environment["LOCAL_SIZE"] = str(processes)
    environment["LAUNCHER"] = str(os.getpid())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
               "-m", "pipeline.training.trainer", str(job)]  # fmt: skip
    mistake, first, rank, killed = "", "", "", ""
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_end_with_parent,
        ) as torchrun,
    ):
        assert torchrun.stdout is not None
        for line in torchrun.stdout:
            file.write(line)
            if line.startswith(("train: ", "warning: ")):
                print(line, end="", file=sys.stderr, flush=True)
            elif line.startswith("error: "):
                mistake = line.removeprefix("error: ").strip()
            elif "Error: " in line and not first:  # the others fail because the first one is gone
                first = line.strip()
            elif match := RANK.match(line):
                rank = match[1]
            elif (match := SIGNAL.match(line)) and match[1] != "SIGTERM":  # which torchrun ends the others with
                killed = f"rank {rank} was ended by {match[1]}"
    if mistake:
        raise ValueError(mistake)
    if torchrun.returncode:
        raise RuntimeError(f"a rank failed: {killed or first or f'exit code {torchrun.returncode}'} (see {log})")


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
