"""A chain of stages on Slurm: each stage's own process is a job that begins when the one before it has ended well.

In: a command line of the pipeline (`mine key=value …`, or `all …`), which is asked for the stages with `--state`. Out:
scripts `out/jobs/{stage}.sbatch`, logs `out/jobs/{stage}.log`, and `out/jobs/submitted.json`: {stage: {job, log}}.

A stage's own process plans its units, sends them on, and writes the manifest; so the chain goes on without the machine
it was submitted from. Where its time is too short for that, it is queued again. A stage that is finished costs no job: it
is looked at again in that of the stage before it, as what it reads may change there.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import sbatch
from jobs.executor import Resources
from jobs.sbatch import State

TAIL = 20  # lines of a log
WARNING_SECONDS = 120
RUN = """\
set -e

# A stage that is told that its time is nearly up (USR1) saves what it has and ends with exit code 85; so does train where a
# node was lost. Then this job is queued again, and goes on from there, unless it was cancelled (TERM).
run() {
  local stage cancelled= code=0
  "$@" &
  stage=$!
  trap 'kill -USR1 $stage' USR1
  trap 'cancelled=yes; kill -TERM $stage' TERM
  while kill -0 $stage 2>/dev/null; do wait $stage || true; done
  wait $stage || code=$?
  trap - USR1 TERM
  if [ $code = 85 ] && [ -z "$cancelled" ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
  return $code
}"""


@dataclass(frozen=True)
class Chain:
    """The stages of a command line, as the pipeline sees them, with the jobs that were sent for them."""

    arguments: Sequence[str]
    out: Path
    executor: str
    stages: Sequence[dict[str, Any]]

    @property
    def folder(self) -> Path:
        """Where scripts and logs are."""
        return self.out / "jobs"

    def submitted(self) -> dict[str, dict[str, Any]]:
        """{stage: {job, log}} of the last time."""
        path = self.folder / "submitted.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def log(self, stage: str) -> Path | None:
        """Where the stage's own process writes."""
        entry = self.submitted().get(stage)
        return Path(entry["log"]) if entry else None


def ask(arguments: Sequence[str]) -> Chain:
    """What the pipeline says of a command line. Raises ValueError with its message where that is mistaken."""
    command = [sys.executable, "-m", "pipeline", *arguments, "--state"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(lines[-1].removeprefix("error: "))
    answer = json.loads(done.stdout)
    return Chain(arguments, Path(answer["out"]), answer["executor"], answer["stages"])


def submit(chain: Chain, dry: bool) -> Iterator[str]:
    """Sends what is not finished; yields lines that say what. `dry`: sends and writes nothing.

    Raises ValueError where jobs of an earlier time are still there, or Slurm refuses one.
    """
    if chain.executor != "slurm":
        raise ValueError(f"executor={chain.executor}: stages are submitted to Slurm: add executor=slurm")
    if not dry and (still := [name for name, state in _states(chain).items() if not state.ended]):
        job = chain.submitted()[still[0]]["job"]
        raise ValueError(f"{chain.out}: {still[0]} is still there (job {job}): wait for its end, or cancel it")
    groups = list(_groups(chain.stages))
    if not groups:
        yield "nothing to do: every stage is finished"
    before: int | str | None = None
    sent = chain.submitted()
    for group in groups:
        names = [stage["stage"] for stage in group]
        path, log = chain.folder / f"{names[0]}.sbatch", chain.folder / f"{names[0]}.log"
        text = _script(chain, group, log, before)
        if dry:
            before = f"JOB_OF_{names[0]}"
            yield f"==> {path} <==\n{text}"
            continue
        chain.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        try:
            before = sbatch.submit(path)
        except sbatch.Refused as refused:
            raise ValueError(f"{names[0]}: Slurm refuses it: {refused} (see {path})") from None
        sent |= {name: {"job": before, "log": str(log)} for name in names}
        _write(chain.folder / "submitted.json", sent)
        again = f", then {', '.join(names[1:])} again" if names[1:] else ""
        yield f"job {before}: {names[0]}{again}: {path}"


def status(chain: Chain) -> Iterator[str]:
    """A table of the stages, and below it the first errors of units."""
    states = _states(chain)
    rows = [("stage", "state", "units", "done", "running", "failed", "left", "rate", "time left", "log")]
    errors = []
    for stage in chain.stages:
        rounds = stage["rounds"]
        units, done, running = (sum(r[k] for r in rounds) for k in ("units", "done", "running"))
        failed = [path for r in rounds for path in r["failed"]]
        errors += failed[:3]
        counts = [str(count) for count in (units, done, running, len(failed), units - done)] if rounds else ["-"] * 5
        log = chain.log(stage["stage"])
        rows.append(
            (stage["stage"], _state(stage, states), *counts, *_pace(stage), os.path.relpath(log) if log else "-"),
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for path in errors:
        yield f"{os.path.relpath(path)}: {_last_line(Path(path))}"


def logs(chain: Chain) -> Iterator[str]:
    """The ends of the stages' logs, and the errors of units."""
    shown: set[Path] = set()
    for stage in chain.stages:
        log = chain.log(stage["stage"])
        found = [log] if log and log.exists() else []
        for path in [*found, *(Path(path) for r in stage["rounds"] for path in r["failed"])]:
            if path not in shown:
                yield f"==> {os.path.relpath(path)} <=="
                yield from path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
                yield ""
                shown.add(path)
    if not shown:
        yield "no logs: nothing was submitted"


def cancel(chain: Chain) -> Iterator[str]:
    """Cancels the stages' jobs, then their arrays; yields lines that say which."""
    stages = [stage["stage"] for stage in chain.stages]
    states = {name: state for name, state in _states(chain).items() if not state.ended}
    jobs = {name: chain.submitted()[name]["job"] for name in states}
    for waiting in (True, False):  # Slurm would drop what waits for a job that has ended, as not begun
        sbatch.cancel({jobs[name] for name, state in states.items() if (state.state == "PENDING") == waiting})
    yield from (f"job {job}: {name}" for name, job in jobs.items())
    arrays = [path for stage in stages for path in chain.folder.glob(f"{stage}/*/*/job")]
    sbatch.cancel(path.read_text().strip() for path in arrays)
    yield from (f"job {path.read_text().strip()}: {path.parent.relative_to(chain.folder)}" for path in arrays if path.exists())
    if not jobs and not arrays:
        yield "nothing to cancel: no job is there"


def _groups(stages: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Stages that share a job: one that is not finished, or always has to look, with the finished ones behind it."""
    group: list[dict[str, Any]] = []
    for stage in stages:
        alone = not stage["finished"] or (stage["always"] and not group)
        if group and alone:
            yield group
            group = []
        if group or alone:
            group.append(stage)
    if group:
        yield group


def _script(chain: Chain, group: Sequence[dict[str, Any]], log: Path, before: int | str | None) -> str:
    name = group[0]["stage"]
    options = {
        "job-name": name,
        "dependency": f"afterok:{before}" if before else None,
        "kill-on-invalid-dep": "yes",  # where that has failed, this does not wait for ever
        "chdir": os.getcwd(),
        "output": str(log).replace("%", "%%"),
        "open-mode": "append",
        "requeue": "",  # after a node's failure; finished units stay
    }
    resources = Resources(**group[0]["needs"])
    options["signal"] = f"B:USR1@{resources.warning or WARNING_SECONDS}"
    settings = [shlex.quote(argument) for argument in chain.arguments[1:]]
    lines = [RUN]
    for stage in group:
        command = f"run {shlex.quote(sys.executable)} -m pipeline {stage['stage']}"
        lines += ["", " \\\n  ".join([command, *settings])]
    return sbatch.script(f"{name}: the stage's own process.", options, resources, lines)


def _states(chain: Chain) -> dict[str, State]:
    """{stage: state of its job} of those that Slurm still knows. Raises ValueError where it does not answer."""
    submitted = chain.submitted()
    if not submitted:
        return {}
    states = sbatch.states()
    if states is None:
        raise ValueError("squeue: Slurm does not answer")
    return {
        stage["stage"]: state
        for stage in chain.stages
        if (entry := submitted.get(stage["stage"])) and (state := states.get(str(entry["job"])))
    }


def _state(stage: dict[str, Any], states: dict[str, State]) -> str:
    job = states.get(stage["stage"])
    if job and not job.ended:
        return job.state.lower() if job.state == "RUNNING" else f"{job.state.lower()} ({job.reason})"
    if stage["active"]:
        return "running"
    if stage["finished"]:
        return "finished"
    if job and job.state != "COMPLETED":
        return "not begun" if job.reason == "DependencyNeverSatisfied" else job.state.lower().replace("_", " ")
    return "failed" if any(r["failed"] for r in stage["rounds"]) else "stopped" if stage["rounds"] else "-"


def _pace(stage: dict[str, Any]) -> tuple[str, str]:
    """Units an hour of the round that runs, and the time that it takes yet."""
    if not stage["active"] or not stage["rounds"]:
        return "-", "-"
    last = stage["rounds"][-1]
    now = last["done"] - (last["units"] - last["missing"])
    seconds = time.time() - last["begun"]
    if now <= 0 or seconds <= 0:
        return "-", "-"
    left = (last["units"] - last["done"]) * seconds / now
    return f"{3600 * now / seconds:,.0f}/h", f"{left / 60:,.0f} min" if left >= 60 else f"{left:.0f} s"


def _last_line(path: Path) -> str:
    return next(reversed(path.read_text(encoding="utf-8", errors="replace").strip().splitlines()), "")


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)


def lines_of(verb: str, chain: Chain, dry: bool) -> Iterable[str]:
    """What a verb of the command line says while it does it."""
    return submit(chain, dry) if verb == "submit" else {"status": status, "logs": logs, "cancel": cancel}[verb](chain)
