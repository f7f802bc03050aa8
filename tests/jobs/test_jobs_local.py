"""Worker processes: every unit gets an answer, whatever becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.local import ATTEMPTS, WorkerDied, run_units


def square(unit: int) -> int:
    return unit * unit


def fail_on_three(unit: int) -> int:
    if unit == 3:
        raise KeyError("three")
    return unit


def die_once(unit: tuple[str, int]) -> int:
    flag, number = unit
    if number == 2 and not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(unit: int) -> int:
    if unit == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return unit


def write_pid_and_sleep(folder: str) -> None:
    (Path(folder) / "pid").write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_unit_is_answered(workers):
    assert dict(run_units(square, range(7), workers)) == {n: n * n for n in range(7)}


def test_no_units():
    assert list(run_units(square, [], 2)) == []


def test_an_exception_costs_its_own_unit_only():
    answers = dict(run_units(fail_on_three, range(5), 2))
    assert isinstance(answers.pop(3), KeyError)
    assert answers == {0: 0, 1: 1, 2: 2, 4: 4}


def test_a_killed_worker_costs_one_attempt(tmp_path):
    units = [(str(tmp_path / "flag"), n) for n in range(4)]
    assert dict(run_units(die_once, units, 2)) == {unit: unit[1] for unit in units}


def test_a_unit_that_always_kills_its_worker_is_given_up():
    answers = dict(run_units(always_die, range(3), 2))
    died = answers.pop(1)
    assert isinstance(died, WorkerDied)
    assert "SIGKILL" in str(died) and str(ATTEMPTS) in str(died)
    assert answers == {0: 0, 2: 2}


def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "if __name__ == '__main__':\n"
        "    from jobs.local import run_units; from test_jobs_local import write_pid_and_sleep\n"
        "    list(run_units(write_pid_and_sleep, [sys.argv[1]], 1))"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    here = Path(__file__).parent
    parent = subprocess.Popen([sys.executable, script, tmp_path, here, here.parent.parent])
    pid_file = tmp_path / "pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text())
    worker = int(pid_file.read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists())


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
