"""lm: segments and marks in, a SentencePiece and a KenLM model a language out (`lm/{language}.sp.model`, `.arpa.bin`).

They are trained on held-out clean pages of the crawl, which `mine` leaves out of the corpus; or they are those of
`lm.dir`, and then no page is held out.
"""

from pathlib import Path
from typing import Any

from ccnet.filter import Rules
from ccnet.perplexity import find_models
from ccnet.stats import merge
from ccnet.train_lm import sample_segment, train
from pipeline.config import Config
from pipeline.outputs import Outputs
from pipeline.stage import Stage, Unit, digest_json, fingerprint
from pipeline.stages.marked import MarkedSegment, language_model, marked_segments


def run(stage: Stage) -> None:
    """Two rounds: a sample of each segment, then the models of each language with enough text."""
    config = stage.config
    if config.lm.dir is not None:
        found = find_models(Path(config.lm.dir))
        models = {language: [str(path.absolute()) for path in paths] for language, paths in found.items()}
        prints = {language: digest_json([fingerprint(path) for path in paths]) for language, paths in models.items()}
        stage.finish({"models": models, "fingerprints": prints, "held_out": 0.0, "trained": {}})
        return
    identifier, identifier_print = language_model(config)
    shared = {"language_model": identifier, "rules": sample_rules(config)}
    units = [
        Unit(s.name, {"segment": s, **shared}, {"segment": s.fingerprint, "language.model": identifier_print}, s.bytes)
        for s in marked_segments(stage)
    ]
    samples = stage.map("sample", sample_unit, units)
    total = merge([record.statistics for record in samples])
    languages = {k: v for k, v in sorted(total["languages"].items()) if v["bytes"] >= config.lm.min_bytes}
    files = [stage.out / path for record in samples for path in record.outputs]
    inputs = {path: entry["digest"] for record in samples for path, entry in record.outputs.items()}
    settings = {"vocab_size": config.lm.vocab_size, "order": config.lm.order}
    units = [
        Unit(language, {"language": language, "samples": files, **settings}, inputs, counts["bytes"])
        for language, counts in languages.items()
    ]
    records = stage.map("train", train_unit, units)
    stage.finish(
        {
            "models": {record.unit: list(record.outputs) for record in records},
            "fingerprints": {record.unit: digest_json(record.outputs) for record in records},
            "held_out": config.lm.held_out,
            "trained": {record.unit: record.statistics for record in records},
            "clean": total["languages"],
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
    """Work of a unit of the first round: `ccnet.train_lm.sample_segment`."""
    target = outputs.path(f"lm/samples/{segment.name}.parquet")
    return sample_segment(segment.source, target, marks=segment.open_marks(), **shared)


def train_unit(outputs: Outputs, language: str, samples: list[Path], **settings: Any) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.train_lm.train`."""
    sp_model, arpa_bin = (outputs.path(f"lm/{language}.{kind}") for kind in ("sp.model", "arpa.bin"))
    return train(language, samples, sp_model, arpa_bin, **settings)
