"""Samples as the model takes them: rows of tokens in, inputs, labels and documents out."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.tokens.loader import document_boundaries


class Batch(NamedTuple):
    """Inputs and labels, int64 [samples, sequence]; with `train.document_mask` the inputs' documents, int32, else None."""

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None

    def split(self, samples: int) -> list["Batch"]:
        """Parts of so many samples, the last of what is left."""
        parts = [self.tokens.split(samples), self.labels.split(samples)]
        documents = self.documents.split(samples) if self.documents is not None else [None] * len(parts[0])
        return [Batch(*part) for part in zip(*parts, documents, strict=True)]


def batch_of(rows: np.ndarray, eos: int | None, device: str) -> Batch:
    """The batch of samples, int64 [samples, sequence + 1] as the loader gives them.

    `eos`: where documents are told apart, what ends them; None where they run on.
    """
    labels, documents = rows[:, 1:], None
    if eos is not None:
        documents, labels = document_boundaries(rows, eos)

    def placed(part: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(part)
        return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    return Batch(placed(rows[:, :-1]), placed(labels), None if documents is None else placed(documents))
