"""The learning rate: a step in, its rate out; a pure function, so that nothing has to be stored or restored.

Source: LLaMA (arXiv 2302.13971, section 2.3): linear warm-up, then a cosine down to 10 % of the peak.
"""

import math

from pipeline.training.settings import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 1, 2, …, `config.steps`; it is at its peak in step `warmup_steps`, at its floor in the last."""
    assert 1 <= step <= config.steps, step
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    floor = config.lr * config.min_lr_ratio
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))
