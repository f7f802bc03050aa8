"""Job arrays on a real Slurm cluster: every unit gets an outcome, whatever becomes of tasks, nodes and this process."""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import work
from slurm_cluster import Cluster

from jobs import sbatch, task
from jobs.executor import Failure, Resources, Round
from jobs.slurm import end_former, run_units

pytestmark = pytest.mark.slow
NAMES = [str(n) for n in range(5)]


@pytest.fixture(scope="module", autouse=True)
def environment(slurm: Cluster) -> Iterator[None]:
    """This process and what it sends talk to the cluster and find the tests' work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm.conf))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield


def make_round(folder: Path, function: Any, names: list[str] = NAMES, workers: int = 3, **needs: Any) -> Round[Any]:
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    needs = {"memory": "100M", "minutes": 10, **needs}
    units = {name: (notes, name) for name in names}
    return Round("test", folder / "jobs", function, units, workers, resources=Resources(**needs))


def run(folder: Path, function: Any, names: list[str] = NAMES, **needs: Any) -> dict[str, Failure | None]:
    return dict(run_units(make_round(folder, function, names, **needs)))


def scripts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("jobs/*/array.sbatch"))]


def jobs_there() -> list[str]:
    states = sbatch.states()
    assert states is not None
    return [job for job, state in states.items() if not state.ended]


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_arrays_are_no_larger_than_the_cluster_allows(tmp_path, monkeypatch):
    with Cluster(tmp_path / "c", nodes=1, cpus=4, settings={"MaxArraySize": "3"}) as small:
        monkeypatch.setenv("SLURM_CONF", str(small.conf))
        names = [str(n) for n in range(10)]
        assert dict(run_units(make_round(tmp_path, work.note, names, workers=100))) == dict.fromkeys(names)
    assert all("--array=0-2\n" in script for script in scripts(tmp_path)[:3])
    assert work.tries(tmp_path / "notes") == dict.fromkeys(names, 1)


@pytest.fixture(scope="module")
def overtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Failure | None], threading.Thread]]:
    """A round with a unit that takes longer than its task's limit of a minute; it runs beside the other tests."""
    folder = tmp_path_factory.mktemp("overtime")
    outcomes: dict[str, Failure | None] = {}
    job = make_round(folder, work.overtime, ["0", "1", "2"], minutes=1, bundle=3, workers=1)
    thread = threading.Thread(target=lambda: outcomes.update(run_units(job)), daemon=True)
    thread.start()
    yield folder, outcomes, thread


@pytest.mark.usefixtures("overtime")
def test_units_are_done_once_in_bundles(tmp_path):
    names = [f"unit {n}" for n in range(10)]
    assert run(tmp_path, work.note, names, bundle=3) == dict.fromkeys(names)
    assert work.tries(tmp_path / "notes") == dict.fromkeys(names, 1)
    first = scripts(tmp_path)[0]
    assert "# test: 9 units, up to 3 a task" in first and "--array=0-2\n" in first and "--mem=100M\n" in first
    assert (tmp_path / "jobs" / "1" / "units.txt").read_text().splitlines()[1] == "1: unit 3 unit 4 unit 5"
    assert not list(tmp_path.glob("jobs/*/job")) and not list(tmp_path.glob("jobs/*/tasks"))


def test_a_unit_that_fails_is_tried_elsewhere_and_costs_no_other(tmp_path):
    outcomes = run(tmp_path, work.fail)
    failure = outcomes.pop("3")
    assert failure is not None and failure.message == "KeyError: 'three'" and "in fail" in failure.trace
    assert outcomes == dict.fromkeys("0124")
    assert work.tries(tmp_path / "notes") == {"0": 1, "1": 3, "2": 1, "3": 3, "4": 1}
    for name in "13":
        first, second, _ = work.nodes(tmp_path / "notes", name)
        assert first != second


def test_a_fatal_failure_is_not_tried_again(tmp_path):
    assert run(tmp_path, work.mistake, ["1"])["1"] == Failure("no such model", fatal=True)
    assert work.tries(tmp_path / "notes") == {"1": 1}


