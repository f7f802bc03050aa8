"""The lock: one process, also where another machine's flock is not seen."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.lock import held, is_held


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1.0)


def taken_elsewhere(path: Path) -> None:
    path.write_text(json.dumps({"host": "other", "pid": 7, "job": "12"}))


def test_it_says_who_has_it_and_is_given_back(tmp_path):
    path = tmp_path / "lock"
    with held(path, "wait"):
        assert json.loads(path.read_text()) == {"host": socket.gethostname(), "pid": os.getpid(), "job": None}
        assert is_held(path)
        with pytest.raises(ValueError, match=rf"wait \(process {os.getpid()} on {socket.gethostname()}\)"), held(path, "wait"):
            pass
    assert path.read_text() == "" and not is_held(path)
    with held(path, "wait"):
        pass


def test_a_holder_on_another_machine_lives_as_long_as_it_beats(tmp_path):
    path, ended = tmp_path / "lock", threading.Event()
    taken_elsewhere(path)

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match=r"wait \(process 7 on other, job 12\)"), held(path, "wait"):
            pass
    finally:
        ended.set()
        thread.join()
    with held(path, "wait"):  # now it is silent
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_of_this_machine_that_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 7, "job": None}))
    monkeypatch.setattr(lock, "SILENT_SECONDS", 1e9)
    with held(path, "wait"):
        pass


def test_who_loses_it_ends(tmp_path, capfd):
    path, told = tmp_path / "lock", threading.Event()
    former = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        with held(path, "wait"):
            taken_elsewhere(path)
            deadline = time.monotonic() + 30
            while not told.is_set() and time.monotonic() < deadline:
                time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert told.is_set() and "was taken by process 7 on other, job 12" in capfd.readouterr().err
    assert json.loads(path.read_text())["host"] == "other"
