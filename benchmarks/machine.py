"""The machine that a benchmark ran on, in a line."""

import os
import platform
from pathlib import Path


def machine() -> str:
    """Processor, cores that may be used, memory, Python."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) / 1e6 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0)
    cores = len(os.sched_getaffinity(0))
    return f"{cpu or platform.machine()}, {cores} cores, {memory:.0f} GB, Python {platform.python_version()}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()
