"""A run that needs more memory than there is: a line that says what to change."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMAND = """
import pathlib, resource, sys
from pipeline.training.launch import launch

resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
job = pathlib.Path(sys.argv[1])
launch(job, 1, job.with_name("log.txt"))
"""


@pytest.mark.slow
def test_out_of_memory_says_what_to_change(make_job: Callable[..., Path], tmp_path: Path) -> None:
    """The system gives a rank 2 GiB; the forward of 1 M tokens wants more."""
    job = make_job(tmp_path, micro_batch=32768, batch_tokens=32 * 32768, processes=1)
    done = subprocess.run([sys.executable, "-c", COMMAND, str(job)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"ValueError: rank 0 is out of memory: a rank needs about .* \(.*activations .*\); less with ", last), last
    assert "train.micro_batch=16384" in last and "train.activations=recompute" in last
    needed = float(re.findall(r"needs about ([\d.]+) GB", last)[0])
    assert needed > 2
