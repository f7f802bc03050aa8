"""Units on this machine: worker processes that may die without taking the others along.

In: a round. Out: its outcomes as units end. A worker that is killed costs one attempt of the unit it held; a killed
parent ends its workers.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from jobs.executor import Failure, Outcomes, Round, attempt


def run_units(job: Round[Any]) -> Outcomes:
    """Runs a round in up to `job.workers` processes.

    Workers start fresh interpreters, so that no thread or lock is inherited. Closing the iterator ends the workers.
    """
    context = multiprocessing.get_context("spawn")
    waiting = deque((name, 1) for name in job.units)
    busy: dict[Connection, tuple[BaseProcess, str, int]] = {}
    idle: list[tuple[Connection, BaseProcess]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < job.workers:
                name, number = waiting.popleft()
                if idle:
                    connection, process = idle.pop()
                else:
                    connection, theirs = context.Pipe()
                    process = context.Process(target=_worker, args=(job.work, theirs), daemon=False)
                    process.start()
                    theirs.close()
                with contextlib.suppress(OSError):  # it died while idle: the wait below sees that
                    connection.send(job.units[name])
                busy[connection] = (process, name, number)
            for connection in _ready(busy):
                process, name, number = busy.pop(connection)
                try:
                    failure = connection.recv()
                    idle.append((connection, process))
                except (EOFError, OSError):
                    process.join()
                    connection.close()
                    failure = Failure(_how_it_died(process.exitcode))
                if failure and not failure.fatal and number < job.attempts:
                    waiting.append((name, number + 1))
                else:
                    yield name, failure
    finally:
        for connection, process in [*idle, *((c, p) for c, (p, _, _) in busy.items())]:
            connection.close()
            process.kill()
            process.join()


def _ready(connections: Iterable[Connection]) -> list[Connection]:
    """Those on which an answer, or the end of a worker, can be read."""
    return [connection for connection in wait(list(connections)) if isinstance(connection, Connection)]


def _worker(work: Callable[[Any], Failure | None], connection: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    while True:
        try:
            unit = connection.recv()
        except (EOFError, OSError):  # the parent wants no more
            return
        connection.send(attempt(work, unit))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _how_it_died(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        memory = "; the system may have been out of memory: try fewer executor.workers" if name == "SIGKILL" else ""
        return f"its worker was ended by {name}{memory}"
    return f"its worker ended with exit code {exitcode}"
