"""What the launcher makes of the ranks' lines, in whatever order torchrun passes them on."""

import itertools

from pipeline.training.launch import _Told

LINES = [
    (0, "started: a 7 node-1"),
    (1, "started: b 8 node-2"),
    (1, "failed: 1700000000.250000 rank 1: RuntimeError: Connection closed by peer"),
    (0, "failed: 1700000000.125000 rank 0: OSError: no space: 3 of 5"),
]


def test_the_rank_that_failed_first_is_named() -> None:
    for failures in itertools.permutations(LINES[2:]):
        told = _Told()
        for rank, text in (*LINES[:2], *failures):
            told.hear(rank, text)
        assert told.failure == "rank 0: OSError: no space: 3 of 5 on node-1"


def test_a_lost_rank_comes_before_those_that_missed_it() -> None:
    told = _Told()
    for rank, text in LINES:
        told.hear(rank, text)
    for text in ("  rank      : 1 (local_rank: 1)", "  exitcode  : -9 (pid: 8)"):
        told.hear(None, text)
    assert told.failure == "rank 1 on node-2 was ended by SIGKILL; the system may have been out of memory"
