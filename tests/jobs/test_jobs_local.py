"""Worker processes: every unit gets an outcome, whatever becomes of the workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.executor import Failure, Round
from jobs.local import run_units


def note(unit: tuple[Path, int]) -> None:
    folder, number = unit
    with (folder / str(number)).open("a") as file:
        file.write("x")


def fail_on_three(unit: tuple[Path, int]) -> None:
    note(unit)
    if unit[1] == 3:
        raise KeyError("three")


def fail_twice(unit: tuple[Path, int]) -> None:
    note(unit)
    if unit[1] == 1 and tries(unit[0])[1] < 3:
        raise OSError("stale file handle")


def mistake(unit: tuple[Path, int]) -> Failure | None:
    note(unit)
    return Failure("no such model", fatal=True) if unit[1] == 1 else None


def die_once(unit: tuple[Path, int]) -> None:
    note(unit)
    if unit[1] == 2 and tries(unit[0])[2] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def always_die(unit: tuple[Path, int]) -> None:
    note(unit)
    if unit[1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def write_pid_and_sleep(folder: Path) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)


def run(folder: Path, work, numbers, workers: int = 2):
    return dict(run_units(Round("test", folder, work, {str(n): (folder, n) for n in numbers}, workers)))


def tries(folder: Path) -> dict[int, int]:
    return {int(path.name): path.stat().st_size for path in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_unit_is_done_once(tmp_path, workers):
    assert run(tmp_path, note, range(7), workers) == {str(n): None for n in range(7)}
    assert tries(tmp_path) == dict.fromkeys(range(7), 1)


def test_no_units(tmp_path):
    assert run(tmp_path, note, []) == {}


def test_an_exception_costs_its_own_unit_only_and_is_tried_three_times(tmp_path):
    outcomes = run(tmp_path, fail_on_three, range(5))
    failure = outcomes.pop("3")
    assert failure.message == "KeyError: 'three'" and "fail_on_three" in failure.trace and not failure.fatal
    assert outcomes == {str(n): None for n in (0, 1, 2, 4)}
    assert tries(tmp_path) == {0: 1, 1: 1, 2: 1, 3: 3, 4: 1}


def test_a_unit_that_fails_twice_then_succeeds(tmp_path):
    assert run(tmp_path, fail_twice, range(3)) == {str(n): None for n in range(3)}
    assert tries(tmp_path) == {0: 1, 1: 3, 2: 1}


def test_a_fatal_failure_is_not_tried_again(tmp_path):
    assert run(tmp_path, mistake, range(3))["1"] == Failure("no such model", fatal=True)
    assert tries(tmp_path)[1] == 1


def test_a_killed_worker_costs_one_attempt(tmp_path):
    assert run(tmp_path, die_once, range(4)) == {str(n): None for n in range(4)}
    assert tries(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1}


def test_a_unit_that_always_kills_its_worker_is_given_up(tmp_path):
    outcomes = run(tmp_path, always_die, range(3))
    assert "SIGKILL" in outcomes.pop("1").message
    assert outcomes == {"0": None, "2": None}
    assert tries(tmp_path)[1] == 3


def test_workers_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "if __name__ == '__main__':\n"
        "    from pathlib import Path; from jobs.executor import Round; from jobs.local import run_units\n"
        "    from test_jobs_local import write_pid_and_sleep\n"
        "    folder = Path(sys.argv[1])\n"
        "    list(run_units(Round('test', folder, write_pid_and_sleep, {'unit': folder})))"
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
