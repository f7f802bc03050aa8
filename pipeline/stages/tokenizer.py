"""tokenizer: the corpus in, a SentencePiece model out (`tokenizer/tokenizer.model`), trained here or a copy."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ccnet.corpus import read_corpus
from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit, fingerprint
from pipeline.tokens import tokenizer

MODEL = "tokenizer/tokenizer.model"


def run(stage: Stage) -> None:
    """One unit: the model."""
    config = stage.config
    if config.tokenizer.model is not None:
        existing = Path(config.tokenizer.model)
        size, tag = fingerprint(str(existing))
        unit = Unit("model", {"existing": existing}, {"tokenizer.model": tag}, size)
        [record] = stage.map("copy", copy_unit, [unit])
    else:
        parts = chosen_parts(stage)
        counts = stage.upstream("regroup")["result"]["buckets"]
        pairs = {(part["language"], part["bucket"]) for part in parts}
        chars = sum(counts[language][bucket]["chars"] for language, bucket in pairs)
        arguments = {
            "parts": [stage.out / part["path"] for part in parts],
            "vocab_size": config.tokenizer.vocab_size,
            "every": max(1.0, chars / config.tokenizer.sample_chars),
        }
        unit = Unit("model", arguments, {part["path"]: part["digest"] for part in parts})
        [record] = stage.map("train", train_unit, [unit])
    processor = tokenizer.load(stage.out / MODEL)
    stage.finish(
        {
            "model": MODEL,
            "digest": tokenizer.digest(stage.out / MODEL),
            "pieces": processor.get_piece_size(),
            "trained_on": record.statistics,
        }
    )


def chosen_parts(stage: Stage) -> list[dict[str, Any]]:
    """The corpus files of `tokenize.buckets`, by language and bucket."""
    buckets = stage.config.tokenize.buckets
    parts = [part for part in stage.upstream("regroup")["result"]["parts"] if part["bucket"] in buckets]
    if not parts:
        raise StageError(f"{stage.spec.name}: the corpus has no document in tokenize.buckets={buckets}")
    return parts


def copy_unit(outputs: Outputs, existing: Path) -> dict[str, Any]:
    """Work of the unit where a model is given."""
    tokenizer.load(existing)
    if reason := tokenizer.unlike_llama(tokenizer.specification(existing)):
        raise ValueError(
            f"tokenizer.model={existing}: {reason}, so no Hugging Face tokenizer can be exported; take one like LLaMA's"
        )
    shutil.copyfile(existing, outputs.path(MODEL))
    return {}


def train_unit(outputs: Outputs, parts: list[Path], vocab_size: int, every: float) -> dict[str, Any]:
    """Work of the unit where one is trained."""
    return dict(tokenizer.train(_sample(parts, every), outputs.path(MODEL), vocab_size=vocab_size))


def _sample(parts: Sequence[Path], every: float) -> Iterator[str]:
    """Documents with one of `every` characters, spread evenly over the corpus."""
    seen = taken = 0
    for batch in read_corpus(parts, ["raw_content"]):
        for text in batch.column(0).to_pylist():
            if taken * every <= seen:
                taken += len(text)
                yield text
            seen += len(text)
