"""lm: segments and marks in, a SentencePiece and a KenLM model a language out (`lm/{language}.sp.model`, `.arpa.bin`).

They are trained on held-out clean pages of the crawl, which `mine` leaves out of the corpus. Or they come from elsewhere,
and then no page is held out: trained on the files of `lm.text`, downloaded from `lm.url`, or those of `lm.dir`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kenlm
import sentencepiece

from ccnet.buckets import RELEASED
from ccnet.crawl import download
from ccnet.filter import Rules
from ccnet.perplexity import LanguageModel, find_models
from ccnet.stats import merge
from ccnet.train_lm import sample_file, sample_segment, train
from pipeline.config import Config
from pipeline.outputs import Outputs, digest_file
from pipeline.stage import Record, Stage, StageError, Unit, digest_json, expand_files, fingerprint
from pipeline.stages.marked import MarkedSegment, language_model, marked_segments

KINDS = ("sp.model", "arpa.bin")


def run(stage: Stage) -> None:
    """One of the four ways to models."""
    lm = stage.config.lm
    if lm.dir is not None:
        _take(stage, Path(lm.dir))
        return
    if lm.url is not None:
        _download(stage, lm.url)
        return
    stage.config.bucket.check_models(trained=True)
    if lm.text:
        _train_on_files(stage)
    else:
        _train_on_crawl(stage)


def _take(stage: Stage, folder: Path) -> None:
    found = find_models(folder)
    for paths in found.values():
        LanguageModel(*paths)  # which says where a file is no model
    models = {language: [str(path.absolute()) for path in paths] for language, paths in found.items()}
    prints = {language: digest_json([fingerprint(path) for path in paths]) for language, paths in models.items()}
    stage.finish({"models": models, "fingerprints": prints, "held_out": 0.0, "trained": {}})


def _download(stage: Stage, url: str) -> None:
    languages = [language for language in sorted(set(stage.config.language.mine)) if language in RELEASED]
    if not languages:
        raise ValueError(f"lm.url: none of language.mine={stage.config.language.mine} has a released model")
    names = [f"{language}.{kind}" for language in languages for kind in KINDS]
    units = [Unit(name, {"url": f"{url.rstrip('/')}/{name}", "name": name}, {}) for name in names]
    records = stage.map("download", download_unit, units)
    for record in records:
        for path, entry in record.outputs.items():
            if digest_file(stage.out / path) != entry["digest"]:
                raise StageError(f"lm: {stage.out / path} is not what was downloaded; remove it, and it is downloaded again")
    outputs = [{**first.outputs, **second.outputs} for first, second in zip(records[::2], records[1::2], strict=True)]
    models = dict(zip(languages, outputs, strict=True))
    stage.finish(
        {
            "models": {language: list(files) for language, files in models.items()},
            "fingerprints": {language: digest_json(files) for language, files in models.items()},
            "held_out": 0.0,
            "trained": {},
        }
    )


def _train_on_files(stage: Stage) -> None:
    config = stage.config
    sources = expand_files(config.lm.text)
    units = []
    for number, source in enumerate(sources):
        size, tag = fingerprint(source)
        name = f"{number:05d}-{source.rsplit('/', 1)[-1].split('.')[0]}"
        units.append(Unit(name, {"name": name, "source": source}, {source: tag}, size))
    samples = stage.map("sample", sample_file_unit, units)
    total = merge([record.statistics for record in samples])
    stage.check_bad(total["bad"], total["clean"] + sum(total["bad"].values()))
    languages = {k: v for k, v in total["languages"].items() if not config.language.mine or k in config.language.mine}
    if not languages:
        found = ", ".join(total["languages"]) or "none"
        raise ValueError(f"lm.text: no text of language.mine={config.language.mine} in it; the languages are: {found}")
    for language, counts in languages.items():
        if counts["bytes"] < config.lm.min_bytes:
            raise ValueError(
                f"lm.text: {counts['bytes']} bytes of {language}, fewer than lm.min_bytes={config.lm.min_bytes}:"
                " give more text, or lower that"
            )
    _train(stage, samples, languages, held_out=0.0)


def _train_on_crawl(stage: Stage) -> None:
    config = stage.config
    identifier, identifier_print = language_model(config)
    shared = {"language_model": identifier, "rules": sample_rules(config)}
    units = [
        Unit(s.name, {"segment": s, **shared}, {"segment": s.fingerprint, "language.model": identifier_print}, s.bytes)
        for s in marked_segments(stage)
    ]
    samples = stage.map("sample", sample_unit, units)
    total = merge([record.statistics for record in samples])
    languages = {k: v for k, v in total["languages"].items() if v["bytes"] >= config.lm.min_bytes}
    _train(stage, samples, languages, held_out=config.lm.held_out)


def _train(stage: Stage, samples: Sequence[Record], languages: dict[str, dict[str, int]], held_out: float) -> None:
    """The second round of training, a unit a language, and the manifest."""
    lm = stage.config.lm
    settings = {"vocab_size": lm.vocab_size, "order": lm.order, "format": lm.format}
    units, known = [], [(record, record.statistics["languages"].keys()) for record in samples]
    for language, counts in sorted(languages.items()):
        having = [record for record, found in known if language in found]
        inputs = {path: entry["digest"] for record in having for path, entry in record.outputs.items()}
        arguments = {"language": language, "samples": [stage.out / path for path in inputs], **settings}
        units.append(Unit(language, arguments, inputs, counts["bytes"]))
    records = stage.map("train", train_unit, units)
    total = merge([record.statistics for record in samples])
    stage.finish(
        {
            "models": {record.unit: list(record.outputs) for record in records},
            "fingerprints": {record.unit: digest_json(record.outputs) for record in records},
            "held_out": held_out,
            "trained": {record.unit: record.statistics for record in records},
            "clean": total["languages"],
            "bad": total.get("bad", {}),
        }
    )


def sample_rules(config: Config) -> Rules:
    """The filter's rules as far as they decide which pages may train a language model."""
    return Rules(
        min_length=config.crawl.min_length,
        languages=tuple(config.language.mine),
        held_out=config.lm.held_out,
    )


