"""regroup: mined documents in, the corpus out (`corpus/{language}/{bucket}/part-*.parquet`, or CCNet's files).

First the rules are applied to the scores of every segment; then the perplexities of what passes give each language its
cut-offs; then documents are written by language and bucket. Neither the crawl nor a model is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ccnet.buckets import BUCKETS, NAMES, Cutoffs, computed_cutoffs, released_cutoffs
from ccnet.corpus import JSON_SUFFIX, CorpusRules, MinedSegment, judge_segment, regroup
from ccnet.stats import chain, merge, total
from pipeline.config import Config
from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit


def run(stage: Stage) -> None:
    """Two rounds: one unit a segment, then one unit for each language and group of segments."""
    config = stage.config
    mined = stage.upstream("mine")["result"]
    if config.bucket.cutoffs == "released":
        config.bucket.check_models(trained=bool(mined["trained"]))
    rules = CorpusRules(
        min_length=config.dedup.min_length,
        threshold=config.language.threshold,
        keep=tuple(config.language.keep),
        rounded=config.corpus.rounded,
    )
    segments, inputs = _mined_segments(stage, mined)
    shared = {"rules": rules, "keep_dropped": config.keep_dropped}
    units = [
        Unit(segment.name, {"segment": segment, **shared}, files, segment.path.stat().st_size)
        for segment, files in zip(segments, inputs, strict=True)
    ]
    judged = stage.map("judge", judge_unit, units)
    statistics = total(record.statistics for record in judged)
    stage.check_removed(statistics, chosen=("language_not_kept",))
    funnel = chain(mined["statistics"], statistics)
    if not funnel["documents"]["kept"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in funnel["documents"]["dropped"].items() if n)
        raise StageError(f"regroup: no document is left of {funnel['documents']['in']} ({dropped or 'the crawl is empty'})")

    cuts = _cutoffs(config, statistics["perplexity"], mined["models"])
    units, texts = [], [record.statistics["bytes"] for record in judged]
    for language in sorted(statistics["languages"]):
        cut = (cuts[language].low, cuts[language].high) if language in cuts else None
        sizes = [bytes_of.get(language, 0) for bytes_of in texts]
        files_of_a_group = len(NAMES) if cut else 1
        for number, group in enumerate(_groups(sizes, config.bucket.part_bytes * files_of_a_group)):
            arguments = {
                "language": language,
                "number": number,
                "segments": [segments[n] for n in group],
                "rules": rules,
                "cutoffs": cut,
                "layout": config.corpus.layout,
            }
            read = {path: digest for n in group for path, digest in inputs[n].items()} | {"cut-offs": str(cut)}
            units.append(Unit(f"{language}-{number:05d}", arguments, read, sum(sizes[n] for n in group)))
    records = stage.map("regroup", regroup_unit, units)
    buckets: dict[str, dict[str, Any]] = {}
    parts = []
    for unit, record in zip(units, records, strict=True):
        language, number = unit.arguments["language"], unit.arguments["number"]
        buckets[language] = merge([buckets.get(language, {}), record.statistics])
        for bucket in BUCKETS:
            path = corpus_file(language, bucket, number, config.corpus.layout)
            if path in record.outputs:
                digest = record.outputs[path]["digest"]
                parts.append({"path": path, "language": language, "bucket": bucket, "digest": digest})
    stage.finish(
        {
            "statistics": statistics,
            "funnel": funnel,
            "cutoffs": {language: asdict(cut) for language, cut in cuts.items()},
            "buckets": {k: {b: v[b] for b in BUCKETS if b in v} for k, v in buckets.items()},
            "parts": parts,
        }
    )


def judge_unit(outputs: Outputs, segment: MinedSegment, rules: CorpusRules, keep_dropped: bool) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.corpus.judge_segment`."""
    dropped = outputs.path(f"dropped/{segment.name}.regroup.parquet") if keep_dropped else None
    return judge_segment(segment, rules, dropped)


def regroup_unit(outputs: Outputs, language: str, number: int, layout: str, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.corpus.regroup`."""
    targets = {bucket: outputs.path(corpus_file(language, bucket, number, layout)) for bucket in BUCKETS}
    return dict(regroup(language=language, targets=targets, layout=layout, **shared))


def corpus_file(language: str, bucket: str, number: int, layout: str) -> str:
    """Where a file of the corpus lies below `out`."""
    if layout == "ccnet":
        return f"corpus/{language}_{bucket}_{number:04d}{JSON_SUFFIX}"
    return f"corpus/{language}/{bucket}/part-{number:05d}.parquet"


def _cutoffs(config: Config, perplexities: Mapping[str, Mapping[str, int]], models: Mapping[str, str]) -> dict[str, Cutoffs]:
    """The cut-offs of each language that has any."""
    if config.bucket.cutoffs == "released":
        return {language: cut for language in sorted(perplexities) if (cut := released_cutoffs(language))}
    low, high = config.bucket.percentiles
    return {language: computed_cutoffs(h, (low, high), models.get(language)) for language, h in sorted(perplexities.items())}


def _mined_segments(stage: Stage, mined: Mapping[str, Any]) -> tuple[list[MinedSegment], list[dict[str, str]]]:
    """The segments in crawl order, and what each reads: {file: digest}."""
    near = stage.upstream("near") if stage.config.near.threshold is not None else None
    pairs = near and near["result"]["pairs"]
    shared = {"near": near["digest"]} if near else {}
    segments = [MinedSegment(s["name"], stage.out / s["path"], stage.out / pairs if pairs else None) for s in mined["segments"]]
    return segments, [{s["path"]: s["digest"]} | shared for s in mined["segments"]]


def _groups(sizes: Sequence[int], group_bytes: int) -> list[list[int]]:
    """The numbers of consecutive segments that have about `group_bytes` together; those without any are left out."""
    groups: list[list[int]] = []
    size = group_bytes
    for number, added in enumerate(sizes):
        if not added:
            continue
        if size >= group_bytes:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += added
    return groups
