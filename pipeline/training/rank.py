"""The process of one rank: a job file in; a finished, stopped or failed run out, told in one line.

Started by torchrun (`pipeline.training.launch`): `python -m pipeline.training.rank JOB.json`. It ends with the process that
started it, however that ends. After SIGTERM or SIGUSR1 the run saves at the next step and stops; the same job goes on from
there.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from pipeline.training.launch import SAVE, end_with_parent


def main(path: Path) -> int:
    """Trains; returns the exit code. What the launcher has to know goes to standard output, a line for each."""
    end_with_parent()
    if not Path("/proc", os.environ.get("LAUNCHER", "self")).exists():  # torchrun went with it before this rank was here
        return 1
    stop = threading.Event()
    for number in SAVE:
        signal.signal(number, lambda number, frame: stop.set())
    sys.stdout.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]  # whole lines for torchrun
    host = socket.gethostname()
    print(f"started: {host} {os.getpid()} {os.environ.get('SLURMD_NODENAME', host)}", flush=True)
    import torch.distributed as dist  # these take seconds, in which the above must hold already

    from pipeline.training.engine import join_ranks
    from pipeline.training.job import Job
    from pipeline.training.plan import is_out_of_memory, out_of_memory
    from pipeline.training.trainer import train

    rank = int(os.environ["RANK"])
    try:
        join_ranks()
        job = Job.read(path)
        step = train(job, path.parent, stop)
    except ValueError as error:
        traceback.print_exc()
        print(f"error: {_one_line(error)}", flush=True)
        return 1
    except Exception as error:
        when = time.time()
        traceback.print_exc()
        if is_out_of_memory(error):
            told = out_of_memory(job.model, job.train, job.zero.stage, dist.get_world_size(), job.zero.offload)
            print(f"error: rank {rank} is out of memory: {told}", flush=True)
            return 1
        print(f"failed: {when:.6f} rank {rank}: {type(error).__name__}: {_one_line(error)}", flush=True)
        return 1
    if step < job.train.steps and rank == 0:
        print(f"stopped: saved at step {step} of {job.train.steps}; the same command goes on from there", flush=True)
    dist.barrier()  # the first to leave would be taken for lost
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is synced by now. The interpreter's own end, with the threads of gloo still there, aborts now and then
    # ("terminate called without an active exception"), which makes a finished run look failed; and it would take the
    # handler of SIGTERM away.
    os._exit(code)