def sample_unit(outputs: Outputs, segment: MarkedSegment, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the first round, of a crawl: `ccnet.train_lm.sample_segment`."""
    target = outputs.path(f"lm/samples/{segment.name}.parquet")
    return sample_segment(segment.source, target, marks=segment.open_marks(), **shared)


def sample_file_unit(outputs: Outputs, name: str, source: str) -> dict[str, Any]:
    """Work of a unit of the first round, of a file: `ccnet.train_lm.sample_file`."""
    return sample_file(source, outputs.path(f"lm/samples/{name}.parquet"))


def train_unit(outputs: Outputs, language: str, samples: list[Path], **settings: Any) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.train_lm.train`."""
    sp_model, arpa_bin = (outputs.path(f"lm/{language}.{kind}") for kind in KINDS)
    return train(language, samples, sp_model, arpa_bin, **settings)


def download_unit(outputs: Outputs, url: str, name: str) -> dict[str, Any]:
    """Work of a unit of a download: a file that is whole, and is a model. Raises ValueError where it is none."""
    target = outputs.path(f"lm/{name}")
    try:
        with target.open("w+b") as file:
            download(url, file)
            size = file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise ValueError(f"{url}: there is no such file") from None
    try:
        if name.endswith("sp.model"):
            sentencepiece.SentencePieceProcessor(model_file=str(target))
        else:
            settings = kenlm.Config()
            settings.load_method = kenlm.LoadMethod.LAZY  # the header tells, also how long the file should be
            settings.show_progress = False
            kenlm.Model(str(target), settings)
    except (OSError, RuntimeError):
        kind = "SentencePiece" if name.endswith("sp.model") else "KenLM"
        raise ValueError(f"{url}: its {size} bytes are no {kind} model") from None
    return {"bytes": size}
