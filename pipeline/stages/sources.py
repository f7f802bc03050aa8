"""sources: LLaMA's other sources in, as they are published, their documents out (`sources/{source}/{unit}.parquet`).

First every file, or part of one, is read by a unit. Of sources whose duplicates go, a unit then finds these over all files,
and the files are written again without them.
"""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ccnet.stats import merge, total
from pipeline.config import QualityConfig, SourcesConfig
from pipeline.outputs import Outputs
from pipeline.sources import Given, Part, Source, sources
from pipeline.sources.documents import UNTOLD, write_documents
from pipeline.sources.duplicates import exact_duplicates, near_duplicates, sign, without_rows, write_keys
from pipeline.stage import Record, Stage, StageError, Unit, expand_files, fingerprint
from pipeline.stages.chosen_rules import quality_prints, quality_rules

CHOSEN = ("licence", "no_licence", "licence_file")  # reasons that `sources.licences` gives: the user's choice


class Piece(NamedTuple):
    """A file, folder or URL, or a part of a file; `bytes` may be 0 where they are not known."""

    path: str
    part: Part | None
    bytes: int
    print: str


def run(stage: Stage) -> None:
    """Rounds: `read`, a unit for about `sources.split_bytes`; `duplicates`, a unit a source; `select`, a unit a file."""
    config = stage.config
    known = sources()
    if unknown := [name for name in config.sources.files if name not in known]:
        raise ValueError(f"sources.files.{unknown[0]}: no such source; there are {', '.join(known)}")
    rules_read = quality_prints(config.quality)
    units, of = [], {}
    for name, patterns in config.sources.files.items():
        for number, group in enumerate(_groups(_pieces(known[name], patterns, config.sources), config.sources.split_bytes)):
            unit = f"{name}.{number:05d}"
            arguments = {"source": name, "number": number, "pieces": group, "settings": config.sources}
            arguments |= {"quality": config.quality, "privacy": config.privacy.replace, "keep_dropped": config.keep_dropped}
            inputs = {f"{piece.path} {piece.part or ''}".strip(): piece.print for piece in group} | rules_read
            units.append(Unit(unit, arguments, inputs, sum(piece.bytes for piece in group)))
            of[unit] = name
    read = stage.map("read", read_unit, units)
    statistics = {name: total(r.statistics["counts"] for r in read if of[r.unit] == name) for name in config.sources.files}
    for counts in statistics.values():
        stage.check_bad(counts["bad"], counts["documents"]["in"] + sum(counts["bad"].values()))
        stage.check_removed(counts, chosen=CHOSEN)
    several = [name for name in config.sources.files if known[name].duplicates]
    found = {name: [r for r in read if of[r.unit] == name] for name in several}
    selected = _without_duplicates(stage, known, found)
    written = [selected.get(record.unit, record) for record in read]
    for record in selected.values():
        _count_duplicates(statistics[of[record.unit]], record.statistics)
    for name, counts in statistics.items():
        if not counts["documents"]["kept"]:
            reasons = ", ".join(f"{reason} {n}" for reason, n in counts["documents"]["dropped"].items() if n)
            raise StageError(f"sources: no document is left of sources.files.{name} ({reasons or 'its files have none'})")
    parts = []
    for first, record in zip(read, written, strict=True):
        path = document_file(of[record.unit], record.unit)
        languages = list(first.statistics["counts"]["languages"])
        language = languages[0] if len(languages) == 1 else UNTOLD
        digest = record.outputs[path]["digest"]
        parts.append({"path": path, "source": of[record.unit], "language": language, "digest": digest})
    stage.finish({"statistics": statistics, "parts": parts})


def read_unit(
    outputs: Outputs,
    source: str,
    number: int,
    pieces: Sequence[Piece],
    settings: SourcesConfig,
    quality: QualityConfig,
    privacy: Sequence[str],
    keep_dropped: bool,
) -> dict[str, Any]:
    """Work of a unit of the first round. Of sources whose duplicates go, what these are found by is written as well."""
    known = sources()[source]
    unit, counts = f"{source}.{number:05d}", Counter[str]()
    target = outputs.path(read_file(source, unit) if known.duplicates else document_file(source, unit))
    documents = (
        (os.path.basename(piece.path.rstrip("/")), document)
        for piece in pieces
        for document in known.read(Given(piece.path, piece.part, settings, outputs.temporary), counts)
    )
    chosen = quality_rules(quality, settings.quality.get(source, []))
    dropped = outputs.path(f"dropped/{unit}.sources.parquet") if keep_dropped else None
    result: dict[str, Any] = {"counts": write_documents(documents, source, target, chosen, privacy, counts, dropped)}
    if known.duplicates == "exact":
        write_keys(target, outputs.path(work_file(source, unit, "keys")))
    elif known.duplicates == "near":
        files = (outputs.path(work_file(source, unit, kind)) for kind in ("signatures", "bands"))
        result["signed"] = sign(target, *files, overlap=settings.overlap)
    return result


