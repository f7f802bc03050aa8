"""The training loop: a job and the folder of its checkpoints and metrics in, a trained model's checkpoint out.

Runs in every rank (`pipeline.training.rank`). The state of the data is one integer, the number of samples trained on; a
step's global batch is the next samples of the loader, of which each rank takes its slice, so a run is the same whatever the
number of ranks. There is no randomness but the seeds of the first weights and of the order of the samples, so there are no
random states to restore.
"""

import functools
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from pipeline.tokens.loader import Loader
from pipeline.training import checkpoint
from pipeline.training.batch import batch_of
from pipeline.training.engine import DEVICE, build_engine, build_model, set_learning_rate
from pipeline.training.evaluate import ValidationSplits, metrics_of
from pipeline.training.guard import Event, Guard, OnTheWay, margin
from pipeline.training.job import Job
from pipeline.training.metrics import Metrics
from pipeline.training.profile import StepProfile
from pipeline.training.schedule import learning_rate
from pipeline.training.settings import TrainConfig


def train(job: Job, folder: Path, stop: threading.Event) -> int:
    """Trains from the newest good checkpoint in `folder`, or from the first weights, to the last step.

    Where `stop` is set in any rank, all save at the next step and end there. Returns the last step that was done. Raises
    ValueError for a job that can't be trained, in one line.
    """
    config = job.train
    rank, world = dist.get_rank(), dist.get_world_size()
    sources = {source: [folder.parent / prefix for prefix in prefixes] for source, prefixes in job.train_shards.items()}
    loader = Loader(sources, job.mixture.shares, job.mixture.epochs, config.sequence, config.seed, job.tokenizer)
    validation = ValidationSplits(job.validation_shards, folder.parent, config.sequence, config.micro_batch, job.tokenizer)
    eos = loader.vocabulary.eos if config.document_mask else None
    engine = build_engine(build_model(job.model, config, job.zero, world), config, job.zero, world)
    checkpoints = folder / "checkpoints"
    newest = _from_rank_0(checkpoint.latest(checkpoints) if rank == 0 else None, checkpoints)
    guard = Guard(engine, folder, config)
    saver = checkpoint.Saver(engine, checkpoints, config.keep_checkpoints, config.keep_every)
    profile = StepProfile(folder, config.profile)

    def go_on(path: Path | None, event: Event | None = None) -> tuple[int, int, Metrics, Generator[np.ndarray]]:
        state = checkpoint.load(engine, path, job.json()) if path else checkpoint.State()
        if event:
            guard.roll_back(event, state.step, state.sample)
        guard.go_on(state.step, state.guard)
        batches = loader.batches(_slices(config, state.step, state.sample, rank, world), guard.skipped)
        counts = functools.partial(loader.counts, skipped=guard.skipped)
        metrics = Metrics(folder, state.step, state.sample, job, counts, DEVICE)
        return state.step, state.sample, metrics, batches

    step, sample, metrics, batches = go_on(newest)
    if not newest and config.guard == "rollback":  # there is always one to go back to
        saver.save(checkpoint.State(), job.json())
    start = step
    profile.after(start)
    while step < config.steps:
        step += 1
        metrics.start()
        rate = learning_rate(step, config)
        set_learning_rate(engine, rate)
        batch = batch_of(next(batches), eos, DEVICE)
        told = torch.stack([(batch.labels >= 0).sum(), torch.full((), int(stop.is_set()), device=DEVICE)])
        dist.all_reduce(told)
        count = told[0]  # labels of the global batch
        stopping = OnTheWay(told[1])  # ranks that were told to stop

        loss = torch.zeros((), device=DEVICE)  # this rank's part of the mean over the global batch's labels
        guard.watch(step, sample, config.batch_at(step), loss)
        micros = batch.split(config.micro_batch)
        for number, micro in enumerate(micros, 1):
            engine.set_gradient_accumulation_boundary(number == len(micros))
            loss_sum, _ = engine(*micro)
            loss += loss_sum.detach() / count
            engine.backward(loss_sum / count * world, scale_wrt_gas=False)  # the ranks' gradients are averaged
        engine.step()  # clips, then steps where the guard lets it
        sample += config.batch_at(step)
        metrics.add(step, sample, rate, loss, engine.get_global_grad_norm())

        ends = step == config.steps or stopping.arrived() > 0  # waits for the start of this step, while its work is queued
        validates = step % config.validate_every == 0 or step == config.steps
        saves = step % config.checkpoint_every == 0 or ends
        if event := guard.found(all_of_them=validates or saves):
            back = _from_rank_0(saver.go_back(event["step"], margin(event)), checkpoints)
            metrics.close()
            batches.close()
            step, sample, metrics, batches = go_on(back, event)
            continue
        if validates or saves or step % config.log_every == 0 or step == start + 1:
            rows = metrics.stop()
            if validates:
                sums = validation.sums(engine, DEVICE, eos, rank, world)
                dist.all_reduce(sums)
                rows[-1] |= metrics_of(validation.result(sums))
            metrics.write(rows)
        if saves:
            saver.save(checkpoint.State(step, sample, guard.state()), job.json(), ends)
        saver.check()
        profile.after(step)
        if ends:
            break
    saver.finish()
    batches.close()
    metrics.close()
    return step


def _slices(config: TrainConfig, start: int, sample: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """The samples that a rank takes, (first, how many) for each step behind `start`, of which `sample` is the first."""
    for step in range(start + 1, config.steps + 1):
        batch = config.batch_at(step)
        yield sample + rank * (batch // world), batch // world
        sample += batch


def _from_rank_0(chosen: Path | None, checkpoints: Path) -> Path | None:
    """Rank 0's choice of a checkpoint, on every rank."""
    number = -1 if chosen is None else int(chosen.name.removeprefix("step-"))
    step = torch.tensor(number, device=DEVICE)
    dist.broadcast(step, 0)
    return checkpoints / f"step-{int(step):08d}" if step >= 0 else None
