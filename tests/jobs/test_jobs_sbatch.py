"""What tasks need, and batch scripts: read by bash and Slurm alike, whatever a path looks like."""

import shlex
import subprocess

import pytest

from jobs import sbatch
from jobs.executor import Resources, attempt
from jobs.sbatch import Refused, script


def test_resources_of_a_stage_come_before_those_of_all():
    shared = Resources(cores=1, memory="2G", partition="all")
    assert Resources(memory="8G", bundle=3).over(shared) == Resources(cores=1, memory="8G", bundle=3, partition="all")
    assert Resources().over(shared) == shared


def test_more_memory_and_time():
    needs = Resources(memory="3G", minutes=30)
    assert needs.times(2, 4) == Resources(memory="6144M", minutes=120)
    assert needs.times(1, 1) == needs
    assert Resources().times(2, 2) == Resources()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"memory": "8"}, {"memory": "0G"}, {"memory": "1.5G"}, {"cores": 0}, {"minutes": -1}, {"bundle": 0}),
        *({"partition": "a b"}, {"account": "x\n#SBATCH --uid=0"}, {"constraint": ""}),
    ],
)
def test_what_slurm_would_not_take_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Resources(**wrong)


def test_a_script_can_be_read_and_runs(tmp_path):
    strange = f"{tmp_path}/it's 100 % [new]"
    options = {"output": strange, "requeue": "", "dependency": None}
    text = script("two\nlines", options, Resources(minutes=5), [f"echo {shlex.quote(strange)}"])
    assert text.splitlines()[:4] == ["#!/bin/bash", "# two", "# lines", f"#SBATCH --output={shlex.quote(strange)}"]
    assert "#SBATCH --requeue\n#SBATCH --time=5\n" in text and "dependency" not in text
    assert subprocess.run(["bash"], input=text, capture_output=True, text=True).stdout.strip() == strange
    with pytest.raises(ValueError, match="line break"):
        script("", {"chdir": "a\nb"}, Resources(), [])


def test_refusals_that_pass_are_told_from_those_that_stay():
    for message in (
        "Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "Batch job submission failed: Socket timed out on send/recv operation",
        "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, …)",
        "AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS policy (job submit limit, …)",
        "Slurm temporarily unable to accept job, sleeping and retrying",
    ):
        assert Refused(message).later, message
    for message in ("invalid partition specified: nowhere", "Memory specification can not be satisfied"):
        assert not Refused(message).later, message


def test_without_slurm_it_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="squeue: not found; executor=slurm works where"):
        sbatch.states()


def test_only_ids_are_cancelled():
    with pytest.raises(ValueError, match="'--user=root': not the id of a job"):
        sbatch.cancel([12, "12_3", "--user=root"])


def test_an_attempt_that_lacks_memory_says_so():
    def greedy(unit: int) -> None:
        raise MemoryError

    failure = attempt(greedy, 1)
    assert failure is not None and failure.out_of == "memory" and not failure.fatal
