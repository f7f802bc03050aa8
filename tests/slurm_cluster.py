"""A real Slurm cluster on this machine: `python tests/slurm_cluster.py` for a person, `Cluster` for tests.

In: a folder, the number of nodes and what each of them claims to have. Out: munged, slurmctld and a slurmd for each node,
all on loopback with ports, key, socket and state of their own, so that clusters live side by side; `SLURM_CONF` names
their configuration. Needs Debian's slurm-wlm and munge. Started by root, jobs run as their users; started by another
user, everything is that user's.

Each daemon has a guard: a process to which the kernel gives whatever the daemon leaves behind (step daemons, tasks), and
which ends it all when it is told to, or when the process that holds the `Cluster` is gone, however that ended.
"""

import argparse
import contextlib
import ctypes
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from getpass import getuser
from pathlib import Path
from types import FrameType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
PLACES = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not in the path of all users
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SOCKET_PATH = 100  # characters that the kernel takes, about
READY = 120  # seconds in which the cluster has to come up, on a machine with other things to do


def missing_programs() -> list[str]:
    """What must be installed before a cluster can start: names of programs that are not there."""
    return [name for name in PROGRAMS if _program(name) is None]


class Cluster:
    """A running cluster, from `with Cluster(folder) as cluster` to the end of that block.

    `nodes` nodes n1, n2, … with `cpus` CPUs and `memory` MB each, whatever this machine has; a step that takes more memory
    than it asked for is ended. `settings` are lines of slurm.conf that come last. Raises RuntimeError with the end of the
    logs if the cluster does not come up.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, cpus: int = 2, memory: int = 4000, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.conf = self.folder / "slurm.conf"
        self._shape = cpus, memory, dict(settings or {})
        self._guards: dict[str, subprocess.Popen[bytes]] = {}
        if missing := missing_programs():
            raise RuntimeError(f"{', '.join(missing)}: not installed; on Debian: apt-get install slurm-wlm munge")
        if len(str(self.folder / "munge.socket")) > SOCKET_PATH:
            raise ValueError(f"{self.folder}: too long a path for sockets; choose one of at most {SOCKET_PATH - 13} characters")

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of Slurm's commands, and of what calls them."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**outer, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def run(self, *command: str, timeout: float = 120) -> str:
        """Standard output of a command that talks to the cluster; CalledProcessError if it fails."""
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, timeout=timeout)
        return done.stdout

    def start_node(self, name: str) -> None:
        """Starts a node's slurmd (again)."""
        self._guard(name, ["slurmd", "-D", "-N", name, "-f", str(self.conf)])

    def kill_node(self, name: str) -> None:
        """Ends a node as a power failure would: its slurmd, step daemons and tasks are killed."""
        self._end(self._guards.pop(name))

    def release(self, job: str | int, *changes: str) -> None:
        """Lets a job start that was requeued, for which Slurm makes it wait two minutes; `changes` as scontrol takes them.

        It starts in five seconds: one that does within a second of its requeue is refused, as the revocation of its old
        credential counts for the new one.
        """
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+5", *changes)

    def stop(self) -> None:
        """Ends all daemons and jobs, at once."""
        for guard in self._guards.values():
            guard.terminate()
        while self._guards:
            self._end(self._guards.popitem()[1])

    def logs(self) -> str:
        """The last lines of each daemon's log."""
        found = [(path, path.read_text(errors="replace").splitlines()[-20:]) for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(f"{path}:\n" + "\n".join(lines) for path, lines in found)

    def _start(self) -> None:
        for name in ("state", *self.nodes):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(secrets.token_bytes(128))
        self.conf.write_text(self._configuration(), encoding="utf-8")
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munge.pid"}
        files |= {"log-file": self.folder / "munge.log", "seed-file": self.folder / "munge.seed"}
        self._guard("munged", ["munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in files.items())])
        self._wait("munged", files["socket"].exists)
        self._guard("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        for name in self.nodes:
            self.start_node(name)
        self._wait("the nodes", self._idle)

    def _configuration(self) -> str:
        cpus, memory, settings = self._shape
        controller, *ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        values = {
            "ClusterName": "dev",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": controller,
            "SlurmUser": getuser(),
            "SlurmdUser": getuser(),
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            "AuthInfo": f"socket={self.folder}/munge.socket",
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": f"{self.folder}/%n",
            "SlurmctldPidFile": self.folder / "slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/%n.pid",
            "SlurmctldLogFile": self.folder / "slurmctld.log",
            "SlurmdLogFile": f"{self.folder}/%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "DefMemPerCPU": memory // cpus,
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": "task=1",
            "JobAcctGatherParams": "OverMemoryKill",
            "SlurmdParameters": "config_overrides",  # nodes may claim more than this machine has
            "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
            "PropagateResourceLimits": "NONE",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,  # seconds until a node that does not answer is down
            "KillWait": 10,
            "MinJobAge": 7200,  # seconds for which an ended job can be asked for: there is no accounting
            **settings,
        }
        lines = [f"{name}={value}" for name, value in values.items()]
        for name, port in zip(self.nodes, ports, strict=True):
            claims = f"CPUs={cpus} RealMemory={memory} State=UNKNOWN"
            lines.append(f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {claims}")
        lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        return "\n".join(lines) + "\n"

    def _idle(self) -> bool:
        with contextlib.suppress(subprocess.SubprocessError):
            states = self.run("sinfo", "--Node", "--noheader", "--format=%T", timeout=10).split()
            return states == ["idle"] * len(self.nodes)
        return False

    def _guard(self, name: str, command: Sequence[str]) -> None:
        program = _program(command[0])
        assert program is not None, command
        with (self.folder / f"{name}.out.log").open("ab") as log:
            self._guards[name] = subprocess.Popen(
                [sys.executable, "-IS", __file__, "guard", str(os.getpid()), program, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the process that holds the cluster
            )

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + READY
        while not ready():
            ended = [name for name, guard in self._guards.items() if guard.poll() is not None]
            if ended or time.monotonic() > end:
                how = f"{ended[0]} has ended" if ended else f"{what} did not get ready in {READY} s"
                raise RuntimeError(f"the cluster in {self.folder} did not start: {how}\n{self.logs()}")
            time.sleep(0.1)

    def _end(self, guard: "subprocess.Popen[bytes]") -> None:
        guard.terminate()
        guard.wait()


def guard(parent: int, command: Sequence[str]) -> int:
    """Runs `command` until it ends, or until this process is told to end or `parent` is gone; then kills all descendants."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans below become children of this process

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        if os.getppid() != parent:
            return 0
        daemon = os.fork()
        if not daemon:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.execv(command[0], command)
        while True:  # also orphans end here
            ended, status = os.wait()
            if ended == daemon:
                return os.waitstatus_to_exitcode(status) & 0xFF
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while children := list(_descendants(os.getpid())):
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.01)


def _descendants(process: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _descendants(int(child))


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *PLACES]))


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below those that the kernel gives to connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(16000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def main() -> None:
    """Starts a cluster, says how to use it, and keeps it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, help="state and logs; default: a new folder below /tmp, removed at the end"
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=len(os.sched_getaffinity(0)), help="that each node claims to have")
    parser.add_argument("--memory", type=int, default=4000, help="MB that each node claims to have")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        with (
            contextlib.suppress(KeyboardInterrupt),
            Cluster(folder, arguments.nodes, arguments.cpus, arguments.memory) as cluster,
        ):
            print(cluster.run("sinfo"), end="")
            print(f"\nIn another terminal:\n\n  export SLURM_CONF={cluster.conf}\n  srun -N{arguments.nodes} hostname\n")
            print(f"Logs are in {folder}. Ctrl-C ends the cluster and its jobs.", flush=True)
            signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["guard"]:
        sys.exit(guard(int(sys.argv[2]), sys.argv[3:]))
    main()