def test_a_task_that_dies_costs_the_unit_it_was_at(tmp_path):
    outcomes = run(tmp_path, work.die, bundle=2)
    failure = outcomes.pop("1")
    assert failure is not None and "by signal 15" in failure.message
    assert outcomes == dict.fromkeys("0234")
    assert work.tries(tmp_path / "notes") == {"0": 1, "1": 3, "2": 2, "3": 1, "4": 1}


def test_a_unit_that_runs_out_of_memory_gets_twice_as_much(tmp_path):
    assert run(tmp_path, work.take_memory, ["0", "1"]) == dict.fromkeys("01")
    assert work.tries(tmp_path / "notes") == {"0": 1, "1": 2}
    assert "--mem=200M\n" in scripts(tmp_path)[1] and "memory × 2, time × 1" in scripts(tmp_path)[1]


def test_what_is_more_than_there_is_fails_with_what_slurm_says(tmp_path):
    with pytest.raises(ValueError, match=r"test: Slurm refuses it: .*artition"):
        run(tmp_path, work.note, partition="nowhere")
    outcomes = run(tmp_path, work.take_all_memory, ["1"], memory="3G")
    assert outcomes["1"] is not None
    assert outcomes["1"].message.startswith("MemoryError: ; Slurm refuses more: ")


def test_a_node_that_dies_in_the_middle_of_an_array(tmp_path, slurm, overtime):
    [other] = set(slurm.nodes) - set(work.nodes(overtime[0] / "notes", "1"))
    outcomes: dict[str, Failure | None] = {}
    job = make_round(tmp_path, work.wait, ["long3", *NAMES, "long4", "long5"], workers=3, bundle=2)
    for name, failure in run_units(job):
        if not outcomes:
            slurm.kill_node(other)
        outcomes[name] = failure
    assert outcomes == dict.fromkeys(job.units)
    slurm.start_node(other)
    wait_for(lambda: sbatch.usable_nodes(None) == set(slurm.nodes))


def test_a_closed_iterator_cancels_its_tasks(tmp_path):
    outcomes = run_units(make_round(tmp_path, work.wait, ["0", "long300"]))
    assert next(outcomes) == ("0", None)
    array = (tmp_path / "jobs/1/job").read_text().strip()
    assert f"{array}_1" in jobs_there()
    outcomes.close()
    wait_for(lambda: f"{array}_1" not in jobs_there())


def test_what_a_killed_process_left_is_cancelled(tmp_path):
    code = (
        "import sys; from pathlib import Path; import work; from jobs.executor import Round; from jobs.slurm import run_units\n"
        "folder = Path(sys.argv[1])\n"
        "list(run_units(Round('test', folder / 'jobs' / 'mine' / 'mine', work.wait, {'long300': (folder, 'long300')})))"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path]) as process:
        wait_for((tmp_path / "long300").exists)
        process.kill()
    left = tmp_path / "jobs/mine/mine/1/job"
    array = left.read_text().strip()
    assert f"{array}_0" in jobs_there()
    end_former(tmp_path / "jobs" / "mine")
    assert f"{array}_0" not in jobs_there() and not left.exists()


def test_a_unit_over_its_time_limit_gets_twice_as_much(overtime):
    folder, outcomes, thread = overtime
    thread.join(300)
    assert outcomes == dict.fromkeys("012")
    assert work.tries(folder / "notes") == {"0": 1, "1": 2, "2": 1}
    assert any("--time=2\n" in script and "time × 2" in script for script in scripts(folder))


def test_a_task_reads_only_what_this_user_wrote(tmp_path):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "answers").mkdir()
    path = tmp_path / "tasks" / "0.pickle"
    path.write_bytes(pickle.dumps((work.note, {})))
    path.chmod(0o666)
    with pytest.raises(ValueError, match="others may write it"):
        task.main(tmp_path, 0)
    path.chmod(0o600)
    task.main(tmp_path, 0)
