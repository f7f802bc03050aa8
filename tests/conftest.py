"""Fixtures that every test may use."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from slurm_cluster import Cluster, missing_programs

ROOT = Path(__file__).resolve().parent.parent
hypothesis.settings.register_profile("untimed", deadline=None)  # the first example compiles kernels, and machines are busy
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data that is kept beside the project; tests that need it are skipped without it."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}")
    return folder


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of a program that the tests install with Debian's packages; without it a test is skipped, but fails in CI."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
        if path is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed (apt install: see .ci/run)")
        return path

    return find


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skips tests that need Slurm's programs where they are not installed; in CI these tests fail then."""
    if (missing := missing_programs()) and not os.environ.get("CI"):
        pytest.skip(f"{', '.join(missing)}: not installed (Debian: slurm-wlm, munge)")


@pytest.fixture(scope="module")
def slurm(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running Slurm cluster of two nodes with 2 CPUs and 4000 MB each."""
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
