"""evaluate: the first and the last weights on each source's validation split, and a text that the trained model writes."""

from pathlib import Path
from typing import Any

from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit
from pipeline.stages.train import FOLDER, last_checkpoint
from pipeline.training.job import Job

NEW_TOKENS = 40


def run(stage: Stage) -> None:
    """Two units: before and after training."""
    trained = stage.upstream("train")
    tokenizer = stage.upstream("tokenizer")["result"]
    shared = {
        "job": stage.out / FOLDER / "job.json",
        "tokenizer": stage.out / tokenizer["model"],
        "prompt": stage.config.evaluate.prompt,
    }
    inputs = {"train": trained["digest"], "tokens": stage.upstream("tokenize")["digest"]}
    weights = {"before": None, "after": last_checkpoint(stage.out)}
    units = [Unit(name, {"weights": path, **shared}, inputs) for name, path in weights.items()]
    records = stage.map("evaluate", evaluate_unit, units)
    before, after = (record.statistics for record in records)
    stage.finish({"before": before["validation"], "after": after["validation"], "text": after["text"]})


def evaluate_unit(outputs: Outputs, weights: Path | None, job: Path, tokenizer: Path, prompt: str) -> dict[str, Any]:
    """Work of a unit; `weights` is a checkpoint, or None for the first weights."""
    import torch

    from model.generate import generate
    from pipeline.tokens.tokenizer import load
    from pipeline.training.checkpoint import load_model
    from pipeline.training.evaluate import ValidationSplits

    torch.set_num_threads(1)  # the last digits of sums depend on it, and units run side by side
    told = Job.read(job)
    model = load_model(told, weights)
    splits = (told.validation_shards, outputs.root, told.train.sequence, told.train.micro_batch, told.tokenizer)
    validation = ValidationSplits(*splits)
    processor = load(tokenizer)
    eos = processor.eos_id() if told.train.document_mask else None
    result = validation.result(validation.sums(model, "cpu", eos))
    ids = processor.encode(prompt)
    [new] = generate(model, [ids], max_new=NEW_TOKENS, eos=processor.eos_id())
    text = processor.decode(ids + new)
    return {"validation": result, "text": text}
