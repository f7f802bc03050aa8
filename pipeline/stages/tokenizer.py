"""tokenizer: the corpus in, a SentencePiece model out (`tokenizer/tokenizer.model`), trained here or a copy; beside it
what it was trained with (`settings.json`) and how much text its tokens stand for (`fertility.json`)."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.outputs import Outputs, write_json
from pipeline.stage import Stage, StageError, Unit, fingerprint
from pipeline.tokens import tokenizer
from pipeline.tokens.sample import Sample, Stratum, fertility

MODEL = "tokenizer/tokenizer.model"
SETTINGS = "tokenizer/settings.json"
FERTILITY = "tokenizer/fertility.json"


def run(stage: Stage) -> None:
    """One unit: the model."""
    config, parts = stage.config.tokenizer, chosen_parts(stage)
    strata = crawl_strata(stage, parts)
    sample = Sample(strata, {stratum.source: 1.0 for stratum in strata}, config.sample_chars)
    inputs = {part["path"]: part["digest"] for part in parts}
    if config.model is not None:
        size, tag = fingerprint(config.model)
        unit = Unit("model", {"existing": Path(config.model), "sample": sample}, {"tokenizer.model": tag, **inputs}, size)
        [record] = stage.map("copy", copy_unit, [unit])
    else:
        unit = Unit("model", {"vocab_size": config.vocab_size, "sample": sample}, inputs)
        [record] = stage.map("train", train_unit, [unit])
    processor = tokenizer.load(stage.out / MODEL)
    stage.finish(
        {
            "model": MODEL,
            "digest": tokenizer.digest(stage.out / MODEL),
            "pieces": processor.get_piece_size(),
            **record.statistics,
        }
    )


def chosen_parts(stage: Stage) -> list[dict[str, Any]]:
    """The corpus files of `tokenize.buckets`, by language and bucket."""
    buckets = stage.config.tokenize.buckets
    parts = [part for part in stage.upstream("regroup")["result"]["parts"] if part["bucket"] in buckets]
    if not parts:
        raise StageError(f"{stage.spec.name}: the corpus has no document in tokenize.buckets={buckets}")
    return parts


def crawl_strata(stage: Stage, parts: list[dict[str, Any]]) -> list[Stratum]:
    """The corpus files as the source `crawl`, a stratum a language and bucket."""
    counts = stage.upstream("regroup")["result"]["buckets"]
    files: dict[tuple[str, str], list[Path]] = {}
    for part in parts:
        files.setdefault((part["language"], part["bucket"]), []).append(stage.out / part["path"])
    return [
        Stratum("crawl", language, tuple(paths), counts[language][bucket]["chars"])
        for (language, bucket), paths in files.items()
    ]


def copy_unit(outputs: Outputs, existing: Path, sample: Sample) -> dict[str, Any]:
    """Work of the unit where a model is given."""
    tokenizer.load(existing)
    if reason := tokenizer.unlike_llama(tokenizer.specification(existing)):
        raise ValueError(
            f"tokenizer.model={existing}: {reason}, so no Hugging Face tokenizer can be exported; take one like LLaMA's"
        )
    model = outputs.path(MODEL)
    shutil.copyfile(existing, model)
    return {"trained_on": None, "fertility": _describe(outputs, model, sample)}


def train_unit(outputs: Outputs, vocab_size: int, sample: Sample) -> dict[str, Any]:
    """Work of the unit where one is trained."""
    model = outputs.path(MODEL)
    texts = (text for _, texts in sample.documents() for text in texts.to_pylist())
    counts = tokenizer.train(texts, model, vocab_size=vocab_size)
    return {"trained_on": counts, "fertility": _describe(outputs, model, sample)}


def _describe(outputs: Outputs, model: Path, sample: Sample) -> list[dict[str, Any]]:
    """Writes what lies beside a model; returns its fertility."""
    rows = fertility(sample, model)
    write_json(outputs.path(SETTINGS), tokenizer.stored_settings(model))
    write_json(outputs.path(FERTILITY), rows)
    return rows
