"""Set-up: what it says where something is missing, and that it does nothing twice. The rest is proved by running it."""

import ast
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pipeline import setup
from pipeline.stages import SPECS

SCRIPT = Path(setup.__file__)


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as `make setup` does."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def said(process: subprocess.CompletedProcess[str]) -> str:
    """The one line that a set-up failed with."""
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    return line


def test_needs_only_an_old_interpreter_and_its_standard_library() -> None:
    """So that a Python that is too old gets as far as the line that says so."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
    annotations = [node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not any("|" in ast.unparse(annotation) for annotation in annotations if annotation)


def test_the_versions_are_exact_and_cover_what_the_project_names() -> None:
    pins = [line for line in (setup.ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    names = [pin.split("==")[0].lower() for pin in pins]
    assert all(pin.count("==") == 1 and "+" not in pin for pin in pins) and len(names) == len(set(names))
    project = (setup.ROOT / "pyproject.toml").read_text()
    for name in ("torch", "deepspeed", "kenlm", "pyarrow", "hydra-core", "pytest", "import-linter"):
        assert name in names and f'"{name}' in project


@pytest.mark.parametrize(
    ("version", "needed"),
    [((3, 9, 1), True), ((3, 10, 0), True), ((3, 13, 0), True), ((3, 11, 0), False), ((3, 12, 9), False)],
)
def test_wrong_python(version: tuple[int, ...], needed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", namedtuple("v", "major minor micro")(*version))
    if needed:
        with pytest.raises(
            setup.SetupError, match=r"3.11 or 3.12 is needed, this is 3\.\d+: name one, as in `make setup PYTHON"
        ):
            setup.check_machine(tmp_path)
    else:
        setup.check_machine(tmp_path)


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_python_without_venv(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = setup.importlib.util.find_spec
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    with pytest.raises(setup.SetupError, match=r"install the package python3\.\d+-venv"):
        setup.check_machine(tmp_path)


def test_no_compiler(tmp_path: Path) -> None:
    assert said(run_script("--venv", tmp_path / "venv", PATH=str(tmp_path))) == (
        "setup: there is no C++ compiler: install the package g++"
    )
    assert not (tmp_path / "venv").exists()


def test_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(setup.SetupError, match=r"C headers are missing: install the package python3\.\d+-dev"):
        setup.check_machine(tmp_path)


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: usage._replace(free=1_234_000_000))
    with pytest.raises(setup.SetupError, match=rf"\d GB are needed on the disk of {tmp_path}, 1.2 GB are free"):
        setup.check_machine(tmp_path / "not" / "there" / "yet")
    setup.check_machine(tmp_path)  # a set-up that goes on has used some already


def test_environment_of_another_python(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.10.4\n")
    with pytest.raises(setup.SetupError, match=r"was made with Python 3\.10, this is 3\.\d+: remove it or use that"):
        setup.check_machine(tmp_path)


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("Collecting torch\nERROR: [Errno 28] No space left on device\n", "the disk is full"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: Could not find a version that satisfies the requirement torch (from versions: none)\n",
            "the package index cannot be reached: is there a network?",
        ),
        ("a\nERROR: No matching distribution found for x==1\n\n", "ERROR: No matching distribution found for x==1"),
        ("a.cc:3:1: error: expected ';'\nninja: build stopped\n", "a.cc:3:1: error: expected ';'"),
        ("Killed\n", "Killed"),
        ("", "a command failed without a word"),
    ],
)
def test_reason(output: str, line: str) -> None:
    assert setup.reason(output) == line


def test_a_failed_command_is_one_line_and_a_log(tmp_path: Path) -> None:
    steps = setup.Setup(tmp_path)
    steps.run(sys.executable, "-c", "print('error: of an earlier command')")
    with pytest.raises(setup.SetupError, match=rf"^ValueError: no \(all of it in {steps.log}\)$"):
        steps.run(sys.executable, "-c", "raise ValueError('no')")
    assert "Traceback" in steps.log.read_text()


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lid.176.ftz").write_bytes(b"something else")
    with pytest.raises(setup.SetupError, match=r"lid\.176\.ftz as fetched has SHA-256 [0-9a-f]{64} instead of 8f34"):
        setup.check_digest(tmp_path / "lid.176.ftz", setup.LID_SHA256)


def test_half_installed_packages_are_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name, files in {"whole-1.dist-info": ("METADATA", "RECORD"), "half-1.dist-info": ("METADATA",)}.items():
        (packages / name).mkdir(parents=True)
        for file in files:
            (packages / name / file).touch()
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr(setup.Setup, "pip", lambda self, *arguments: commands.append(arguments))
    for gpu, cpu_index, first in [(True, True, False), (False, True, True), (False, False, False)]:
        commands.clear()
        monkeypatch.setattr(setup, "has_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(setup, "reachable", lambda url, answer=cpu_index: answer)
        setup.Setup(tmp_path).install_packages()
        assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]
        assert any(setup.CPU_TORCH_INDEX in command for command in commands) == first
        assert commands[-1] == ("install", "-e", f"{setup.ROOT}[dev]")


@pytest.mark.parametrize(("leftover", "pip_runs", "made"), [(None, True, 0), (None, False, 1), ("~ip", True, 1)])
def test_a_broken_environment_is_made_anew(
    leftover: str | None, pip_runs: bool, made: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / (leftover or "whole")).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.11").symlink_to(tmp_path / "gone")
    commands: list[tuple[object, ...]] = []
    monkeypatch.setattr(setup, "runs", lambda *command: pip_runs)
    monkeypatch.setattr(setup.Setup, "run", lambda self, *command: commands.append(command))
    setup.Setup(tmp_path).create_environment()
    assert commands == [(sys.executable, "-m", "venv", tmp_path)] * made
    assert packages.exists() == (made == 0) == (tmp_path / "bin" / "python3.11").is_symlink()


def test_goes_on_after_an_interruption_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fail_at = ["fetch_language_model", None, "build_kenlm"]

    def step(name: str) -> None:
        def take(self: setup.Setup) -> None:
            assert self.work.is_dir() and not list(self.work.iterdir())
            (self.work / "left").touch()
            if fail_at[0] == name:
                raise setup.SetupError(f"stopped at {name}")
            done.append(name)

        monkeypatch.setattr(setup.Setup, name, take)

    names = ["create_environment", "install_packages", "build_kenlm", "fetch_language_model"]
    for name in names:
        step(name)
    stamp = tmp_path / "venv" / ".setup"
    with pytest.raises(setup.SetupError, match="stopped at fetch_language_model"):
        setup.set_up(tmp_path / "venv")
    assert done == names[:-1] and not stamp.exists()
    fail_at.pop(0)
    done.clear()
    setup.set_up(tmp_path / "venv")
    assert done == names and stamp.read_text() == setup.fingerprint()
    setup.set_up(tmp_path / "venv")
    assert done == names  # nothing was done again
    fail_at.pop(0)
    monkeypatch.setattr(setup, "fingerprint", lambda: "of a newer pyproject.toml")
    with pytest.raises(setup.SetupError, match="stopped at build_kenlm"):
        setup.set_up(tmp_path / "venv")
    assert stamp.read_text() != setup.fingerprint()


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    (tmp_path / "empty.conf").touch()
    nowhere = {
        "PIP_CONFIG_FILE": str(tmp_path / "empty.conf"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PATH": os.environ["PATH"],
    }
    line = said(run_script("--venv", tmp_path / "venv", **nowhere))
    assert line.startswith("setup: the package index cannot be reached: is there a network? (all of it in ")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_names_every_stage() -> None:
    def make(*arguments: str) -> str:
        command = ["make", "--no-print-directory", *arguments]  # it names the folder when another make runs the tests
        return subprocess.run(command, cwd=setup.ROOT, capture_output=True, text=True, check=True).stdout

    stages = [*SPECS, "all"]
    assert " ".join(stages) in make()
    for stage in stages:
        assert make("-n", "-o", ".venv/.setup", stage, "ARGS=a=1 b=2") == (f".venv/bin/python -m pipeline {stage} a=1 b=2\n")
