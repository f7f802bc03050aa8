"""The end of a run on one screen.

In: the manifests below `out`, and the metrics of the training. Out: lines on standard output.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import Config
from pipeline.outputs import read_json
from pipeline.progress import human_bytes, human_seconds
from pipeline.stages import SPECS
from pipeline.stages.train import FOLDER
from pipeline.training.metrics import read_metrics


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the finished stages, by name, in the order of the data."""
    paths = {name: out / "records" / f"{name}.json" for name in SPECS}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def print_summary(config: Config) -> None:
    """What came in, what was kept and why not, what was trained and how well, where it is."""
    out = Path(config.out)
    manifests = read_results(out)
    result = {name: manifest["result"] for name, manifest in manifests.items()}
    table = Table(title=f"llama-pretrain: {out}", show_header=False, title_justify="left", pad_edge=False)
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, escape(text))

    if "hash" in result:
        read = result["hash"]["statistics"]
        segments, pages, size = len(result["hash"]["segments"]), read.get("pages_read", 0), read.get("bytes_read", 0)
        row("crawl", f"{segments} segments, {pages:,} pages, {human_bytes(size)}")
        row("bad input", _counts(read["bad"]) or "none")
    elif "mine" in result:  # from metadata
        row("bad input", _counts(result["mine"]["statistics"]["bad"]) or "none")
    if bad := _counts(result.get("lm", {}).get("bad", {})):
        row("bad text", f"of lm.text: {bad}")
    if "dedup" in result:
        marks = result["dedup"]["statistics"]
        seen = f" ({marks['seen']:,} in earlier runs)" if marks["seen"] else ""
        row("paragraphs", f"{marks['keys']:,}, {marks['distinct']:,} different{seen}, {marks['kept']:,} kept")
    if "regroup" in result:
        counts = result["regroup"]["funnel"]["documents"]
        row(
            "documents",
            f"{counts['in']:,} in, {counts['kept']:,} kept; dropped: {_counts(counts['dropped']) or 'none'}",
        )
        by_language = sorted(result["regroup"]["buckets"].items(), key=lambda item: -_documents(item[1]))
        shown = [f"{language} {_documents(buckets):,}" for language, buckets in by_language[:12]]
        more = f" and {len(by_language) - 12} more" if len(by_language) > 12 else ""
        row("languages", ", ".join(shown) + more)
        for language, cut in sorted(result["regroup"]["cutoffs"].items()):
            shares = result["regroup"]["buckets"].get(language, {})
            named = ", ".join(f"{bucket} {entry['documents']:,}" for bucket, entry in shares.items())
            row(f"buckets {language}", f"perplexity {cut['low']:,.1f} / {cut['high']:,.1f}: {named}")
    if "tokenize" in result:
        train, validation = result["tokenize"]["train"], result["tokenize"]["validation"]
        row(
            "tokens",
            f"{train['tokens']:,} to train on, {validation['tokens']:,} for validation, "
            f"{train['bytes'] / max(train['tokens'], 1):.2f} bytes a token",
        )
    if "train" in result:
        trained = result["train"]
        rates = sorted(entry["tokens_per_second"] for entry in read_metrics(out / FOLDER))
        rate = f", {rates[len(rates) // 2]:,.0f} tokens/s" if rates else ""
        row(
            "training",
            f"{trained['parameters']:,} parameters, {trained['steps']} steps, {trained['tokens']:,} tokens{rate}",
        )
        row("loss", f"{trained['first_loss']:.3f} first, {trained['last_loss']:.3f} last")
    if "evaluate" in result:
        before, after = result["evaluate"]["before"], result["evaluate"]["after"]
        row("validation", f"perplexity {before['perplexity']:,.1f} before, {after['perplexity']:,.1f} after training")
        if len(after["sources"]) > 1:
            row("by source", ", ".join(f"{source} {value['perplexity']:,.1f}" for source, value in after["sources"].items()))
    if "export" in result:
        export = result["export"]
        row(
            "model",
            f"{out / export['folder']} (transformers' logits differ by at most {export['largest_difference']:.1e})",
        )
    if "report" in result:
        row("report", str(out / result["report"]["page"]))
    if "evaluate" in result:
        row("it writes", result["evaluate"]["text"].replace("\n", "⏎"))
    seconds = {name: manifest["seconds"] for name, manifest in manifests.items()}
    row("work", ", ".join(f"{name} {human_seconds(s)}" for name, s in seconds.items()))
    Console().print(table)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count)


def _documents(buckets: dict[str, dict[str, int]]) -> int:
    return sum(entry["documents"] for entry in buckets.values())
