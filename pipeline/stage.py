"""The stage contract: units, records, manifests; what was finished stays, what was not never counts.

In: a stage's configuration and the manifests of the stages that it reads. Out: its files below `out`, one record per
unit (`out/records/{stage}/{round}/{xx}/{unit}.json`, `unit_file`) and one manifest (`out/records/{stage}.json`).

A unit's files get their names only when all of them are complete (`pipeline.outputs`), then its record is written. A
record holds for a unit as long as its fingerprint (stage configuration and inputs) and its files are there; otherwise
the unit is done again. The result depends neither on the number of workers nor on their order.
"""

import contextlib
import errno
import functools
import glob
import json
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import xxhash

from ccnet.stats import excess
from jobs.executor import Failure, Round, attempt, run_units
from jobs.slurm import end_former
from pipeline.config import Config, flatten
from pipeline.lock import held, is_held
from pipeline.outputs import Outputs, read_json, take_back, write_json
from pipeline.progress import UnitProgress, human_bytes, human_seconds

FORMAT = 1  # of records and outputs; another number makes every older record void
Work = Callable[..., dict[str, Any]]


class StageError(Exception):
    """A stage can't go on; the message is one line for the user."""


@dataclass(frozen=True)
class Spec:
    """What a stage is: its name, where it is written, what it reads.

    `keys` are the configuration keys (or their prefixes) that its result is a function of, `files` those of them that
    name input files, `runs` those that name the `out` of earlier runs, each with the stage whose manifest is read there,
    `alone` those with which, where they are given, it reads no other stage. `choices` are keys that choose its units: with
    another choice, the units that stay are kept. `how` are those below `keys` that only say how the result is computed: with
    another value, what is there is kept, and gone on with. `optional` names stages of `reads`, each with the key without which
    (null or empty) it is not read. `always`: its plan depends on more than those, so it is made anew every time. `folder`:
    where it keeps work that outlives a killed unit. `writes`: the stage whose outputs it makes in another way. `here`: its
    units are worked on in the stage's own process, which then gets the signals.
    """

    name: str
    help: str
    reads: tuple[str, ...]
    keys: tuple[str, ...]
    files: tuple[str, ...] = ()
    runs: tuple[tuple[str, str], ...] = ()
    alone: tuple[str, ...] = ()
    optional: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    how: tuple[str, ...] = ()
    always: bool = False
    folder: str | None = None
    writes: str | None = None
    here: bool = False

    @property
    def module(self) -> str:
        return f"pipeline.stages.{self.name}"


@dataclass(frozen=True)
class Unit:
    """A piece of a stage's work.

    `arguments` are the keyword arguments of the work function, which also gets an `Outputs`; `inputs` maps what the unit
    reads to fingerprints; `size` is the number of bytes it reads, for the progress.
    """

    name: str
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str]
    size: int = 0


@dataclass(frozen=True)
class Record:
    """What a finished unit left: its files with bytes and digests, its seconds, the file that it is stored in."""

    unit: str
    outputs: dict[str, dict[str, Any]]
    seconds: float
    path: Path

    @property
    def statistics(self) -> dict[str, Any]:
        """Read anew every time: those of all units of a crawl would not fit into memory."""
        statistics: dict[str, Any] = read_json(self.path)["statistics"]
        return statistics


@dataclass(frozen=True)
class Planned:
    """A unit that is to be done, and the fingerprint of its record."""

    unit: Unit
    fingerprint: str


def digest_json(value: Any) -> str:
    """A 128-bit digest of a JSON value, as hexadecimal."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def unit_file(folder: Path, unit: str, suffix: str) -> Path:
    """Where the folder of a round has a unit's file: in one of 256 subfolders, as a crawl has 90,000 units."""
    return folder / xxhash.xxh3_64_hexdigest(unit.encode())[:2] / f"{unit}{suffix}"


def expand_files(patterns: Sequence[str]) -> list[str]:
    """Paths, globs and URLs as a list of files, patterns in their order, each pattern's files sorted.

    Raises `ValueError` for a pattern without a file, and for a file that is named twice.
    """
    files: list[str] = []
    for pattern in patterns:
        if "://" in pattern:
            found = [pattern]
        else:
            found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not found:
            raise ValueError(f"{pattern}: no such file")
        files += found
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise ValueError(f"{twice}: named twice")
    return files


