"""The configuration of a training run, checked; no torch here, so that the command line starts at once."""

from dataclasses import dataclass, field


@dataclass
class TrainConfig:
    """A training run: lengths in tokens, times in optimizer steps."""

    sequence: int = field(default=2048, metadata={"help": "tokens a sample"})
    batch_tokens: int = field(default=4194304, metadata={"help": "tokens a step, over all processes"})
    micro_batch: int = field(default=1, metadata={"help": "samples a process holds at a time"})
    steps: int = field(default=100, metadata={"help": "optimizer steps"})
    lr: float = field(default=3e-4, metadata={"help": "peak learning rate"})
    min_lr_ratio: float = field(default=0.1, metadata={"help": "the learning rate ends at this share of its peak"})
    warmup_steps: int = field(default=2000, metadata={"help": "steps of linear warm-up"})
    weight_decay: float = field(default=0.1, metadata={"help": "of matrices"})
    beta1: float = field(default=0.9, metadata={"help": "Adam's first moment"})
    beta2: float = field(default=0.95, metadata={"help": "Adam's second moment"})
    adam_eps: float = field(default=1e-8, metadata={"help": "Adam's epsilon"})
    clip: float = field(default=1.0, metadata={"help": "largest norm of the gradient"})
    seed: int = field(default=1, metadata={"help": "of the weights and the sample order"})
    dtype: str = field(default="bf16", metadata={"help": "bf16 (with fp32 master weights) or fp32"})
    processes: int = field(default=1, metadata={"help": "processes on this machine"})
    checkpoint_every: int = field(default=1000, metadata={"help": "steps between checkpoints"})
    keep_checkpoints: int = field(default=3, metadata={"help": "newest checkpoints that stay"})
    validate_every: int = field(default=1000, metadata={"help": "steps between validations"})
    log_every: int = field(default=10, metadata={"help": "steps between lines of metrics"})


@dataclass
class ZeroConfig:
    """DeepSpeed's ZeRO (arXiv 1910.02054)."""

    stage: int = field(default=1, metadata={"help": "0 to 3: what is partitioned over the processes"})
