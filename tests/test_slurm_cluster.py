"""The cluster that tests run on: it starts beside another one, its nodes fail and come back, and nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import Cluster

SCRIPT = Path(__file__).with_name("slurm_cluster.py")


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that were started with an environment or arguments that name `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except (OSError, NotADirectoryError):
            continue
        if str(folder).encode() in environment + command and int(entry.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found


def wait_for(ready: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_two_clusters_side_by_side(slurm: Cluster, tmp_path: Path) -> None:
    with Cluster(tmp_path / "other", nodes=3) as other:
        for cluster in (slurm, other):
            nodes = str(len(cluster.nodes))
            told = cluster.run("srun", f"-N{nodes}", "sh", "-c", "echo $SLURMD_NODENAME $SLURM_CONF")
            assert sorted(told.split("\n")[:-1]) == [f"{node} {cluster.conf}" for node in cluster.nodes]
    assert processes_of(tmp_path) == []
    assert slurm.run("srun", "echo", "still there") == "still there\n"


@pytest.mark.slow
def test_a_job_of_a_lost_node_is_requeued(slurm: Cluster, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    job = f'echo $SLURMD_NODENAME $SLURM_RESTART_COUNT >> {begun}; [ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    number = slurm.run("sbatch", "--parsable", "--requeue", "-w", "n1", "-o", "/dev/null", "--wrap", job).strip()
    wait_for(lambda: begun.exists() and begun.read_text())
    slurm.kill_node("n1")
    wait_for(lambda: "down" in slurm.run("sinfo", "-n", "n1", "-h", "-o", "%T"))
    slurm.release(number, "ReqNodeList=")
    wait_for(lambda: "JobState=COMPLETED" in slurm.run("scontrol", "show", "job", number))
    assert begun.read_text() == "n1\nn2 1\n"
    slurm.start_node("n1")
    wait_for(lambda: slurm.run("sinfo", "-n", "n1", "-h", "-o", "%T") == "idle\n")


def test_a_step_that_takes_too_much_memory_is_ended(slurm: Cluster) -> None:
    take = "import time; held = bytearray(400 << 20); time.sleep(60)"
    done = subprocess.run(
        ["srun", "--mem=100M", sys.executable, "-c", take],
        env=slurm.environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0 and "exceeded memory limit" in done.stderr


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays(slurm_installed: None, tmp_path: Path, killed: signal.Signals) -> None:
    folder = tmp_path / "cluster"
    command = [sys.executable, str(SCRIPT), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        for line in held.stdout:
            if "Ctrl-C" in line:
                break
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        begun = tmp_path / "begun"
        job = f"(setsid sleep 601 & touch {begun}; sleep 602)"
        subprocess.run(["sbatch", "-N2", "-o", "/dev/null", "--wrap", f"srun sh -c '{job}'"], env=environment, check=True)
        wait_for(begun.exists)
        assert any("sleep 602" in command for command in processes_of(folder))
        held.send_signal(killed)
    wait_for(lambda: processes_of(folder) == [])
