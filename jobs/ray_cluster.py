"""Units as tasks of a Ray cluster: `RAY_ADDRESS` says which, else the one that was started on this machine.

In: a round. Out: its outcomes as units end. The cluster's nodes must see the file system and the environment of this
process at the same paths. A unit is a task, since Ray's workers stay warm between tasks; `bundle` and `minutes` say nothing
here, for Ray has no time limits. A lost worker or node costs one attempt of the units it held.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from jobs.executor import Failure, Outcomes, Round, attempt

MEMORY = "memory"  # Ray's name of that resource, in bytes


def run_units(job: Round[Any]) -> Outcomes:
    """Runs a round with up to `job.workers` tasks at a time. Raises ValueError where there is no cluster.

    Closing the iterator ends the tasks.
    """
    ray = _connected()
    do = ray.remote(_do)
    work = ray.put((job.work, os.getcwd()))
    waiting = deque((name, 1, 1) for name in job.units)
    running: dict[Any, tuple[str, int, int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < job.workers:
                name, number, memory = waiting.popleft()
                if memory > 1 and not _fits(ray, job, memory):
                    yield (
                        name,
                        Failure(f"it was out of memory, and no node has {memory} × {job.resources.memory}", out_of=MEMORY),
                    )
                    continue
                needs = job.resources.times(memory, 1)
                task = do.options(
                    name=f"{job.name}/{name}",
                    num_cpus=needs.cores or 1,
                    memory=needs.megabytes * (1 << 20) if needs.megabytes else None,
                    max_retries=0,  # the attempts are counted here
                    scheduling_strategy="SPREAD",  # another attempt comes to another node, where there is one
                ).remote(work, job.units[name])
                running[task] = name, number, memory
            for task in ray.wait(list(running), num_returns=1)[0]:
                name, number, memory = running.pop(task)
                failure = _outcome(ray, task)
                if failure is None or failure.fatal or number >= job.attempts:
                    yield name, failure
                else:
                    waiting.append((name, number + 1, memory * (2 if failure.out_of == MEMORY else 1)))
    finally:
        for task in running:
            ray.cancel(task, force=True)
        ray.shutdown()


def _do(shared: tuple[Callable[[Any], Failure | None], str], unit: Any) -> Failure | None:
    work, folder = shared
    os.chdir(folder)  # relative paths mean what they mean in the stage's own process
    return attempt(work, unit)


def _connected() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("executor=ray: Ray is not installed: pip install llama-pretrain[ray]") from None
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}}
    try:
        ray.init(address="auto", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        raise ValueError("executor=ray: no Ray cluster: set RAY_ADDRESS, or start one with `ray start --head`") from None
    return ray


def _outcome(ray: Any, task: Any) -> Failure | None:
    try:
        failure: Failure | None = ray.get(task)
        return failure
    except ray.exceptions.OutOfMemoryError as error:
        return Failure(f"its worker was out of memory: {_first_line(error)}", out_of=MEMORY)
    except ray.exceptions.RayError as error:  # its worker or its node is gone
        return Failure(f"{type(error).__name__}: {_first_line(error)}")


def _fits(ray: Any, job: Round[Any], memory: int) -> bool:
    most = max((node["Resources"].get(MEMORY, 0) for node in ray.nodes() if node["Alive"]), default=0)
    return (job.resources.megabytes or 0) * memory << 20 <= most


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
