"""report: the manifests of the finished stages in, one HTML page out (`report.html`), which works without a network.

Built from merged statistics alone, never by reading the corpus again.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ccnet.buckets import bin_edges
from pipeline.charts import histogram, line_chart
from pipeline.outputs import Outputs
from pipeline.progress import human_bytes, human_seconds
from pipeline.stage import Stage, Unit
from pipeline.stages.train import FOLDER
from pipeline.summary import read_results
from pipeline.training.metrics import read_metrics

PAGE = "report.html"
TOP = 30  # rows of long tables


def run(stage: Stage) -> None:
    """One unit: the page. It shows the stages that are finished, whichever these are."""
    manifests = {name: m for name, m in read_results(stage.out).items() if name != "report"}
    if not manifests:
        raise ValueError(f"report: {stage.out} has no finished stage: run one first")
    inputs = {name: manifest["digest"] for name, manifest in manifests.items()}
    stage.map("report", write_page, [Unit("page", {"out": stage.out}, inputs)])
    stage.finish({"page": PAGE})


def write_page(outputs: Outputs, out: Path) -> dict[str, Any]:
    """Work of the unit: renders the page."""
    manifests = {name: m for name, m in read_results(out).items() if name != "report"}
    results = {name: manifest["result"] for name, manifest in manifests.items()}
    environment = Environment(
        loader=PackageLoader("pipeline", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": human_bytes, "seconds": human_seconds}
    page = environment.get_template("report.jinja").render(
        results=results,
        manifests=manifests,
        perplexity=_perplexity_charts(results) if "regroup" in results else {},
        curves=_training_charts(read_metrics(out / FOLDER)) if "train" in results else [],
        domains=_domains(results) if "regroup" in results else [],
    )
    outputs.path(PAGE).write_text(page, encoding="utf-8")
    return {"bytes": len(page.encode())}


def _domains(results: dict[str, Any]) -> list[tuple[str, int]]:
    return list(results["regroup"]["statistics"]["domains"]["kept"]["largest"].items())[:TOP]


def _perplexity_charts(results: dict[str, Any]) -> dict[str, Markup]:
    charts = {}
    corpus = results["regroup"]
    for language, counts in sorted(corpus["statistics"]["perplexity"].items()):
        numbers = sorted(int(name) for name in counts)
        step = 10  # histogram bins a bar
        bars: dict[int, int] = {}
        for number in numbers:
            bars[number // step] = bars.get(number // step, 0) + counts[str(number)]
        edges = [(bin_edges(bar * step)[0], bin_edges(bar * step + step - 1)[1], n) for bar, n in sorted(bars.items())]
        marks = list(zip(("head | middle", "middle | tail"), corpus["cutoffs"].get(language, []), strict=False))
        charts[language] = histogram(f"Documents by perplexity, {language}", "perplexity", edges, marks)
    return charts


def _training_charts(metrics: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    steps = [(row["step"], row) for row in metrics]
    loss = [("training loss", [(step, row["loss"]) for step, row in steps])]
    checks = [(step, row["validation_loss"]) for step, row in steps if row.get("validation_loss") is not None]
    if checks:
        loss.append(("validation loss", checks))
    return [
        ("Loss by step (line: training; broken line: validation)", line_chart("Loss by step", "step", loss)),
        (
            "Learning rate by step",
            line_chart("Learning rate by step", "step", [("learning rate", [(s, r["lr"]) for s, r in steps])]),
        ),
        (
            "Tokens a second",
            line_chart("Tokens a second by step", "step", [("tokens/s", [(s, r["tokens_per_second"]) for s, r in steps])]),
        ),
    ]
