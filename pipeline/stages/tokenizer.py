"""tokenizer: the corpus and other sources in, a SentencePiece model out (`tokenizer/tokenizer.model`), trained here or a
copy; beside it what it was trained with (`settings.json`) and how much text its tokens stand for (`fertility.json`)."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.outputs import Outputs, write_json
from pipeline.stage import Stage, Unit, fingerprint
from pipeline.stages.texts import TextFile, text_files
from pipeline.tokens import tokenizer
from pipeline.tokens.sample import Sample, Stratum, fertility

MODEL = "tokenizer/tokenizer.model"
SETTINGS = "tokenizer/settings.json"
FERTILITY = "tokenizer/fertility.json"


def run(stage: Stage) -> None:
    """One unit: the model."""
    config, files = stage.config.tokenizer, list(text_files(stage))
    sample = _sample(stage, files)
    inputs = {f"{file.source}/{file.name}": file.fingerprint for file in files}
    if config.model is not None:
        size, tag = fingerprint(config.model)
        unit = Unit("model", {"existing": Path(config.model), "sample": sample}, {"tokenizer.model": tag, **inputs}, size)
        [record] = stage.map("copy", copy_unit, [unit])
    else:
        unit = Unit("model", {"vocab_size": config.vocab_size, "sample": sample}, inputs)
        [record] = stage.map("train", train_unit, [unit])
    processor = tokenizer.load(stage.out / MODEL)
    if unlike := tokenizer.unlike_llama(tokenizer.specification(stage.out / MODEL)):
        print(
            f"warning: tokenizer.model={config.model} is unlike LLaMA's: {unlike}; SentencePiece itself encodes its texts,"
            " which takes several times as long, and the export has no tokenizer.json",
            file=sys.stderr,
        )
    stage.finish(
        {
            "model": MODEL,
            "digest": tokenizer.digest(stage.out / MODEL),
            "pieces": processor.get_piece_size(),
            "unlike_llama": unlike,
            **record.statistics,
        }
    )


def _sample(stage: Stage, files: Sequence[TextFile]) -> Sample:
    """The text to train on, each source by its share of the mixture, a stratum a language and bucket of the corpus."""
    config = stage.config
    counts = stage.upstream("regroup")["result"]["buckets"]
    shares = {source: share for source, share in config.mixture.shares.items() if share > 0}
    if missing := sorted(shares.keys() - {file.source for file in files}):
        raise ValueError(
            f"mixture.shares.{missing[0]}: no such source: sources.files or tokenize.sources names its files, 0 leaves it out"
        )
    strata: dict[tuple[str, str, str | None], list[str]] = {}
    for file in files:
        if file.source in shares:
            strata.setdefault((file.source, file.language, file.bucket), []).append(file.path)
    return Sample(
        [
            Stratum(source, language, tuple(paths), counts[language][bucket]["chars"] if bucket else None)
            for (source, language, bucket), paths in strata.items()
        ],
        shares,
        config.tokenizer.sample_chars,
    )


def copy_unit(outputs: Outputs, existing: Path, sample: Sample) -> dict[str, Any]:
    """Work of the unit where a model is given."""
    tokenizer.load(existing)
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
