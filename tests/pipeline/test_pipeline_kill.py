"""kill -9 of any stage at any moment, and the same command again: the same result as an undisturbed run."""

import random
import shutil
import time

import pytest
from road import digest, run_good, run_killed

from pipeline.stages import SPECS

KILLS = 2  # a stage, each at a random moment


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole road, and how long each of its stages took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    seconds = {}
    for stage in SPECS:
        start = time.monotonic()
        run_good(stage, out)
        seconds[stage] = time.monotonic() - start
    return out, seconds


@pytest.mark.slow
@pytest.mark.parametrize("stage", SPECS)
def test_a_killed_stage_gives_the_same_result(stage, undisturbed, tmp_path):
    reference, seconds = undisturbed
    out = tmp_path / "out"
    shutil.copytree(reference, out, symlinks=True)
    start_over(stage, out)
    moments = random.Random()
    for _ in range(KILLS):
        run_killed(stage, out, moments.uniform(0.2, seconds[stage]))
    run_good(stage, out)
    assert digest(stage, out) == digest(stage, reference)
    left = [path for path in out.rglob("*") if path.suffix in (".tmp", ".pending")]
    assert not left and not list((out / "tmp").iterdir())


def start_over(stage, out):
    """Takes one stage's outputs and records away, as if it had never run."""
    from pipeline.outputs import read_json

    manifest = out / "records" / f"{stage}.json"
    for path in read_json(manifest)["outputs"]:
        (out / path).unlink()
    manifest.unlink()
    shutil.rmtree(out / "records" / stage)
    if stage == "train":
        shutil.rmtree(out / "train")
