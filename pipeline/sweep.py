"""Trainings with several settings: `python -m pipeline.sweep -m train.lr=1e-4,3e-4 out=OUT [hydra/launcher=submitit_slurm]`.

In: Hydra's multirun syntax and an `out` in which everything before `train` is finished. Out: a run for each combination,
`OUT/sweep/{0, 1, …}/`, which reads the tokenizer and the tokens of OUT. The same command goes on with what is not finished.
"""

import os
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from pipeline.__main__ import run
from pipeline.config import Config

SHARED = ("tokenizer", "tokens", "records/tokenizer.json", "records/tokenize.json")  # of OUT, that `train` reads


def train(composed: DictConfig) -> float:
    """One run; returns the last loss, for Hydra's optimizers."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    base, folder = Path(config.out), Path(HydraConfig.get().runtime.output_dir)
    for name in SHARED:
        link = folder / name
        if (base / name).exists() and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(base / name, link.parent))
    config.out = str(folder)
    run("train", config)
    from pipeline.training.metrics import read_metrics

    return float(read_metrics(folder / "train")[-1]["loss"])


def main() -> None:
    """Hydra's command line."""
    ConfigStore.instance().store(name="schema", node=Config)
    hydra.main(config_path="pkg://conf", config_name="sweep", version_base="1.3")(train)()


if __name__ == "__main__":
    main()
