"""Validation: a model and the fixed validation split in, the summed loss and the number of tokens out.

The same samples in the same batches every time; the mean is over tokens.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.tokens.loader import Validation
from pipeline.training.batch import batch_of

LossFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@torch.no_grad()
def validation_sums(
    loss: LossFunction,
    validation: Validation,
    micro_batch: int,
    device: str,
    eos: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """[summed loss, tokens] (fp64) of this rank's share of the validation samples; ranks add theirs up.

    `eos`: where documents are told apart, what ends them (`pipeline.training.batch.batch_of`).

    Every rank runs as many batches as the others, as sharded weights need it; a batch beyond the split counts nothing.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    rounds = math.ceil(validation.samples / (micro_batch * world))
    for number in range(rounds):
        rows = validation.batch((number * world + rank) * micro_batch, micro_batch)
        beyond = len(rows) == 0
        summed, count = loss(*batch_of(validation.batch(0, 1) if beyond else rows, eos, device))
        if not beyond:
            sums += torch.stack([summed.double(), count.double()])
    return sums


def perplexity(sums: Tensor) -> dict[str, Any]:
    """{loss, perplexity, tokens} of [summed loss, tokens]."""
    summed, tokens = sums.tolist()
    return {"loss": summed / tokens, "perplexity": math.exp(summed / tokens), "tokens": int(tokens)}
