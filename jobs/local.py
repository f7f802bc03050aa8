"""Units on this machine: worker processes that may die without taking the others along.

In: a function that takes one unit (both picklable) and the units. Out: (unit, result or exception) pairs as they
complete. A worker that is killed costs one attempt of the unit it held; a killed parent ends its workers.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

U = TypeVar("U")
R = TypeVar("R")
ATTEMPTS = 3


class WorkerDied(Exception):
    """A worker process ended without an answer, time after time, while it held one unit."""


def run_units(work: Callable[[U], R], units: Sequence[U], workers: int) -> Iterator[tuple[U, R | Exception]]:
    """Maps `work` over `units` in `workers` processes.

    Exceptions of `work` are yielded in place of its result. Workers start fresh interpreters, so that no thread or
    lock is inherited. Closing the generator ends the workers.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque((unit, 1) for unit in units)
    busy: dict[Connection, tuple[BaseProcess, U, int]] = {}
    idle: list[tuple[Connection, BaseProcess]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                unit, attempt = waiting.popleft()
                if idle:
                    connection, process = idle.pop()
                else:
                    connection, theirs = context.Pipe()
                    process = context.Process(target=_worker, args=(work, theirs), daemon=False)
                    process.start()
                    theirs.close()
                with contextlib.suppress(OSError):  # it died while idle: the wait below sees that
                    connection.send(unit)
                busy[connection] = (process, unit, attempt)
            for connection in _ready(busy):
                process, unit, attempt = busy.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    connection.close()
                    if attempt < ATTEMPTS:
                        waiting.append((unit, attempt + 1))
                    else:
                        yield unit, WorkerDied(_how_it_died(process.exitcode))
                    continue
                idle.append((connection, process))
                yield unit, result
    finally:
        for connection, process in [*idle, *((c, p) for c, (p, _, _) in busy.items())]:
            connection.close()
            process.kill()
            process.join()


def _ready(connections: Iterable[Connection]) -> list[Connection]:
    """Those on which an answer, or the end of a worker, can be read."""
    return [connection for connection in wait(list(connections)) if isinstance(connection, Connection)]


def _worker(work: Callable[[Any], Any], connection: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):  # the parent wants no more
            return
        try:
            answer: Any = work(unit)
        except Exception as error:
            answer = error
        connection.send(answer)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        memory = "; the system may have been out of memory: try fewer executor.workers" if name == "SIGKILL" else ""
        return f"its worker was ended by {name}, {ATTEMPTS} times{memory}"
    return f"its worker ended with exit code {exitcode}, {ATTEMPTS} times"
