"""The learning rate: a step in, its rate out; a pure function, so that nothing has to be stored or restored.

`cosine` is LLaMA's (arXiv 2302.13971, section 2.3): linear warm-up, then a cosine down to 10 % of the peak. `wsd` is
warm-up, stable, decay (MiniCPM, arXiv 2404.06395, section 4): the rate stays at its peak, and falls in the last tenth of the
steps; by one minus the square root of the progress, which was the best of the shapes compared by Hägele et al.
(arXiv 2405.18392, section 3.2).
"""

import math

from pipeline.training.settings import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 1, 2, …, `config.steps`; it is at its peak in step `warmup_steps`, at its floor in the last."""
    assert 1 <= step <= config.steps, step
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    floor = config.lr * config.min_lr_ratio
    if config.schedule == "wsd":
        progress = max(0, step - (config.steps - config.decay_steps)) / config.decay_steps
        return floor + (config.lr - floor) * (1 - math.sqrt(progress))
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))
