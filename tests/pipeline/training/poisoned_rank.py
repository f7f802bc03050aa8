"""A rank of a training whose gradients or losses go bad: `pipeline.training.rank` with a fault in the model.

`python poisoned_rank.py JOB.json RANK FAULTS`: FAULTS are `forward:what` joined by commas, `forward` the number of a training
forward of rank RANK (from 1), `what` `gradient` (of this rank, finite loss) or `loss` (and so the gradient).
"""

import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from model.llama import Llama


def poisoned(faults: dict[int, str]) -> type[Llama]:
    """A Llama with these faults, {number of the forward in training: what is not finite}."""

    class Poisoned(Llama):
        forwards = 0

        def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
            loss_sum, count = super().forward(*arguments, **named)
            if loss_sum.requires_grad:
                Poisoned.forwards += 1
                fault = faults.get(Poisoned.forwards)
                if fault == "gradient":
                    loss_sum.register_hook(lambda gradient: gradient * float("inf"))
                elif fault == "loss":
                    loss_sum = loss_sum * float("nan")
            return loss_sum, count

    return Poisoned


if __name__ == "__main__":
    from pipeline.training import engine, rank

    if os.environ["RANK"] == sys.argv[2]:
        engine.Llama = poisoned({int(n): what for n, what in (fault.split(":") for fault in sys.argv[3].split(","))})
    code = rank.main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)
