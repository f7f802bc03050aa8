"""Validation: a model and the fixed validation split of each source in, losses by source out.

The same samples in the same batches every time, whatever the number of ranks, and their sums are added up in the same order:
the result is the same to the last bit. Means are over tokens.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.tokens.loader import Validation
from pipeline.tokens.shards import Shard
from pipeline.training.batch import batch_of
from pipeline.training.metrics import perplexity

LossFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class ValidationSplits:
    """The validation splits of a run.

    `shards`: {source: prefixes of token shards, relative to `root`}; `sequence` and `tokenizer` as of the loader;
    `micro_batch`: samples of a batch. A source whose split is shorter than a sample is left out with a warning. ValueError
    where no source is left, and as of `Validation`.

    Attributes: `splits` ({source: Validation}, sorted).
    """

    def __init__(
        self, shards: Mapping[str, Sequence[str]], root: Path, sequence: int, micro_batch: int, tokenizer: str | None = None
    ) -> None:
        self.splits: dict[str, Validation] = {}
        for source, prefixes in sorted(shards.items()):
            paths = [root / prefix for prefix in prefixes]
            if (tokens := sum(Shard(path).size for path in paths)) > sequence:
                self.splits[source] = Validation(paths, sequence, tokenizer)
            elif os.environ.get("RANK", "0") == "0":
                print(f"warning: no validation on {source}: its split has {tokens} tokens, less than a sample", file=sys.stderr)
        if not self.splits:
            raise ValueError(
                f"validation: no source has a sample of {sequence} tokens and its label ({', '.join(sorted(shards))}): raise"
                " tokenize.validation, add text, or shorten the sequence"
            )
        self._micro_batch = micro_batch
        self._batches = [
            (source, first) for source, split in self.splits.items() for first in range(0, split.samples, micro_batch)
        ]

    @torch.no_grad()
    def sums(self, loss: LossFunction, device: str, eos: int | None = None, rank: int = 0, world: int = 1) -> Tensor:
        """[summed loss, tokens] of each batch, fp64 [batches, 2], zero for those of other ranks: ranks add their tables up.

        `loss` maps a batch (`pipeline.training.batch.Batch`) to its summed loss and its number of labels. `eos`: where
        documents are told apart, what ends them. Every rank runs as many batches as the others, as sharded weights need it;
        one beyond the split counts nothing.
        """
        sums = torch.zeros(len(self._batches), 2, dtype=torch.float64, device=device)
        for start in range(0, len(self._batches), world):
            number = start + rank
            beyond = number >= len(self._batches)
            source, first = self._batches[0 if beyond else number]
            rows = self.splits[source].batch(first, 1 if beyond else self._micro_batch)
            summed, count = loss(*batch_of(rows, eos, device))
            if not beyond:
                sums[number] = torch.stack([summed.double(), count.double()])
        return sums

    def result(self, sums: Tensor) -> dict[str, Any]:
        """{loss, perplexity, tokens, sources: {source: the same}} of the added tables of `sums`."""
        by_source = {source: [0.0, 0.0] for source in self.splits}
        for (source, _), values in zip(self._batches, sums.tolist(), strict=True):
            by_source[source] = [total + value for total, value in zip(by_source[source], values, strict=True)]
        whole = [sum(column) for column in zip(*by_source.values(), strict=True)]
        sources = {source: _mean(*values) for source, values in by_source.items() if values[1]}
        return {**_mean(*whole), "sources": sources}


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """Of a `result` what stands in a row of the metrics."""
    return {
        "validation_loss": result["loss"],
        **{f"validation_loss/{source}": value["loss"] for source, value in result["sources"].items()},
    }


def _mean(summed: float, tokens: float) -> dict[str, Any]:
    loss = summed / tokens
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": int(tokens)}
