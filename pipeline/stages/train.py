"""train: token shards in, checkpoints and metrics out (`train/`), through DeepSpeed."""

import contextlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.outputs import Outputs, write_json
from pipeline.stage import Stage, Unit
from pipeline.tokens.loader import plan
from pipeline.training.job import Job
from pipeline.training.launch import allocated_nodes, launch
from pipeline.training.metrics import read_metrics
from pipeline.training.plan import out_of_memory
from pipeline.training.settings import TrainConfig

FOLDER = "train"


def run(stage: Stage) -> None:
    """One unit: the run. It goes on from its newest checkpoint, also with other processes, another ZeRO stage and the like
    (`pipeline.training.settings.HOW`); with other keys it is another run, which starts from the first weights."""
    config = stage.config
    tokenizer = stage.upstream("tokenizer")["result"]
    tokens = stage.upstream("tokenize")
    sources = tokens["result"]["sources"]
    config.check_training(tokenizer["pieces"])
    tokens_of = {source: splits["train"]["tokens"] for source, splits in sources.items()}
    mixture = mixed(config, tokens_of)
    for line in too_few(config, mixture, tokens_of):
        print(f"warning: {line}", file=sys.stderr)
    job = Job(
        config.model,
        config.train,
        config.zero,
        config.mixture,
        {source: splits["train"]["shards"] for source, splits in sources.items()},
        {source: splits["validation"]["shards"] for source, splits in sources.items()},
        tokenizer["digest"],
        tokens["digest"],
    )
    told = stage.out / FOLDER / "job.json"
    if told.exists() and Job.read(told).result() != job.result() and not config.overwrite:
        raise ValueError(f"train: {told.parent} was trained on other tokens; overwrite=true starts from the first weights")
    inputs = {"tokenizer": job.tokenizer, "tokens": job.tokens}
    [record] = stage.map("train", train_unit, [Unit("run", {"job": job}, inputs)])
    stage.finish({**record.statistics, "mixture": mixture})


def mixed(config: Config, tokens: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What the run takes of each source, planned and actual, of sources with so many `tokens`: {source: {share, samples,
    actual_share, tokens, epochs, ends}}; `ends` is the sample from which on it is no longer there, or None.

    ValueError where the sources of the mixture end before the run does.
    """
    train, samples = config.train, config.train.samples(config.train.steps)
    mixture = plan(tokens, config.mixture.shares, config.mixture.epochs, train.sequence)
    if mixture.samples < samples:
        ends = ", ".join(f"{source} of {tokens[source]:,} tokens at sample {end:,}" for source, end in mixture.ends.items())
        raise ValueError(
            f"train.steps={train.steps}: the run takes {samples:,} samples, the mixture has {mixture.samples:,} ({ends});"
            " raise mixture.epochs of a source, or train less"
        )
    return {
        source: {
            "share": mixture.shares[source],
            "samples": count,
            "actual_share": count / samples,
            "tokens": count * train.sequence,
            "epochs": count * train.sequence / tokens[source],
            "ends": end if (end := mixture.ends.get(source)) is not None and end < samples else None,
        }
        for source, count in mixture.counts(samples).items()
    }


def too_few(config: Config, mixture: Mapping[str, Mapping[str, Any]], tokens: Mapping[str, int]) -> list[str]:
    """A line for each source of which there are too few tokens for its share and epochs: where it ends, and what it lacks."""
    lines = []
    whole = config.train.tokens(config.train.steps)
    for source, taken in mixture.items():
        if taken["ends"] is not None:
            epochs = config.mixture.epochs[source]
            needed = whole * taken["share"] / epochs
            lines.append(
                f"source {source} has {tokens[source]:,} tokens, too few for {taken['share']:.1%} of {whole:,} in"
                f" mixture.epochs.{source}={epochs:g}: it ends at sample {taken['ends']:,}, and its share goes to the others;"
                f" it would take {needed:,.0f} tokens, or {taken['share'] * whole / tokens[source]:.2f} epochs"
            )
    return lines


def train_unit(outputs: Outputs, job: Job) -> dict[str, Any]:
    """Work of the unit. Checkpoints lie in `train/` from the start: they have to outlive a killed run."""
    folder = outputs.root / FOLDER
    told = folder / "job.json"
    if folder.exists() and not (told.exists() and Job.read(told).result() == job.result()):
        shutil.rmtree(folder)
    write_json(told, job.json())
    nodes = usable_nodes(job.train, allocated_nodes())
    try:
        launch(told, job.train.processes, folder / "log.txt", nodes)
    except RuntimeError as error:
        if "SIGKILL" in str(error):  # as the system does where memory is short
            needs = out_of_memory(job.model, job.train, job.zero.stage, job.train.processes * nodes, job.zero.offload)
            raise RuntimeError(f"{error}; {needs}") from None
        raise
    for path in sorted(last_checkpoint(outputs.root).iterdir()):
        outputs.adopt(str(path.relative_to(outputs.root)))
    rows = read_metrics(folder)
    return {
        "parameters": job.model.parameter_count(),
        "steps": job.train.steps,
        "tokens": job.train.tokens(job.train.steps),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
    }


def usable_nodes(train: TrainConfig, allocated: int) -> int:
    """Of the `allocated` nodes, how many take part: all, or as many as the batch can be divided among."""
    for nodes in range(allocated, 1, -1):
        with contextlib.suppress(ValueError):
            train.accumulation(nodes * train.processes)
            return nodes
        print(f"warning: train.batch_tokens={train.batch_tokens} can't be divided among {nodes} nodes", file=sys.stderr)
    return 1


def last_checkpoint(out: Path) -> Path:
    """The checkpoint that a finished `train` left."""
    return max((out / FOLDER / "checkpoints").glob("step-*"))
