"""What a training costs before it starts: a model and its training in; bytes by part, the largest micro-batch and days out.

Arithmetic alone, no torch. `memory` gives the most that a rank holds at a time: what is there for good (weights, fp32 masters
and Adam's moments of `pipeline.training.engine`'s AdamW, which is fused and so has no temporaries), what a step's gradients
take, and what the forward keeps, with the working memory of the part of a step in which the sum is largest. Tests compare it
with what torch's allocator hands out in real steps of a real engine.
"""

from dataclasses import dataclass

from model.config import LlamaConfig

CHUNK_BYTES = 24 << 20  # logits of a chunk: `model.loss.CHUNK_BYTES`
BUCKET = 500_000_000  # elements of a reduction: `pipeline.training.engine.BUCKET`
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered: DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at their peak, by part; `host` is what `offload` moves to the CPU's memory."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers
