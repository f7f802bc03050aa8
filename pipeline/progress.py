"""Progress of long work: a bar in a terminal, plain lines elsewhere (cluster logs, pipes).

In: finished units with their bytes. Out: units and bytes done, rate, time left, on standard error.
"""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_SECONDS = 10.0


def human_bytes(size: float) -> str:
    """1536 → '1.5 kB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """3700 → '1 h 1 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class UnitProgress:
    """Shows how far the units of one round are."""

    def __init__(self, label: str, units: int, size: int) -> None:
        self._label, self._units, self._size = label, units, size
        self._done = self._bytes = 0
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(label, total=units, state="")

    def __enter__(self) -> "UnitProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, size: int) -> None:
        """One more unit of `size` bytes is done."""
        self._done += 1
        self._bytes += size
        now = time.monotonic()
        state = self._state(now - self._start)
        if self._bar:
            self._bar.update(self._task, completed=self._done, state=state)
        elif now - self._last >= LINE_SECONDS and self._done < self._units:
            self._last = now
            print(f"{self._label}: {state}", file=sys.stderr, flush=True)

    def _state(self, seconds: float) -> str:
        share = self._bytes / self._size if self._size else self._done / self._units
        left = human_seconds(seconds * (1 - share) / share) if share else "?"
        rate = f", {human_bytes(self._bytes)}, {human_bytes(self._bytes / max(seconds, 1e-9))}/s" if self._size else ""
        return f"{self._done}/{self._units} units{rate}, {left} left"
