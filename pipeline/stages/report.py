"""report: what the finished and running stages left in, one HTML page out (`report.html`), which works without a network.

The figures come from manifests, records and metrics alone (`pipeline.figures`). Only the samples read pages again, of a few
segments; and only `report.against` the small columns of two corpora.
"""

import dataclasses
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ccnet.buckets import BUCKETS
from pipeline.charts import chart
from pipeline.compare import compare
from pipeline.figures import REASONS, Chart, Column, Figure, Run, Section, figures, shown
from pipeline.outputs import Outputs, read_json
from pipeline.page_road import FinishedRun, Line, Page, with_first_pages
from pipeline.samples import BEYOND, chosen_segments, excerpt, merge_samples, page_from_json, pages_to_json, sample_segment
from pipeline.stage import Stage, Unit, digest_json, unit_file
from pipeline.stages.train import FOLDER

PAGE = "report.html"
SAMPLE_BYTES = 2_000_000  # of pages in the report, about; of more languages than fit only the largest are shown
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")


def run(stage: Stage) -> None:
    """Samples of some segments, the pages where their duplicated lines were first seen, a comparison, and the page.

    It shows the stages that have begun, whichever these are.
    """
    settings = stage.config.report
    states = Run(stage.out).read()
    if not figures(stage.out, states):
        raise ValueError(f"report: {stage.out} has no finished stage: run one first")
    inputs = {name: digest_json([state.result, state.units, state.seconds]) for name, state in states.items()}
    metrics = [path.stat() for path in sorted((stage.out / FOLDER).glob("*.jsonl"))]
    inputs |= {"metrics": str([(stat.st_size, stat.st_mtime_ns) for stat in metrics])}
    shared = {"seed": str(settings.seed), "samples": str(settings.samples)}

    units = []
    finished = {name for name in ("fetch", "mine") if name in states and states[name].finished}
    if settings.samples and len(finished) == 2:
        for number in chosen_segments(road := FinishedRun(stage.out), settings.seed):
            arguments = {"out": stage.out, "number": number, "samples": settings.samples, "seed": settings.seed}
            units.append(Unit(road.segments[number]["name"], arguments, inputs | shared))
    sampled = stage.map("samples", sample_unit, units)
    groups = merge_samples(
        ((rank, page_from_json(page)) for record in sampled for rank, page in record.statistics["pages"]), settings.samples
    )
    chosen = fitting(groups, states["regroup"].result.get("buckets", {}) if "regroup" in states else {})
    pages = [pages_to_json(members) for members in chosen.values()]
    firsts = [Unit("pages", {"out": stage.out, "groups": pages}, inputs | shared)] if pages else []
    stage.map("first", first_unit, firsts)

    compared = []
    if settings.against is not None:
        other = Path(settings.against)
        digests = {f"against {name}": stage.earlier(settings.against, name)["digest"] for name in ("mine", "regroup")}
        compared = [Unit("compared", {"out": stage.out, "against": other}, inputs | digests | {"against": str(other)})]
    stage.map("compare", compare_unit, compared)
    faults = sorted({record.statistics["fault"] for record in sampled} - {""})
    arguments = {"out": stage.out, "sampled": [unit.name for unit in units], "faults": faults, "against": bool(compared)}
    inputs |= shared | {"against": str(settings.against), "compared": digest_json([dict(unit.inputs) for unit in compared])}
    stage.map("report", write_page, [Unit("page", arguments, inputs)])
    stage.finish({"page": PAGE})


def sample_unit(outputs: Outputs, out: Path, number: int, samples: int, seed: int) -> dict[str, Any]:
    """Work of a unit of the samples: pages of one segment. One that can't be read any more says so instead."""
    try:
        found = sample_segment(FinishedRun(out), number, samples, seed)
    except (OSError, ValueError) as error:
        return {"pages": [], "fault": " ".join(str(error).split())}
    return {"pages": [(rank, dataclasses.asdict(excerpt(page))) for rank, page in found], "fault": ""}