def duplicates_unit(outputs: Outputs, source: str, **arguments: Any) -> dict[str, Any]:
    """Work of a unit of the second round: the rows that go (`pipeline.sources.duplicates.DUPLICATES`)."""
    find = exact_duplicates if sources()[source].duplicates == "exact" else partial(near_duplicates, outputs.temporary)
    return dict(find(target=outputs.path(duplicates_file(source)), **arguments))


def select_unit(outputs: Outputs, source: str, unit: str, read: Path, duplicates: Path) -> dict[str, Any]:
    """Work of a unit of the third round: a file without its duplicates."""
    return without_rows(read, duplicates, unit, outputs.path(document_file(source, unit)))


def _without_duplicates(stage: Stage, known: dict[str, Source], found: dict[str, list[Record]]) -> dict[str, Record]:
    """{unit: record of the third round} for all units of the sources whose duplicates go; `found`: their first records."""
    units = []
    for source, records in found.items():
        names = [record.unit for record in records]
        arguments: dict[str, Any] = {"source": source, "names": names}
        if known[source].duplicates == "exact":
            arguments["files"] = [stage.out / work_file(source, name, "keys") for name in names]
        else:
            arguments["signature_files"] = [stage.out / work_file(source, name, "signatures") for name in names]
            arguments["band_files"] = [stage.out / work_file(source, name, "bands") for name in names]
            arguments["files"] = [stage.out / read_file(source, name) for name in names]
            arguments["signed"] = [record.statistics["signed"] for record in records]
            arguments["overlap"] = stage.config.sources.overlap
        inputs = {path: entry["digest"] for record in records for path, entry in record.outputs.items()}
        units.append(Unit(source, arguments, inputs))
    listed = stage.map("duplicates", duplicates_unit, units)
    units = []
    for duplicates in listed:
        source = duplicates.unit
        list_file = duplicates_file(source)
        list_digest = duplicates.outputs[list_file]["digest"]
        for record in found[source]:
            file = read_file(source, record.unit)
            entry = record.outputs[file]
            paths = {"read": stage.out / file, "duplicates": stage.out / list_file}
            inputs = {file: entry["digest"], list_file: list_digest}
            units.append(Unit(record.unit, {"source": source, "unit": record.unit, **paths}, inputs, entry["bytes"]))
    return {record.unit: record for record in stage.map("select", select_unit, units)}


def _count_duplicates(statistics: dict[str, Any], dropped: dict[str, Any]) -> None:
    """Moves what the third round dropped from `kept` to the reason `duplicate`."""
    for measure in ("documents", "chars", "lines"):
        counts = statistics[measure]
        counts["kept"] -= dropped[measure]
        counts["dropped"] = merge([counts["dropped"], {"duplicate": dropped[measure]}])


def _pieces(source: Source, patterns: Sequence[str], settings: SourcesConfig) -> list[Piece]:
    """All files of a source in their order, large ones in parts."""
    files = expand_files(patterns) if source.files is None else [file for name in patterns for file in source.files(name)]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise ValueError(f"{twice}: named twice")
    pieces = []
    for file in files:
        size, tag = (source.prints or fingerprint)(file)
        path = os.path.abspath(file) if os.path.exists(file) else file
        parts: Sequence[Part] = []
        if source.parts is not None and os.path.isfile(path) and size > settings.split_bytes:
            parts = source.parts(path, settings.split_bytes)
        if len(parts) > 1:
            pieces += [Piece(path, part, part[1] - part[0], tag) for part in parts]
        else:
            pieces.append(Piece(path, None, size, tag))
    return pieces


def _groups(pieces: Sequence[Piece], group_bytes: int) -> list[list[Piece]]:
    """Consecutive pieces that have about `group_bytes` together; one whose size is not known is alone."""
    groups: list[list[Piece]] = []
    size = group_bytes
    for piece in pieces:
        added = piece.bytes or group_bytes
        if size + added > group_bytes:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += added
    return groups


def document_file(source: str, unit: str) -> str:
    """Where a unit's documents lie below `out`."""
    return f"sources/{source}/{unit}.parquet"


def read_file(source: str, unit: str) -> str:
    """Where they lie before duplicates are taken out."""
    return work_file(source, unit, "parquet")


def work_file(source: str, unit: str, kind: str) -> str:
    """Where what duplicates are found by lies."""
    return f"sources/with_duplicates/{source}/{unit}.{kind}"


def duplicates_file(source: str) -> str:
    """Where the list of a source's duplicates lies."""
    return f"sources/with_duplicates/{source}.parquet"