def fingerprint(path: str) -> tuple[int, str]:
    """(bytes, fingerprint) of an input file, a folder or a URL: by size and time of change, or the server's tag."""
    if "://" in path:
        try:
            info = fsspec.core.url_to_fs(path)[0].info(path)
        except Exception as error:  # every file system has its own
            cause = error.__cause__ or error  # of HTTP's FileNotFoundError: no such host, connection refused
            raise ValueError(f"{path}: can't be read: {type(cause).__name__}: {cause}") from None
        tag = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
        return int(info.get("size") or 0), f"{info.get('size')}-{tag}"
    place = Path(path)
    if place.is_dir():
        parts = [(child.name, fingerprint(str(child))) for child in sorted(place.iterdir())]
        return sum(size for _, (size, _) in parts), digest_json(parts)
    try:
        stat = place.stat()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    return stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}"


class Stage:
    """One stage of one run: plans are checked against what is there, units are mapped, a manifest is written."""

    def __init__(self, spec: Spec, config: Config) -> None:
        self.spec, self.config = spec, config
        self.out = Path(config.out)
        self._name = spec.writes or spec.name  # of what it leaves
        self._records = self.out / "records" / self._name
        self._manifest = self.out / "records" / f"{self._name}.json"
        self._lock = self.out / "records" / f"{self._name}.lock"
        flat = flatten(config)
        wanted = [name for name in flat if _below(spec.keys, name) and not _below(spec.how, name)]
        self._config = {name: flat[name] for name in wanted}
        left_out = {name for name, k in spec.optional if not flat[k]}
        alone = any(flat[k] for k in spec.alone)
        self._reads = () if alone else tuple(name for name in spec.reads if name not in left_out)
        self._inputs: dict[str, str] = {}
        self._all: dict[str, Record] = {}

    def resolve(self, path: str) -> str:
        """A path of a manifest: those of outputs are relative to `out`, those of inputs are absolute or URLs."""
        return path if "://" in path else str(self.out / path)

    def upstream(self, name: str) -> dict[str, Any]:
        """The manifest of a stage that this one reads; `ValueError` if that has not finished, or is out of date."""
        assert name in self.spec.reads, name
        manifest = self._read_manifest(name)
        if manifest is None:
            raise ValueError(f"{self.spec.name} reads what {name} writes, and {self.out} has no finished {name}: run it first")
        for source, digest in manifest["inputs"].items():
            if (read := self._read_manifest(source)) is not None and read["digest"] != digest:
                raise ValueError(
                    f"{self.spec.name} reads what {name} writes, and {source} is newer than that: run {name} first"
                )
        return manifest

    def earlier(self, out: str, name: str) -> dict[str, Any]:
        """The manifest of a stage in the `out` of an earlier run; `ValueError` if that has not finished it."""
        folder = Path(out)
        path = folder / "records" / f"{name}.json"
        if folder.resolve() == self.out.resolve():
            raise ValueError(f"{self.spec.name}: {out} is this run's own out: name earlier runs only")
        if not path.exists():
            raise ValueError(f"{self.spec.name}: {out} has no finished {name}: name the out of a run that has")
        manifest = dict(read_json(path))
        if manifest["format"] != FORMAT or not _all_there(folder, manifest["outputs"]):
            raise ValueError(f"{self.spec.name}: the {name} of {out} is not whole, or of another version: run it there again")
        return manifest

    def _read_manifest(self, name: str) -> dict[str, Any] | None:
        path = self.out / "records" / f"{name}.json"
        return dict(read_json(path)) if path.exists() else None

    def check_config(self) -> None:
        """Stops with `ValueError`, naming the key, when outputs are there that another configuration made."""
        stored = self._records / "config.json"
        if not stored.exists() or not self._has_work():
            return
        former = read_json(stored)
        changed = [k for k in self._config if former.get(k) != self._config[k]] + [k for k in former if k not in self._config]
        if changed and not self.config.overwrite:
            k = changed[0]
            more = f" (and {', '.join(changed[1:])})" if changed[1:] else ""
            raise ValueError(
                f"{self.spec.name}: {k} is {self._config.get(k)!r} now and was {former.get(k)!r}{more} when {self.out} was"
                " made; overwrite=true replaces that stage's outputs, another out= keeps them"
            )

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Holds the stage's lock while it runs, and clears outputs of another configuration if that is wanted."""
        self._records.mkdir(parents=True, exist_ok=True)
        with held(self._lock, f"{self.spec.name}: another process works on it in {self.out}; wait for its end"):
            end_former(self.out / "jobs" / self._name)
            self.check_config()
            self._inputs = self._find_inputs()
            stored = self._records / "config.json"  # nothing is removed before all inputs are there
            if stored.exists() and read_json(stored) != self._config:
                self._check_inputs()
                self._reset()
            write_json(stored, self._config)
            yield

    def _find_inputs(self) -> dict[str, str]:
        inputs = {name: str(self.upstream(name)["digest"]) for name in self._reads}
        inputs |= {k: digest_json(_prints(self._config[k])) for k in self.spec.files if self._config[k]}
        earlier = [(k, [self.earlier(out, name)["digest"] for out in self._config[k]]) for k, name in self.spec.runs]
        return inputs | {k: digest_json(digests) for k, digests in earlier if digests}

    def is_finished(self) -> bool:
        """Whether the manifest says so for this configuration and these inputs, and all files are there. Changes nothing."""
        if not self._manifest.exists():
            return False
        if not self._inputs:
            try:
                self._inputs = self._find_inputs()
            except ValueError:  # what it reads is not there, or not any more
                return False
        manifest = read_json(self._manifest)
        same = (manifest["format"], manifest["config"], manifest["inputs"]) == (FORMAT, self._config, self._inputs)
        return same and _all_there(self.out, manifest["outputs"])

    def map(self, name: str, work: Work, units: Sequence[Unit], *, at_once: int | None = None) -> list[Record]:
        """Does `work(outputs, **unit.arguments)` for every unit that has no valid record; returns all records in order.
        `at_once`: on so many workers at most, if not on all.

        Records of this round whose unit is no longer planned are removed with their files. Raises `StageError`.
        """
        folder = self._records / name
        folder.mkdir(parents=True, exist_ok=True)
        temporary = self.out / "tmp" / self._name
        shutil.rmtree(temporary, ignore_errors=True)
        for pending in sorted(folder.rglob("*.pending")):
            take_back(self.out, pending)
        for old in folder.rglob("*.error"):
            old.unlink()
        planned = {unit.name: unit for unit in units}
        assert len(planned) == len(units), "unit names must differ"
        prints = {unit.name: digest_json([FORMAT, self._config, dict(unit.inputs)]) for unit in units}
        records: dict[str, Record] = {}
        for path in sorted(folder.rglob("*.json")):
            stored = read_json(path)
            unit_name = stored["unit"]
            if stored["fingerprint"] == prints.get(unit_name) and _all_there(self.out, stored["outputs"]):
                records[unit_name] = _record(stored, path)
            else:
                self._manifest.unlink(missing_ok=True)
                path.unlink()
                for output in stored["outputs"]:
                    (self.out / output).unlink(missing_ok=True)
        missing = [unit for unit in units if unit.name not in records]
        if missing:
            self._manifest.unlink(missing_ok=True)
            plan = {"units": len(units), "missing": len(missing), "begun": round(time.time())}
            write_json(self._records / f"{name}.plan", plan)
            paths = [unit_file(folder, unit.name, ".json") for unit in missing]
            for place in {path.parent for path in paths}:
                place.mkdir(exist_ok=True)
            self._run(name, work, [Planned(unit, prints[unit.name]) for unit in missing], at_once)
            for path in paths:
                record = _record(read_json(path), path)
                records[record.unit] = record
        self._all |= {f"{name}/{unit.name}": records[unit.name] for unit in units}
        return [records[unit.name] for unit in units]

    def _run(self, name: str, work: Work, missing: Sequence[Planned], at_once: int | None) -> None:
        folder, temporary = self._records / name, self.out / "tmp" / self._name
        executor, needs = self.config.executor, self.config.executor.needs(self.spec.name)
        assert needs.workers is not None, "executor.workers has a default"
        label = self.spec.name if name == self.spec.name else f"{self.spec.name}/{name}"
        job = Round(
            label,
            self.out / "jobs" / self._name / name,
            functools.partial(_execute, work, self.out, folder, temporary),
            {planned.unit.name: planned for planned in missing},
            needs.workers if at_once is None else min(needs.workers, at_once),
            executor.attempts,
            needs,
        )
        failed: dict[str, Failure] = {}
        start, size = time.monotonic(), sum(planned.unit.size for planned in missing)
        with UnitProgress(label, len(missing), size) as progress:
            here = ((n, attempt(job.work, u)) for n, u in job.units.items())
            outcomes = here if self.spec.here else run_units(executor.kind, job)
            for unit_name, failure in outcomes:
                if failure is None:
                    progress.advance(job.units[unit_name].unit.size)
                    continue
                log = unit_file(folder, unit_name, ".error")
                log.write_text(failure.trace or failure.message, encoding="utf-8")
                if failure.fatal:
                    raise StageError(f"{self.spec.name}: {unit_name}: {failure.message}")
                failed[unit_name] = failure
        if failed:
            unit_name, failure = next(iter(failed.items()))
            raise StageError(
                f"{label}: {len(failed)} of {len(missing)} units failed, the others are done;"
                f" {unit_name}: {failure.message} (see {unit_file(folder, unit_name, '.error')})"
            )
        seconds = time.monotonic() - start
        amount = f", {human_bytes(size)}, {human_bytes(size / seconds)}/s" if size else ""
        print(f"{label}: {len(missing)} units{amount}, {human_seconds(seconds)}", file=sys.stderr, flush=True)

    def progress(self) -> dict[str, Any]:
        """How far it is, from what lies in its folder: whether a process is at it, and of each round {round, units, missing
        and begun (when the round began, units and Unix time), done, running, failed (paths of the units' errors)}."""
        rounds = []
        for path in sorted(self._records.glob("*.plan"), key=lambda path: path.stat().st_mtime_ns):
            folder = self._records / path.stem
            done = {record.stem for record in folder.rglob("*.json")}
            begun = self.out / "tmp" / self._name
            rounds.append(
                {
                    "round": path.stem,
                    **read_json(path),
                    "done": len(done),
                    "running": len(set(os.listdir(begun)) - done) if begun.exists() else 0,
                    "failed": sorted(str(error) for error in folder.rglob("*.error")),
                }
            )
        for former in rounds[:-1]:
            former["running"] = 0
        return {"stage": self.spec.name, "active": is_held(self._lock), "rounds": rounds}

    def check_bad(self, bad: Mapping[str, int], records: int) -> None:
        """Raises `StageError` when more than `max_bad_fraction` of `records` were bad; `bad` counts them by reason."""
        total = sum(bad.values())
        if total > self.config.max_bad_fraction * max(records, 1):
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(bad.items()))
            raise StageError(
                f"{self.spec.name}: {total} of {records} records are bad ({reasons}), more than"
                f" max_bad_fraction={self.config.max_bad_fraction}; what was read is kept: mend the input or raise the limit"
            )

    def check_removed(self, statistics: Mapping[str, Any], chosen: Collection[str]) -> None:
        """Raises `StageError` when the stage removed more than `max_removed` of the characters (`ccnet.stats.excess`)."""
        if words := excess(statistics, self.config.max_removed, chosen):
            raise StageError(
                f"{self.spec.name}: it removes {words}, more than max_removed={self.config.max_removed};"
                " what was done is kept: look at it (keep_dropped=true) or raise the limit"
            )

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the manifest; `result` (JSON) is what the stage says of its outputs to other stages and the report."""
        outputs = {path: entry for record in self._all.values() for path, entry in record.outputs.items()}
        write_json(
            self._manifest,
            {
                "stage": self._name,
                "format": FORMAT,
                "config": self._config,
                "inputs": self._inputs,
                "digest": digest_json([sorted((path, entry["digest"]) for path, entry in outputs.items()), result]),
                "units": len(self._all),
                "seconds": sum(record.seconds for record in self._all.values()),
                "outputs": outputs,
                "result": result,
            },
        )
        shutil.rmtree(self.out / "tmp" / self._name, ignore_errors=True)

    def _has_work(self) -> bool:
        """Whether there is anything that another configuration would throw away."""
        folder = self.spec.folder is not None and (self.out / self.spec.folder).exists()
        return folder or self._manifest.exists() or any(self._records.glob("*/**/*.json"))

    def _check_inputs(self) -> None:
        """Raises `ValueError` where an input file is what `_reset` would remove."""
        records = [read_json(path) for path in self._records.glob("*/**/*.json")]
        own = {(self.out / output).resolve() for record in records for output in record["outputs"]}
        own |= {folder for file in own for folder in file.parents}
        for k in self.spec.files:
            named = self._config[k] or []
            for file in [named] if isinstance(named, str) else expand_files(named):
                if Path(file).resolve() in own:
                    raise ValueError(
                        f"{self.spec.name}: {k}={file} is what {self._name} wrote in {self.out}, and would be removed:"
                        " choose another out, or copy it first"
                    )

    def _reset(self) -> None:
        self._manifest.unlink(missing_ok=True)
        if self.spec.folder is not None:
            shutil.rmtree(self.out / self.spec.folder, ignore_errors=True)
        for path in self._records.glob("*/**/*.pending"):
            take_back(self.out, path)
        for path in self._records.glob("*/**/*.json"):
            for output in read_json(path)["outputs"]:
                (self.out / output).unlink(missing_ok=True)
        shutil.rmtree(self._records)
        self._records.mkdir()


def _execute(work: Work, root: Path, folder: Path, temporary: Path, planned: Planned) -> Failure | None:
    """One attempt at a unit, in a worker: work, commit, record.

    An attempt whose worker was taken for lost may still be at it when the next begins, on another machine: each has its
    own temporary files, and what both put in place is the same.
    """
    start, unit = time.monotonic(), planned.unit
    try:
        outputs = Outputs(root, temporary / unit.name / f"{socket.gethostname()}-{os.getpid()}")
        try:
            statistics = work(outputs, **unit.arguments)
            pending = unit_file(folder, unit.name, ".pending")
            files = outputs.commit(pending)
            stored = {
                "unit": unit.name,
                "fingerprint": planned.fingerprint,
                "inputs": dict(unit.inputs),
                "outputs": files,
                "statistics": statistics,
                "seconds": round(time.monotonic() - start, 3),
            }
            write_json(unit_file(folder, unit.name, ".json"), stored)
            pending.unlink(missing_ok=True)
            return None
        finally:
            outputs.close()
            with contextlib.suppress(OSError):  # another attempt's files are in it
                (temporary / unit.name).rmdir()
    except ValueError as error:
        return Failure(str(error), traceback.format_exc(), fatal=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"no space left below {root}; make room and run the same command again, finished units stay"
        return Failure(message, traceback.format_exc(), fatal=True)


def _prints(files: str | list[str]) -> list[Any]:
    """Fingerprints of what a key names: a file or folder, or paths and globs; of those the names are part of it."""
    if isinstance(files, str):
        return [fingerprint(files)]
    return [(file, fingerprint(file)) for file in expand_files(files)]


def _record(stored: Mapping[str, Any], path: Path) -> Record:
    return Record(stored["unit"], stored["outputs"], stored["seconds"], path)


def _below(keys: Sequence[str], name: str) -> bool:
    return any(name == k or name.startswith(f"{k}.") for k in keys)


def _all_there(root: Path, outputs: Mapping[str, Mapping[str, Any]]) -> bool:
    try:
        return all(os.stat(root / path).st_size == entry["bytes"] for path, entry in outputs.items())
    except FileNotFoundError:
        return False
