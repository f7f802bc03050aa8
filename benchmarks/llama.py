"""The model beside its other ways and beside transformers', in one run: kept activations, CPU time, peak memory.

`python -m benchmarks.llama` prints three tables. Sides take turns, and a figure is the median of their rounds in CPU seconds.
Peak memory is that of a process of its own, less what it had before its first step.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from benchmarks.machine import machine
from model.config import ACTIVATIONS, LlamaConfig
from model.convert.hugging_face import hugging_face_config
from model.llama import Llama
from model.loss import cross_entropy

SEQUENCE = 2048
ROUNDS = 3
BLOCKS = {
    "dim 1024": LlamaConfig(dim=1024, layers=2, heads=16, kv_heads=16, hidden=2816),
    "1.1B": LlamaConfig(dim=2048, layers=1, heads=32, kv_heads=4, hidden=5632),
}
MODELS = {
    "dim 256": (LlamaConfig(dim=256, layers=8, heads=4, kv_heads=4, hidden=704), 8, 256),
    "dim 1024": (LlamaConfig(dim=1024, layers=2, heads=16, kv_heads=16, hidden=2816), 1, SEQUENCE),
}
SIDES = ("transformers", *ACTIVATIONS)


class Storages(TorchDispatchMode):
    """Sees every tensor that is made while it is on; `alive` are the bytes of those that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def alive(self, but: list[Tensor]) -> int:
        """Bytes, without the memory of the tensors `but`."""
        known = {tensor.untyped_storage()._cdata for tensor in but}
        return sum(size for key, (storage, size) in self._made.items() if key not in known and not storage.expired())


def in_turns(sides: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU seconds of each side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def through_blocks(model: Llama, x_btd: Tensor) -> Tensor:
    """The blocks' output for x."""
    tables = model.rotary(slice(0, x_btd.shape[1]))
    for layer in model.layers:
        x_btd = layer(x_btd, *tables)
    return x_btd


def blocks() -> None:
    """Kept activations and speed of the blocks' three ways."""
    print(f"\nBlocks, {SEQUENCE} tokens, fp32     kept bytes/token  of autograd's  seconds  speed to autograd  to recompute")
    for name, config in BLOCKS.items():
        x_btd = torch.randn(1, SEQUENCE, config.dim, requires_grad=True)
        grad_btd = torch.randn(1, SEQUENCE, config.dim)
        kept: dict[str, float] = {}
        steps: dict[str, Callable[[], None]] = {}
        for activations in ACTIVATIONS:
            model = Llama(config, activations)
            model.init_weights(0)
            with Storages() as made:
                y_btd = through_blocks(model, x_btd)
            others = made.alive([*model.parameters(), *model.buffers(), x_btd, y_btd])
            kept[activations] = (others + x_btd.nbytes) / SEQUENCE  # all three keep the first block's input

            def step(model: Llama = model, x_btd: Tensor = x_btd, grad_btd: Tensor = grad_btd) -> None:
                through_blocks(model, x_btd).backward(grad_btd)
                model.zero_grad()

            steps[activations] = step
        del y_btd
        for activations, seconds in (times := in_turns(steps)).items():
            print(
                f"{name:9} x {config.layers} {activations:10} {kept[activations]:25,.0f}"
                f" {kept[activations] / kept['autograd']:14.1%} {seconds:8.2f}"
                f" {times['autograd'] / seconds:18.3f} {times['recompute'] / seconds:13.3f}"
            )


def resident_peak() -> int:
    """The most memory that this process has had, in KiB; getrusage would tell that of the process it was started from."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def loss_peak(way: str) -> None:
    """Prints the peak memory of a loss and its gradients."""
    x_btd = torch.randn(1, SEQUENCE, 256, requires_grad=True)
    weight_vd = torch.randn(32000, 256).mul_(0.02).requires_grad_()
    labels_bt = torch.randint(32000, (1, SEQUENCE))
    before = resident_peak()
    if way == "chunked":
        loss, _ = cross_entropy(x_btd, weight_vd, labels_bt)
    else:
        loss = F.cross_entropy(F.linear(x_btd, weight_vd).flatten(0, 1), labels_bt.flatten(), reduction="sum")
    loss.backward()
    print(resident_peak() - before)


def training(side: str, name: str) -> Callable[[], None]:
    """A training step of a model on one of the sides."""
    config, batch, sequence = MODELS[name]
    torch.manual_seed(0)
    tokens_bt = torch.randint(config.vocab_size, (batch, sequence + 1))
    if side == "transformers":
        their_config = TheirConfig.from_dict(hugging_face_config(config, None, 2), attn_implementation="sdpa")
        theirs = LlamaForCausalLM(their_config)
        model: nn.Module = theirs
        labels_bt = tokens_bt[:, :-1]  # shifted inside

        def loss() -> Tensor:
            return theirs(tokens_bt[:, :-1], labels=labels_bt, use_cache=False).loss
    else:
        model = ours = Llama(config, side)
        ours.init_weights(0)

        def loss() -> Tensor:
            loss_sum, count = ours(tokens_bt[:, :-1], tokens_bt[:, 1:])
            return loss_sum / count

    adam = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        loss().backward()
        adam.step()
        adam.zero_grad()

    return step


def training_peak(side: str, name: str) -> None:
    """Prints the peak memory of two steps."""
    step = training(side, name)
    before = resident_peak()
    step()
    step()
    print(resident_peak() - before)


def peak(*arguments: str) -> float:
    """MB that a process of its own reports."""
    command = [sys.executable, "-m", "benchmarks.llama", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024 / 1e6


def main() -> None:
    """Prints the tables."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}")
    print(machine())
    blocks()

    plain, chunked = peak("loss", "plain"), peak("loss", "chunked")
    logits = SEQUENCE * 32000 * 4 / 1e6
    print(f"\nLoss, {SEQUENCE} tokens, 32,000 pieces: peak MB {plain:.0f} plain, {chunked:.0f} chunked; logits {logits:.0f}")

    print("\nTraining with AdamW, 32,000 pieces, fp32        tokens/s  to transformers  peak MB")
    for name, (config, batch, sequence) in MODELS.items():
        for side, seconds in (times := in_turns({side: training(side, name) for side in SIDES})).items():
            print(
                f"{name:9} x {config.layers}, {batch} x {sequence:4} {side:14} {batch * sequence / seconds:16,.0f}"
                f" {times['transformers'] / seconds:16.3f} {peak('training', side, name):8,.0f}"
            )


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["loss", way]:
            loss_peak(way)
        case ["training", side, name]:
            training_peak(side, name)
