"""The command line: `python -m pipeline STAGE key=value …`.

In: the name of a stage (or `all`), or of another command, and settings. Out: what it writes; every mistake of the user is one
line on standard error and exit code 1. With `--state` a stage is not run: how far it is is printed as JSON, which is how
`python -m jobs` sees the stages.
"""

import importlib
import json
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from pipeline.commands import COMMANDS
from pipeline.config import Config, describe, load, load_settings
from pipeline.stage import Stage, StageError
from pipeline.stages import SPECS
from pipeline.terminal import printable
from pipeline.training.launch import STOPPED

ENDING = (signal.SIGTERM, signal.SIGUSR1)


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        if command not in SPECS and command not in COMMANDS and command != "all":
            raise ValueError(f"{command}: no such command; there are {', '.join([*SPECS, 'all', *COMMANDS])}")
        wants_help, wants_state = "-h" in rest or "--help" in rest, "--state" in rest
        overrides = [argument for argument in rest if argument not in ("-h", "--help", "--state")]
        if command in COMMANDS:
            module = importlib.import_module(f"pipeline.commands.{command}")
            settings = load(overrides) if module.Settings is Config else load_settings(module.Settings, overrides)
            if wants_help:
                print(_command_help(command, module, settings))
            else:
                module.run(settings)
            return 0
        config = load(overrides)
        if wants_help:
            print(_help(command, config))
            return 0
        if wants_state:
            print(json.dumps(state(command, config)))
            return 0
        run(command, config)
    except (ValueError, StageError, OSError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    return 0


def run(command: str, config: Config) -> None:
    """Runs one stage, or those that the experiment names; stages that are finished take no time."""
    stages = chosen(command, config)
    for stage in stages:
        with stage.opened():
            if stage.spec.always or not stage.is_finished():
                importlib.import_module(stage.spec.module).run(stage)
    if command == "all":
        from pipeline.summary import print_summary

        print_summary(config)


def chosen(command: str, config: Config) -> list[Stage]:
    """The stages that a command runs, in order; raises ValueError where one can't be run on what is there."""
    names = config.stages if command == "all" else [command]
    if not names:
        raise ValueError("all: no stages are named; choose an experiment, e.g. experiment=demo")
    for k, named in (("stages", names), ("executor.stages", config.executor.stages)):
        if unknown := [name for name in named if name not in SPECS]:
            raise ValueError(f"{k}: {unknown[0]}: no such stage; there are {', '.join(SPECS)}")
    stages = [Stage(SPECS[name], config) for name in names]
    for stage in stages:
        stage.check_config()
    return stages


def state(command: str, config: Config) -> dict[str, Any]:
    """How far the stages of a command are, and what their own processes need (JSON); changes nothing."""
    executor = config.executor
    rows = []
    for stage in chosen(command, config):
        needs = executor.needs(stage.spec.name) if stage.spec.here else executor.own_process()
        finished = stage.is_finished()
        rows.append({"finished": finished, "always": stage.spec.always, "needs": asdict(needs), **stage.progress()})
    return {"out": str(Path(config.out).absolute()), "executor": executor.kind, "stages": rows}


def _usage() -> str:
    width = max(map(len, [*SPECS, *COMMANDS])) + 2
    lines = [f"  {name:<{width}}{spec.help}" for name, spec in SPECS.items()]
    lines.append(f"  {'all':<{width}}runs the stages that an experiment names, in order")
    lines += ["", *(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())]
    return "\n".join(
        ["usage: python -m pipeline COMMAND [key=value …]", "", *lines, "", "COMMAND --help lists the keys of a command."]
    )


def _help(command: str, config: Config) -> str:
    prefixes: tuple[str, ...] = ("out", "overwrite", "max_bad_fraction", "max_removed", "executor")
    if command == "all":
        title, chosen = "runs the stages that an experiment names, in order", list(describe(config))
    else:
        spec = SPECS[command]
        title, prefixes = spec.help, prefixes + spec.keys + spec.choices
        chosen = [k for k in describe(config) if any(k[0] == p or k[0].startswith(f"{p}.") for p in prefixes)]
    return _page(command, title, chosen)


def _command_help(command: str, module: ModuleType, settings: object) -> str:
    """The page of a command; its module may say more in `DETAILS`, and in `KEYS` which keys are its own."""
    worded = {f.name: f.metadata["help"] for f in fields(settings) if f.metadata.get("words")}  # type: ignore[arg-type]
    chosen = getattr(module, "KEYS", ("",))
    keys = [key for key in describe(settings) if key[0] not in worded and key[0].startswith(chosen)]
    page = _page(f"{command}{''.join(f' {name.upper()} …' for name in worded)}", COMMANDS[command], keys)
    lines = [f"  {name.upper()}\n      {text}" for name, text in worded.items()]
    return "\n".join([page, *lines, *([f"\n{module.DETAILS}"] if hasattr(module, "DETAILS") else [])])


def _page(command: str, title: str, keys: Iterable[tuple[str, object, str]]) -> str:
    lines = [f"  {name}={_show(value)}\n      {text}" for name, value, text in keys]
    return "\n".join([f"usage: python -m pipeline {command} [key=value …]", "", title, "", *lines])


def _show(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_show(item)}" for name, item in value.items()) + "}"
    return "null" if value is None else f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Ends, once, whoever sends the signal again; after USR1 the same command is to go on later."""
    for other in ENDING:
        signal.signal(other, signal.SIG_IGN)
    print(f"ended by {signal.Signals(number).name}; finished units stay", file=sys.stderr)
    raise SystemExit(STOPPED if number == signal.SIGUSR1 else 128 + number)


if __name__ == "__main__":
    for number in ENDING:
        signal.signal(number, _terminate)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; finished units stay", file=sys.stderr)
        sys.exit(130)
