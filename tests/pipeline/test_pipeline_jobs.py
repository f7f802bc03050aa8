"""The stages on a real Slurm cluster: the results of a run on this machine, whatever happens on the way."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from road import ROOT, TINY, command, digest, run_good
from slurm_cluster import Cluster

from pipeline.config import load
from pipeline.outputs import read_json

pytestmark = pytest.mark.slow
CLUSTER = ["executor=slurm_dev"]
STAGES = load(TINY).stages


@pytest.fixture(scope="module", autouse=True)
def environment(slurm: Cluster) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(slurm.conf))
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole road on this machine."""
    out = tmp_path_factory.mktemp("local") / "out"
    run_good("all", out)
    return out


def jobs(verb: str, what: str, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "jobs", verb, what, *TINY, f"out={out}", *CLUSTER, *settings]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300)


def jobs_good(verb: str, what: str, out: Path, *settings: str) -> list[str]:
    done = jobs(verb, what, out, *settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def table(lines: list[str]) -> dict[str, dict[str, str]]:
    """{stage: {column: cell}} of what `status` shows."""
    head = lines[0]
    names = [name for name in head.split("  ") if name.strip()]
    starts = [head.index(name.strip()) for name in names]
    found = {}
    for line in lines[1:]:
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if cells[0] in STAGES:
            found[cells[0]] = dict(zip((name.strip() for name in names), cells, strict=True))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def start_over(out: Path, *stages: str) -> None:
    """Takes outputs and records of stages away, as if they had never run."""
    for stage in stages:
        manifest = out / "records" / f"{stage}.json"
        for path in read_json(manifest)["outputs"]:
            (out / path).unlink()
        manifest.unlink()
        shutil.rmtree(out / "records" / stage)


def records(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in (out / "records").glob("*/*/*/*.json")}


def test_the_whole_road_cancelled_on_the_way_and_submitted_again(local, slurm, tmp_path):
    def queue() -> str:
        return slurm.run("squeue", "--noheader")

    out = tmp_path / "out"
    said = jobs_good("submit", "all", out)
    assert [line.split()[2].rstrip(":") for line in said] == STAGES
    again = jobs("submit", "all", out)
    assert again.returncode == 1 and "is still there (job " in again.stderr
    wait_for((out / "records/hash/hash.plan").exists)
    jobs_good("cancel", "all", out)
    wait_for(lambda: not queue())
    wait_for(lambda: table(jobs_good("status", "all", out))["hash"]["state"] != "running")  # its process comes to its end
    rows = table(jobs_good("status", "all", out))
    assert rows["fetch"]["state"] == "finished" and rows["fetch"]["done"] == "3"
    assert rows["hash"]["state"] == rows["mine"]["state"] == "cancelled"

    said = jobs_good("submit", "all", out)
    assert said[0].split()[2:] == ["fetch:", str(out / "jobs/fetch.sbatch")] and said[1].split()[2] == "hash:"
    wait_for(lambda: not queue())
    rows = table(jobs_good("status", "all", out))
    assert [row["state"] for row in rows.values()] == ["finished"] * len(STAGES), jobs_good("logs", "all", out)
    assert {stage: digest(stage, out) for stage in STAGES if stage != "report"} == {
        stage: digest(stage, local) for stage in STAGES if stage != "report"
    }
    assert "3 units" in "\n".join(jobs_good("logs", "mine", out))

    before = records(out)
    [line] = jobs_good("submit", "all", out)
    assert "fetch, then hash, dedup" in line
    wait_for(lambda: not queue())
    assert records(out) == before
    assert jobs_good("submit", "mine", out) == ["nothing to do: every stage is finished"]
    assert jobs_good("cancel", "all", out) == ["nothing to cancel: no job is there"]


def test_a_unit_that_always_fails_is_marked_and_the_others_are_done(local, slurm, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(local, out)
    start_over(out, "hash", "dedup")
    (out / "hash/demo-00001.keys/in-the-way").mkdir(parents=True)
    chain = "stages=[hash,dedup]"
    assert len(jobs_good("submit", "all", out, chain)) == 2
    wait_for(lambda: not slurm.run("squeue", "--noheader"))
    lines = jobs_good("status", "all", out, chain)
    rows = table(lines)
    assert rows["hash"] | {"log": ""} == {
        **{"stage": "hash", "state": "failed", "units": "3", "done": "2", "running": "0", "failed": "1", "left": "1"},
        **{"rate": "-", "time left": "-", "log": ""},
    }
    assert rows["dedup"]["state"] == "not begun"
    assert "demo-00001.error: IsADirectoryError" in lines[-1]
    said = "\n".join(jobs_good("logs", "hash", out))
    assert "1 of 3 units failed, the others are done; demo-00001: IsADirectoryError" in said and "Traceback" in said
    shutil.rmtree(out / "hash/demo-00001.keys")
    before = records(out)
    jobs_good("submit", "hash", out)
    wait_for(lambda: not slurm.run("squeue", "--noheader"))
    assert digest("hash", out) == digest("hash", local)
    after = records(out)
    assert {name: after[name] for name in before} == before


def test_a_node_that_dies_in_the_middle_of_a_stage(local, slurm, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(local, out)
    start_over(out, "mine")
    with subprocess.Popen([*command("mine", out), *CLUSTER], cwd=ROOT, stderr=subprocess.PIPE, text=True) as stage:
        answers = out / "jobs/mine/mine/1/answers/0.jsonl"
        wait_for(lambda: answers.exists() and "begun" in answers.read_text())
        slurm.kill_node("n1")
        assert stage.stderr is not None
        said = stage.stderr.read()
    slurm.start_node("n1")
    assert stage.returncode == 0, said
    assert digest("mine", out) == digest("mine", local)
    wait_for(lambda: slurm.run("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle", "idle"])


def test_a_dry_run_sends_and_writes_nothing(local, slurm, tmp_path):
    out = tmp_path / "out"
    said = "\n".join(jobs_good("submit", "all", out, "--dry-run"))
    assert said.count("#!/bin/bash") == len(STAGES)
    assert "#SBATCH --dependency=afterok:JOB_OF_fetch" in said and "  executor=slurm_dev" in said
    assert not out.exists() and not slurm.run("squeue", "--noheader")


@pytest.mark.parametrize(
    ("verb", "what", "settings", "message"),
    [
        ("submit", "mine", ["executor=local"], "executor=local: stages are submitted to Slurm: add executor=slurm"),
        ("submit", "mien", [], "mien: no such command"),
        ("submit", "mine", ["crawl.flies=[x]"], "crawl.flies: no such key"),
        ("submit", "mine", ["executor.stages.mien.memory=2G"], "executor.stages: mien: no such stage"),
        ("submit", "mine", ["executor.stages.mine.memory=2"], "memory=2: choose a number with M, G or T"),
        ("send", "mine", [], "send: no such verb; there are submit, status, logs, cancel"),
        ("submit", "mine", ["executor.resources.partition=nowhere"], "mine: Slurm refuses it: invalid partition"),
    ],
)
def test_mistakes_are_one_line(verb, what, settings, message, tmp_path):
    done = jobs(verb, what, tmp_path / "out", *settings)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_status_of_a_run_without_slurm(local):
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CONF"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "status", "all", *TINY, f"out={local}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    rows = table(done.stdout.splitlines())
    assert list(rows) == STAGES and {row["state"] for row in rows.values()} == {"finished"}
