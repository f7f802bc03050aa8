"""regroup: mined documents in, the corpus out (`corpus/{language}/{bucket}/part-*.parquet`, or CCNet's files).

First the rules are applied to the scores of every segment; then the perplexities of what passes give each language its
cut-offs; then documents are written by language and bucket. Neither the crawl nor a model is read.
"""

from collections.abc import Sequence
from typing import Any

from ccnet.buckets import NAMES, UNSCORED, cutoffs
from ccnet.corpus import JSON_SUFFIX, CorpusRules, MinedSegment, judge_segment, regroup
from ccnet.stats import chain, merge, total
from pipeline.outputs import Outputs
from pipeline.stage import Record, Stage, StageError, Unit

ORDER = (*NAMES, UNSCORED)


def run(stage: Stage) -> None:
    """Two rounds: one unit a segment, then one unit for each language and group of segments."""
    config = stage.config
    mined = stage.upstream("mine")["result"]
    near = stage.upstream("near") if "near" in stage.spec.reads else None
    pairs = near and near["result"]["pairs"]
    rules = CorpusRules(
        min_length=config.dedup.min_length,
        threshold=config.language.threshold,
        keep=tuple(config.language.keep),
        rounded=config.corpus.rounded,
    )
    segments = [MinedSegment(s["name"], stage.out / s["path"], stage.out / pairs if pairs else None) for s in mined["segments"]]
    inputs = {s["name"]: {s["path"]: s["digest"]} | ({"near": near["digest"]} if near else {}) for s in mined["segments"]}
    shared = {"rules": rules, "keep_dropped": config.keep_dropped}
    units = [Unit(s.name, {"segment": s, **shared}, inputs[s.name], s.path.stat().st_size) for s in segments]
    judged = stage.map("judge", judge_unit, units)
    statistics = total(record.statistics for record in judged)
    stage.check_removed(statistics, chosen=("language_not_kept",))
    funnel = chain(mined["statistics"], statistics)
    if not funnel["documents"]["kept"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in funnel["documents"]["dropped"].items() if n)
        raise StageError(f"regroup: no document is left of {funnel['documents']['in']} ({dropped or 'the crawl is empty'})")

    low, high = config.bucket.percentiles
    cuts = {language: cutoffs(counts, (low, high)) for language, counts in sorted(statistics["perplexity"].items())}
    plans = [
        (language, number, group)
        for language in sorted(statistics["languages"])
        for number, group in enumerate(_groups(language, judged, config.bucket.part_bytes * (3 if language in cuts else 1)))
    ]
    units = []
    for language, number, group in plans:
        cut = cuts.get(language)
        arguments = {
            "language": language,
            "segments": [segments[n] for n in group],
            "rules": rules,
            "cutoffs": cut,
            "layout": config.corpus.layout,
        }
        read = {path: digest for n in group for path, digest in inputs[segments[n].name].items()} | {"cut-offs": str(cut)}
        size = sum(judged[n].statistics["bytes"][language] for n in group)
        units.append(Unit(f"{language}-{number:05d}", {"number": number, **arguments}, read, size))
    records = stage.map("regroup", regroup_unit, units)
    buckets: dict[str, dict[str, Any]] = {}
    parts = []
    for (language, number, _), record in zip(plans, records, strict=True):
        buckets[language] = merge([buckets.get(language, {}), record.statistics])
        for bucket in ORDER:
            path = corpus_file(language, bucket, number, config.corpus.layout)
            if path in record.outputs:
                digest = record.outputs[path]["digest"]
                parts.append({"path": path, "language": language, "bucket": bucket, "digest": digest})
    stage.finish(
        {
            "statistics": statistics,
            "funnel": funnel,
            "cutoffs": {language: list(cut) for language, cut in cuts.items()},
            "buckets": {k: {b: v[b] for b in ORDER if b in v} for k, v in buckets.items()},
            "parts": parts,
        }
    )


def judge_unit(outputs: Outputs, segment: MinedSegment, rules: CorpusRules, keep_dropped: bool) -> dict[str, Any]:
    """Work of a unit of the first round: `ccnet.corpus.judge_segment`."""
    dropped = outputs.path(f"dropped/regroup/{segment.name}.parquet") if keep_dropped else None
    return judge_segment(segment, rules, dropped)


def regroup_unit(outputs: Outputs, language: str, number: int, layout: str, **shared: Any) -> dict[str, Any]:
    """Work of a unit of the second round: `ccnet.corpus.regroup`."""
    targets = {bucket: outputs.path(corpus_file(language, bucket, number, layout)) for bucket in ORDER}
    return dict(regroup(language=language, targets=targets, layout=layout, **shared))


def corpus_file(language: str, bucket: str, number: int, layout: str) -> str:
    """Where a file of the corpus lies below `out`."""
    if layout == "ccnet":
        return f"corpus/{language}_{bucket}_{number:04d}{JSON_SUFFIX}"
    return f"corpus/{language}/{bucket}/part-{number:05d}.parquet"


def _groups(language: str, judged: Sequence[Record], group_bytes: int) -> list[list[int]]:
    """The numbers of consecutive segments whose text in this language is about `group_bytes`."""
    groups: list[list[int]] = []
    size = group_bytes
    for number, record in enumerate(judged):
        if language not in record.statistics["bytes"]:
            continue
        if size >= group_bytes:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += record.statistics["bytes"][language]
    return groups
