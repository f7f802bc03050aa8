"""The training loop: a job and the folder of its checkpoints and metrics in, a trained model's checkpoint out.

Runs in every rank (`pipeline.training.rank`). The state of the data is one integer, the number of samples trained on; a
step's global batch is the next `batch` samples of the loader, of which each rank takes its slice, so a run is the same
whatever the number of ranks. There is no randomness but the seeds of the first weights and of the order of the samples, so
there are no random states to restore.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.tokens.loader import Loader, Validation
from pipeline.training import checkpoint
from pipeline.training.batch import batch_of
from pipeline.training.engine import DEVICE, build_engine, build_model, set_learning_rate
from pipeline.training.evaluate import perplexity, validation_sums
from pipeline.training.job import Job
from pipeline.training.metrics import Metrics
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
    checks = [folder.parent / prefix for prefixes in job.validation_shards.values() for prefix in prefixes]
    validation = Validation(checks, config.sequence, job.tokenizer)
    eos = loader.vocabulary.eos if config.document_mask else None
    engine = build_engine(build_model(job.model, config, job.zero, world), config, job.zero, world)
    checkpoints = folder / "checkpoints"
    newest = _newest(checkpoints)
    start, sample = checkpoint.load(engine, newest, job.json()) if newest else (0, 0)
    metrics = Metrics(folder, start, config)

    batches = loader.batches(_slices(config, start, sample, rank, world))
    step = start
    for step in range(start + 1, config.steps + 1):
        metrics.start()
        rate = learning_rate(step, config)
        set_learning_rate(engine, rate)
        batch = batch_of(next(batches), eos, DEVICE)
        told = torch.stack([(batch.labels >= 0).sum(), torch.full((), int(stop.is_set()), device=DEVICE)])
        dist.all_reduce(told)
        count = told[0]  # labels of the global batch
        stopping = _OnTheWay(told[1])  # ranks that were told to stop

        loss = torch.zeros((), device=DEVICE)  # this rank's part of the mean over the global batch's labels
        micros = batch.split(config.micro_batch)
        for number, micro in enumerate(micros, 1):
            engine.set_gradient_accumulation_boundary(number == len(micros))
            loss_sum, _ = engine(*micro)
            engine.backward(loss_sum / count * world, scale_wrt_gas=False)  # the ranks' gradients are averaged
            loss += loss_sum.detach() / count
        engine.step()  # clips, then steps
        sample += config.batch_at(step)
        metrics.add(step, rate, loss, engine.get_global_grad_norm())

        ends = step == config.steps or stopping.arrived() > 0  # waits for the start of this step, while its work is queued
        validates = step % config.validate_every == 0 or step == config.steps
        saves = step % config.checkpoint_every == 0 or ends
        if validates or saves or step % config.log_every == 0 or step == start + 1:
            rows = metrics.stop()
            if validates:
                sums = validation_sums(engine, validation, config.micro_batch, DEVICE, eos, rank, world)
                dist.all_reduce(sums)
                rows[-1]["validation_loss"] = perplexity(sums)["loss"]
            metrics.write(rows)
        if saves:
            checkpoint.save(engine, checkpoints, step, sample, job.json(), config.keep_checkpoints)
        if ends:
            break
    batches.close()
    metrics.close()
    return step


def _slices(config: TrainConfig, start: int, sample: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """The samples that a rank takes, (first, how many) for each step behind `start`, of which `sample` is the first."""
    for step in range(start + 1, config.steps + 1):
        batch = config.batch_at(step)
        yield sample + rank * (batch // world), batch // world
        sample += batch


def _newest(checkpoints: Path) -> Path | None:
    """Rank 0's choice of a checkpoint, on every rank."""
    newest = checkpoint.latest(checkpoints) if dist.get_rank() == 0 else None
    step = torch.tensor(int(newest.name.removeprefix("step-")) if newest else -1, device=DEVICE)
    dist.broadcast(step, 0)
    return checkpoints / f"step-{int(step):08d}" if step >= 0 else None


class _OnTheWay:
    """A number that is copied to the host while the device works on: waiting for it waits for nothing that is queued later."""

    def __init__(self, number: Tensor) -> None:
        self._copy = number.to("cpu", non_blocking=True)
        self._event = torch.cuda.Event() if number.is_cuda else None
        if self._event:
            self._event.record()

    def arrived(self) -> int:
        if self._event:
            self._event.synchronize()
        return int(self._copy)
