"""Saving beside training: what a checkpoint holds training up, beside saving it in the foreground.

In: nothing; random tokens train a model of 5 M parameters in fp32, one process, ZeRO-1. Out, in median seconds: a step; what
`Saver.save` takes before training goes on; that and what the steps while it writes take longer; for both ways, which take
turns. `python -m benchmarks.saving`
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
if not Path("/dev/nvidiactl").exists():
    os.environ["DS_ACCELERATOR"] = "cpu"

import torch
import torch.distributed as dist

from benchmarks.machine import machine
from model.config import LlamaConfig
from pipeline.progress import human_bytes
from pipeline.training import checkpoint
from pipeline.training.engine import DEVICE, build_engine, build_model, join_ranks
from pipeline.training.settings import TrainConfig, ZeroConfig

MODEL = LlamaConfig(dim=256, layers=4, heads=4, kv_heads=4, hidden=688, vocab_size=4096, max_sequence=256)
TRAIN = TrainConfig(sequence=256, batch_tokens=512, micro_batch=2, steps=100, warmup_steps=0, dtype="fp32")
ROUNDS, STEPS = 3, 4  # saves, steps after each


def main() -> None:
    """Prints the table."""
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    join_ranks()
    engine = build_engine(build_model(MODEL, TRAIN, ZeroConfig(1), 1), TRAIN, ZeroConfig(1), 1)
    tokens = torch.randint(MODEL.vocab_size, (2, 257), device=DEVICE)

    def steps() -> list[float]:
        times = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            loss_sum, count = engine(tokens[:, :-1], tokens[:, 1:])
            engine.backward(loss_sum / count)
            engine.step()
            loss_sum.item()  # waits for a GPU
            times.append(time.perf_counter() - begin)
        return times

    rows: dict[str, list[tuple[float, float, float]]] = {"background": [], "foreground": []}
    with tempfile.TemporaryDirectory() as folder:
        savers = {way: checkpoint.Saver(engine, Path(folder, way), keep=1) for way in rows}
        for number in range(ROUNDS + 1):  # the first is not counted: it takes memory
            for way, saver in savers.items():
                usual = statistics.median(steps())
                checkpoint._fits = lambda _, way=way: way == "background"
                begin = time.perf_counter()
                saver.save(checkpoint.State(number), {})
                stalled = time.perf_counter() - begin
                rows[way].append((usual, stalled, stalled + sum(steps()) - STEPS * usual))
                saver.finish()
        size = sum(path.stat().st_size for path in Path(folder, "background").glob("*/*"))
    print(
        f"{MODEL.parameter_count() / 1e6:.0f} M parameters, {TRAIN.batch_tokens} tokens a step; {human_bytes(size)} are saved"
    )
    print("| save | step, s | stall, s | in steps | stall and slower steps, s | in steps |\n|---|---|---|---|---|---|")
    for way, measured in rows.items():
        usual, stalled, slower = (statistics.median(column) for column in zip(*measured[1:], strict=True))
        print(f"| {way} | {usual:.2f} | {stalled:.3f} | {stalled / usual:.2f} | {slower:.2f} | {slower / usual:.2f} |")
    print(machine())


if __name__ == "__main__":
    main()
