"""Tasks of a real Ray cluster of two nodes: every unit gets an outcome, whatever becomes of workers and nodes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import work

from jobs.executor import Failure, Resources, Round

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NAMES = [str(n) for n in range(5)]
NODE = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A running Ray cluster of a head and one more node, that this process and its children find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        from ray.cluster_utils import Cluster

        running = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        running.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", running.address)
        yield running
        running.shutdown()


def run(folder: Path, function: Callable[[Any], Failure | None], workers: int = 2, **needs: Any) -> dict[str, Failure | None]:
    from jobs.ray_cluster import run_units

    (folder / "notes").mkdir()
    units = {name: (folder / "notes", name) for name in NAMES}
    return dict(run_units(Round("test", folder / "jobs", function, units, workers, resources=Resources(**needs))))


def test_no_cluster_is_a_mistake_of_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    settings = [f"out={tmp_path / 'out'}", "crawl=demo", "crawl.demo_share=0.01", "crawl.demo_segments=1", "executor=ray"]
    command = [sys.executable, "-m", "pipeline", "fetch", *settings]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: executor=ray: no Ray cluster: set RAY_ADDRESS")


def test_every_unit_is_done_once(cluster: Any, tmp_path: Path) -> None:
    assert run(tmp_path, work.note) == dict.fromkeys(NAMES)
    assert work.tries(tmp_path / "notes") == dict.fromkeys(NAMES, 1)


def test_failures_are_tried_again(cluster: Any, tmp_path: Path) -> None:
    outcomes = run(tmp_path, work.fail)
    failure = outcomes.pop("3")
    assert failure and failure.message == "KeyError: 'three'" and "in fail" in failure.trace
    assert outcomes == dict.fromkeys(["0", "1", "2", "4"])
    assert work.tries(tmp_path / "notes") == {"0": 1, "1": 3, "2": 1, "3": 3, "4": 1}


def test_a_mistake_is_not_tried_again(cluster: Any, tmp_path: Path) -> None:
    assert run(tmp_path, work.mistake)["1"] == Failure("no such model", fatal=True)
    assert work.tries(tmp_path / "notes")["1"] == 1


def test_lost_workers_cost_attempts(cluster: Any, tmp_path: Path) -> None:
    outcomes = run(tmp_path, work.die)
    failure = outcomes.pop("1")
    assert failure and not failure.fatal
    assert outcomes == dict.fromkeys(["0", "2", "3", "4"])
    tries = work.tries(tmp_path / "notes")
    assert (tries["1"], tries["2"]) == (3, 2)


def test_memory_that_no_node_has(cluster: Any, tmp_path: Path) -> None:
    failure = run(tmp_path, work.take_all_memory, memory="600M")["1"]
    assert failure and failure.out_of == "memory" and "no node has 4 × 600M" in failure.message
    assert work.tries(tmp_path / "notes")["1"] == 2


def test_ray_is_imported_only_when_chosen() -> None:
    code = "import sys, jobs.executor, jobs.local, jobs.slurm, pipeline.__main__; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_node_that_is_lost_in_the_middle_of_mine(cluster: Any, tmp_path: Path) -> None:
    from road import command, run_good

    from pipeline.outputs import read_json

    out, small = tmp_path / "out", ["crawl.demo_segments=4"]
    for stage in ("fetch", "hash", "dedup", "lm", "mine"):
        run_good(stage, out, *small)
    manifest = out / "records" / "mine.json"
    expected = read_json(manifest)
    needs = "executor.stages={mine:{memory:600M}}"
    settings = [*small, "executor=ray", "executor.workers=2", needs]
    subprocess.run(["rm", "-r", str(out / "mine"), str(out / "records" / "mine"), str(manifest)], check=True)
    with subprocess.Popen(command("mine", out, *settings), cwd=ROOT, stderr=subprocess.PIPE, text=True) as mining:
        begun = out / "tmp" / "mine"
        end = time.monotonic() + 300
        while not begun.exists() or len(list(begun.iterdir())) < 2:  # one on each node
            assert mining.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        _, told = mining.communicate(timeout=400)
    assert mining.returncode == 0, told
    assert read_json(manifest)["digest"] == expected["digest"]
