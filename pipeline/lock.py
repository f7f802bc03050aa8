"""One process at a time, also where a file system's locks end at the machine.

In: a path on the shared file system. Out: the lock, held while the context is open. The file says who holds it, and its
time of change moves while the holder lives; both are looked at where the holder is on another machine, whose flock may
not be seen here.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BEAT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # so long without a beat, and the holder is gone


@contextmanager
def held(path: Path, message: str) -> Iterator[None]:
    """Holds the lock; raises ValueError(message) with the holder's name where another process has it.

    Takes up to `SILENT_SECONDS` where a process of another machine has ended without giving it back.
    """
    with path.open("a+", encoding="utf-8") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{message} ({_name(_read(path))})") from None
        except OSError:  # a file system without locks
            locked = False
        former = _read(path)
        if former and not (locked and former["host"] == socket.gethostname()) and _beats(path):
            raise ValueError(f"{message} ({_name(former)})")
        own = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        _write(file, json.dumps(own))
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, own, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            if _read(path) == own:
                _write(file, "")


def is_held(path: Path) -> bool:
    """Whether a living process holds it, as far as its beats tell."""
    with contextlib.suppress(FileNotFoundError):
        return bool(_read(path)) and time.time() - path.stat().st_mtime < SILENT_SECONDS
    return False


def _beat(path: Path, own: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            if (holder := _read(path)) != own:
                print(f"error: {path} was taken by {_name(holder)}; this process ends", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(path)


def _beats(path: Path) -> bool:
    """Whether the time of change moves; two machines' clocks are not compared."""
    first, deadline = path.stat().st_mtime_ns, time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 10)
        with path.open("rb") as file:  # to open it is what makes a client of NFS look again
            if os.fstat(file.fileno()).st_mtime_ns != first:
                return True
    return False


def _read(path: Path) -> dict[str, Any] | None:
    text = path.read_text(encoding="utf-8")
    return dict(json.loads(text)) if text else None


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def _name(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "it has just begun"
    job = f", job {holder['job']}" if holder["job"] else ""
    return f"process {holder['pid']} on {holder['host']}{job}"
