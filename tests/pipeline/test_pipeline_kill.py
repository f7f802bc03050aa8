"""kill -9 of any stage at any moment, or a full disk, and the same command again: the result of an undisturbed run."""

import random
import re
import shutil
import subprocess
import time

import pytest
from road import ROAD, ROOT, command, digest, run_bad, run_good, run_killed

from pipeline.outputs import read_json
from pipeline.training.launch import STOPPED

pytestmark = pytest.mark.slow
KILLS = 2  # a stage, each at a random moment
LEFT = 4 << 10  # bytes that are free on the full disk


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole road, and how long each of its stages took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    seconds = {}
    for stage in ROAD:
        start = time.monotonic()
        run_good(stage, out)
        seconds[stage] = time.monotonic() - start
    return out, seconds


@pytest.mark.parametrize("stage", ROAD)
def test_a_killed_stage_gives_the_same_result(stage, undisturbed, tmp_path):
    reference, seconds = undisturbed
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    start_over(stage, out)
    moments = random.Random()
    for _ in range(KILLS):
        run_killed(stage, out, moments.uniform(0.2, seconds[stage]))
    run_good(stage, out)
    assert digest(stage, out) == digest(stage, reference)
    left = [path for path in out.rglob("*") if path.suffix in (".tmp", ".pending")]
    assert not left and not list((out / "tmp").iterdir())


def test_a_training_that_is_told_to_stop_saves_and_goes_on(undisturbed, tmp_path):
    reference, _ = undisturbed
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    start_over("train", out)
    with subprocess.Popen(command("train", out), cwd=ROOT, stderr=subprocess.PIPE, text=True) as training:
        assert any(line.startswith("train: step ") for line in training.stderr)
        training.terminate()
        said = training.stderr.read()
    assert training.returncode == STOPPED
    step = int(re.search(r"stopped: saved at step (\d+) of 30", said)[1])
    assert max(path.name for path in (out / "train" / "checkpoints").iterdir()) == f"step-{step:08d}"
    assert not (out / "records" / "train.json").exists()
    run_good("train", out)
    assert digest("train", out) == digest("train", reference)


@pytest.mark.parametrize("stage", ROAD)
def test_a_disk_that_fills_up(stage, undisturbed, tmp_path):
    """A stage that runs out of space ends with one line; with room again, the same command gives the same result."""
    reference, _ = undisturbed
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        out, filler = small / "out", small / "filler"
        shutil.copytree(reference, out)
        start_over(stage, out)
        with filler.open("wb") as file:
            file.truncate(0)
            subprocess.run(["fallocate", "-l", str(shutil.disk_usage(small).free - LEFT), filler], check=True)
        assert "no space left" in run_bad(stage, out).lower()
        assert not (out / "records" / f"{stage}.json").exists()
        filler.unlink()
        run_good(stage, out)
        assert digest(stage, out) == digest(stage, reference)
    finally:
        subprocess.run(["umount", small], check=True)


def start_over(stage, out):
    """Takes one stage's outputs and records away, as if it had never run."""
    manifest = out / "records" / f"{stage}.json"
    for path in read_json(manifest)["outputs"]:
        (out / path).unlink()
    manifest.unlink()
    shutil.rmtree(out / "records" / stage)
    if stage == "train":
        shutil.rmtree(out / "train")
