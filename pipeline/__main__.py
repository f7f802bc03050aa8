"""The command line: `python -m pipeline STAGE key=value …`.

In: a stage's name (or `all`) and configuration overrides. Out: the stage's outputs; every mistake of the user is one
line on standard error and exit code 1.
"""

import importlib
import signal
import sys
from types import FrameType

from pipeline.config import Config, describe, load
from pipeline.stage import Stage, StageError
from pipeline.stages import SPECS


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        if command not in SPECS and command != "all":
            raise ValueError(f"{command}: no such stage; there are {', '.join(SPECS)} and all")
        wants_help = "-h" in rest or "--help" in rest
        config = load([argument for argument in rest if argument not in ("-h", "--help")])
        if wants_help:
            print(_help(command, config))
            return 0
        run(command, config)
    except (ValueError, StageError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def run(command: str, config: Config) -> None:
    """Runs one stage, or those that the experiment names; stages that are finished take no time."""
    names = config.stages if command == "all" else [command]
    if not names:
        raise ValueError("all: no stages are named; choose an experiment, e.g. experiment=demo")
    if unknown := [name for name in names if name not in SPECS]:
        raise ValueError(f"stages: {unknown[0]}: no such stage; there are {', '.join(SPECS)}")
    stages = [Stage(SPECS[name], config) for name in names]
    for stage in stages:
        stage.check_config()
    for stage in stages:
        with stage.opened():
            if stage.spec.always or not stage.is_finished():
                importlib.import_module(stage.spec.module).run(stage)
    if command == "all":
        from pipeline.summary import print_summary

        print_summary(config)


def _usage() -> str:
    width = max(map(len, SPECS)) + 2
    lines = [f"  {name:<{width}}{spec.help}" for name, spec in SPECS.items()]
    lines.append(f"  {'all':<{width}}runs the stages that an experiment names, in order")
    return "\n".join(
        ["usage: python -m pipeline STAGE [key=value …]", "", *lines, "", "STAGE --help lists the keys of a stage."]
    )


def _help(command: str, config: Config) -> str:
    prefixes: tuple[str, ...] = ("out", "overwrite", "max_bad_fraction", "executor")
    if command == "all":
        title, chosen = "runs the stages that an experiment names, in order", list(describe(config))
    else:
        spec = SPECS[command]
        title, prefixes = spec.help, prefixes + spec.keys + spec.choices
        chosen = [k for k in describe(config) if any(k[0] == p or k[0].startswith(f"{p}.") for p in prefixes)]
    lines = [f"  {name}={_show(value)}\n      {text}" for name, value, text in chosen]
    return "\n".join([f"usage: python -m pipeline {command} [key=value …]", "", title, "", *lines])


def _show(value: object) -> str:
    return "null" if value is None else f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; finished units stay", file=sys.stderr)
        sys.exit(130)