def first_unit(outputs: Outputs, out: Path, groups: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Work of the unit that looks where the samples' duplicated lines were first seen."""
    pages = [page_from_json(page) for group in groups for page in group]
    with suppress(OSError, ValueError):  # a segment or its keys are gone: the lines stay marked as duplicates
        pages = with_first_pages(FinishedRun(out), pages)
    return {"pages": pages_to_json(pages)}


def compare_unit(outputs: Outputs, out: Path, against: Path) -> dict[str, Any]:
    """Work of the unit that compares: `pipeline.compare.compare`."""
    return dataclasses.asdict(compare(out, against))


def write_page(outputs: Outputs, out: Path, sampled: list[str], faults: list[str], against: bool) -> dict[str, Any]:
    """Work of the last unit: renders the page."""
    records = out / "records" / "report"
    pages, compared = [], []
    if (first := unit_file(records / "first", "pages", ".json")).exists():
        pages = [page_from_json(page) for page in read_json(first)["statistics"]["pages"]]
    if against:
        compared = [_section(read_json(unit_file(records / "compare", "compared", ".json"))["statistics"])]
    sections = figures(out, Run(out).read())
    text = render(out.resolve().name, [*sections, *compared], pages, sampled, faults)
    outputs.path(PAGE).write_text(text, encoding="utf-8")
    return {"bytes": len(text.encode())}


def render(
    name: str,
    sections: Sequence[Section],
    pages: Sequence[Page] = (),
    sampled: Sequence[str] = (),
    faults: Sequence[str] = (),
    refresh: int | None = None,
) -> str:
    """The HTML page of a run: its figures and samples. `refresh`: seconds after which a browser loads it again."""
    environment = Environment(
        loader=PackageLoader("pipeline", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "visible": visible, "shade": _shade, "language": _language_tag}
    environment.globals |= {"chart": chart, "reasons": REASONS, "beyond": BEYOND}
    groups: dict[tuple[str, str, str], list[Page]] = {}
    for page in pages:
        key = ("corpus", page.language or "", page.bucket or "") if page.outcome == "corpus" else (page.outcome, "", "")
        groups.setdefault(key, []).append(page)
    cutoffs = {
        figure.name.removeprefix("perplexity-"): [value for _, value in figure.chart.marks]
        for section in sections
        for figure in section.figures
        if figure.name.startswith("perplexity-") and figure.chart
    }
    return environment.get_template("report.jinja").render(
        name=name,
        sections=sections,
        groups=groups,
        sampled=sampled,
        faults=faults,
        cutoffs=cutoffs,
        refresh=refresh,
    )


def visible(text: str) -> Markup:
    """Text with what a browser does not show, or obeys, made visible: control characters and marks of direction."""
    parts = []
    end = 0
    for match in HIDDEN.finditer(text):
        parts += [escape(text[end : match.start()]), f'<span class="hidden">U+{ord(match[0]):04X}</span>']
        end = match.end()
    return Markup("".join([*parts, escape(text[end:])]))


def _shade(line: Line, cutoffs: Sequence[float]) -> str:
    """The class of a line's background: by the cut-offs of its language, as a document's bucket is."""
    if line.perplexity is None or not cutoffs:
        return ""
    return f"p{sum(line.perplexity >= edge for edge in (*cutoffs, 3 * cutoffs[-1]))}"


def _language_tag(language: str | None) -> str:
    """A language of fastText as HTML has it; und where it is unknown."""
    return language if language and re.fullmatch("[a-z]{2,3}", language) else "und"


def fitting(
    groups: dict[tuple[str, str, str], list[Page]], buckets: dict[str, dict[str, Any]]
) -> dict[tuple[str, str, str], list[Page]]:
    """The groups in the order in which they are shown, largest languages first, as many as fit into SAMPLE_BYTES.

    `buckets`: {language: {bucket: {"chars": n}}} of the corpus.
    """

    def place(key: tuple[str, str, str]) -> tuple[Any, ...]:
        outcome, language, bucket = key
        size = sum(entry["chars"] for entry in buckets.get(language, {}).values())
        kept = outcome in ("corpus", "mined")
        return kept, -size, language, BUCKETS.index(bucket) if bucket else 0, outcome

    fitting, left = {}, SAMPLE_BYTES
    for key in sorted(groups, key=place):  # the reasons first: they are few
        left -= sum(len(line.text.encode()) + (400 if line.why else 100) for page in groups[key] for line in page.lines)
        if left < 0:
            break
        fitting[key] = groups[key]
    return dict(sorted(fitting.items(), key=lambda item: (not place(item[0])[0], *place(item[0])[1:])))


def _section(stored: dict[str, Any]) -> Section:
    """A section from what `dataclasses.asdict` made of it, by way of JSON."""
    made = []
    for figure in stored["figures"]:
        spec = figure["chart"]
        drawn = Chart(**spec | {"values": tuple(spec["values"]), "marks": tuple(map(tuple, spec["marks"]))}) if spec else None
        made.append(Figure(**figure | {"columns": tuple(Column(**c) for c in figure["columns"]), "chart": drawn}))
    return Section(stored["name"], stored["title"], made)
