"""One rank of a training run: a job file in, checkpoints and metrics out.

Started by torchrun (`pipeline.training.launch`): `python -m pipeline.training.trainer JOB.json`. The global batch of
step s is samples (s - 1) * batch … s * batch - 1 of the loader; each rank takes its slice of them, so a run is the same
whatever the number of ranks. There is no randomness but the seeds of the weights and of the sample order.
"""

import os
import sys
import threading
import time
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from model.llama import Llama
from pipeline.tokens.loader import Loader, Validation
from pipeline.training import checkpoint
from pipeline.training.engine import DEVICE, build_engine, set_learning_rate
from pipeline.training.evaluate import perplexity, validation_sums
from pipeline.training.job import Job
from pipeline.training.metrics import Metrics
from pipeline.training.schedule import learning_rate


def train(job: Job, folder: Path) -> None:
    """Trains from the newest good checkpoint in `folder`, or from the first weights, to the last step."""
    config = job.train
    rank, world = dist.get_rank(), dist.get_world_size()
    loader = Loader([folder.parent / prefix for prefix in job.train_shards], config.sequence, config.seed, job.tokenizer)
    checks = [folder.parent / prefix for prefix in job.validation_shards]
    validation = Validation(checks, config.sequence, job.tokenizer)
    model = Llama(job.model)
    model.init_weights(config.seed)
    engine = build_engine(model, config, job.zero, world)
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    newest = checkpoint.latest(checkpoints) if rank == 0 else None
    newest = _from_rank_0(newest)
    start = checkpoint.load(engine, newest) if newest else 0
    metrics = Metrics(folder, start, config.steps) if rank == 0 else None
    accumulation = config.accumulation(world)

    for step in range(start + 1, config.steps + 1):
        rate = learning_rate(step, config)
        set_learning_rate(engine, rate)
        batch = _my_samples(loader, step, config.batch, rank, world)
        labels = batch[:, 1:]
        count = (labels >= 0).sum()
        dist.all_reduce(count)
        loss_sum = torch.zeros((), device=DEVICE)
        for micro in batch.split(config.micro_batch):
            micro_sum, _ = engine(micro[:, :-1], micro[:, 1:])
            # DeepSpeed divides by the accumulation and averages over the ranks; the mean is over the global batch's tokens.
            engine.backward(micro_sum * (accumulation * world / count))
            engine.step()
            loss_sum += micro_sum.detach()

        last = step == config.steps
        checked = {}
        if step % config.validate_every == 0 or last:
            begin = time.monotonic()
            engine.eval()
            sums = validation_sums(engine, validation, config.micro_batch, DEVICE, rank, world)
            engine.train()
            dist.all_reduce(sums)
            checked["validation_loss"] = perplexity(sums)["loss"]
            if metrics:
                metrics.skip_time(time.monotonic() - begin)
        if step == 1 or step % config.log_every == 0 or checked:
            dist.all_reduce(loss_sum)
            if metrics:
                if (norm := engine.get_global_grad_norm()) is not None:  # DeepSpeed without ZeRO keeps it to itself
                    checked["grad_norm"] = float(norm)
                metrics.log(step, config.batch_tokens, loss=(loss_sum / count).item(), lr=rate, **checked)
        if step % config.checkpoint_every == 0 or last:  # after the row: a run that goes on from here writes none for this step
            begin = time.monotonic()
            checkpoint.save(engine, checkpoints, step, job.json(), config.keep_checkpoints)
            if metrics:
                metrics.skip_time(time.monotonic() - begin)
    if metrics:
        metrics.close()


def _my_samples(loader: Loader, step: int, batch: int, rank: int, world: int) -> torch.Tensor:
    """This rank's samples of the step's global batch: int64 [batch / world, sequence + 1]."""
    mine = batch // world
    rows: np.ndarray = loader.batch((step - 1) * batch + rank * mine, mine)
    return torch.from_numpy(rows).to(DEVICE, non_blocking=True)


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


def _end_with_launcher() -> None:
    """Ends this rank when torchrun or the process that started that is gone: a killed run leaves nothing behind."""
    torchrun, launcher = os.getppid(), Path("/proc", os.environ["LAUNCHER"])

    def watch() -> None:
        while os.getppid() == torchrun and launcher.exists():  # torchrun may have gone before this rank was here
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(path: Path) -> int:
    """Entry of a rank; mistakes of the user are one line."""
    _end_with_launcher()
    deepspeed.init_distributed("nccl" if DEVICE == "cuda" else "gloo")
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        train(Job.read(path), path.parent)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", flush=True)
        return 1
    dist.barrier()
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Everything is synced by now. The interpreter's own end, with the threads of gloo still there, aborts now and then
    # ("terminate called without an active exception"), which makes a finished run look failed.
    os._exit(code)
