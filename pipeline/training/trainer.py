"""The training loop: a job and the folder of its checkpoints and metrics in, a trained model's checkpoint out.

Runs in every rank (`pipeline.training.rank`). The state of the data is one integer, the number of samples trained on; a
step's global batch is the next `batch` samples of the loader, of which each rank takes its slice, so a run is the same
whatever the number of ranks. There is no randomness but the seeds of the first weights and of the order of the samples, so
there are no random states to restore.
"""

import threading
from pathlib import Path

import torch
import torch.distributed as dist

from model.llama import Llama
from pipeline.tokens.loader import Loader
from pipeline.training import checkpoint
from pipeline.training.batch import batch_of
from pipeline.training.engine import DEVICE, build_engine, set_learning_rate
from pipeline.training.evaluate import ValidationSplits, metrics_of
from pipeline.training.job import Job
from pipeline.training.metrics import Metrics
from pipeline.training.profile import StepProfile
from pipeline.training.schedule import learning_rate


def train(job: Job, folder: Path, stop: threading.Event) -> int:
    """Trains from the newest good checkpoint in `folder`, or from the first weights, to the last step.

    Where `stop` is set in any rank, all save at the next step and end there. Returns the last step that was done. Raises
    ValueError for a job that can't be trained, in one line.
    """
    config = job.train
    rank, world = dist.get_rank(), dist.get_world_size()
    accumulation = config.accumulation(world)
    share = config.batch // world
    sources = {source: [folder.parent / prefix for prefix in prefixes] for source, prefixes in job.train_shards.items()}
    loader = Loader(sources, job.mixture.shares, job.mixture.epochs, config.sequence, config.seed, job.tokenizer)
    validation = ValidationSplits(job.validation_shards, folder.parent, config.sequence, config.micro_batch, job.tokenizer)
    eos = loader.vocabulary.eos if config.document_mask else None
    model = Llama(job.model, config.activations)
    model.init_weights(config.seed)
    engine = build_engine(model, config, job.zero, world)
    checkpoints = folder / "checkpoints"
    newest = _from_rank_0(checkpoint.latest(checkpoints) if rank == 0 else None)
    start, sample = checkpoint.load(engine, newest, job.json()) if newest else (0, 0)
    metrics = Metrics(folder, start, sample, job, loader.mixture, DEVICE)
    profile = StepProfile(folder, config.profile)
    profile.after(start)

    batches = loader.batches(sample + rank * share, share, config.batch)
    step = start
    for step in range(start + 1, config.steps + 1):
        metrics.start()
        rate = learning_rate(step, config)
        set_learning_rate(engine, rate)
        batch = batch_of(next(batches), eos, DEVICE)
        told = torch.stack([(batch.labels >= 0).sum(), torch.tensor(int(stop.is_set()), device=DEVICE)])
        dist.all_reduce(told)
        count, stopping = told  # labels of the global batch; ranks that were told to stop

        loss = torch.zeros((), device=DEVICE)  # this rank's part of the mean over the global batch's labels
        for micro in batch.split(config.micro_batch):
            loss_sum, _ = engine(*micro)
            engine.backward(loss_sum / count * (accumulation * world))  # DeepSpeed divides by both
            engine.step()  # clips and steps with the last micro-batch
            loss += loss_sum.detach() / count
        sample += config.batch
        metrics.add(step, sample, rate, loss, engine.get_global_grad_norm())

        ends = step == config.steps or bool(stopping)  # waits for the start of this step, while its work is in the queue
        validates = step % config.validate_every == 0 or step == config.steps
        saves = step % config.checkpoint_every == 0 or ends
        if validates or saves or step % config.log_every == 0 or step == start + 1:
            rows = metrics.stop()
            if validates:
                sums = validation.sums(engine, DEVICE, eos, rank, world)
                dist.all_reduce(sums)
                rows[-1] |= metrics_of(validation.result(sums))
            metrics.write(rows)
        if saves:
            checkpoint.save(engine, checkpoints, step, sample, job.json(), config.keep_checkpoints)
        profile.after(step)
        if ends:
            break
    batches.close()
    metrics.close()
    return step


def _from_rank_0(path: Path | None) -> Path | None:
    """Rank 0's choice of a checkpoint, on every rank."""
    text = str(path or "").encode()
    size = torch.tensor(len(text), device=DEVICE)
    dist.broadcast(size, 0)
    data = torch.zeros(int(size), dtype=torch.uint8, device=DEVICE)
    if dist.get_rank() == 0 and text:
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(DEVICE)
    dist.broadcast(data, 0)
    return Path(bytes(data.tolist()).decode()) if len(data) else None
