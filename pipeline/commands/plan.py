"""plan: the configuration of a training in; what it will cost out, before it starts, as tables. Needs no GPU and no outputs."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from model.config import ACTIVATIONS
from pipeline.config import Config
from pipeline.outputs import read_json
from pipeline.progress import human_bytes
from pipeline.training.devices import find_gpu
from pipeline.training.plan import LLAMA_HOURS, STAGES, checkpoint_bytes, implied_mfu, largest_micro_batch, memory, seconds

Settings = Config
KEYS = ("out", "model.", "train.", "zero.", "mixture.", "plan.")
DAY = 86400
WIDTH = 160  # of tables that go to a file


def run(config: Config) -> None:
    """Prints the plan."""
    gpu = find_gpu(config.plan.gpu)
    assert gpu is not None, "checked by the configuration"
    gpus = config.plan.gpus or config.train.processes
    limit = int(config.plan.memory * 1e9) or gpu.memory * 9 // 10
    console = Console()
    wide = console if console.is_terminal else Console(width=WIDTH)
    wide.print(_run(config, gpu.peak, gpus), _memory(config, gpus, limit), _sources(config), sep="\n")


def _run(config: Config, peak: float, gpus: int) -> Table:
    model, train = config.model, config.train
    tokens, flops = train.tokens(train.steps), model.flops_per_token(train.sequence)
    table = Table("the run", "", show_header=False)
    table.add_row("parameters", f"{model.parameter_count():,}")
    table.add_row("FLOPs a token", f"{flops:.4g} (masked attention scores and recomputed activations not counted)")
    table.add_row("tokens", f"{tokens:,}: {train.steps:,} steps")
    table.add_row("FLOPs", f"{flops * tokens:.4g}")
    took = seconds(model, train.sequence, tokens, gpus, peak, config.plan.mfu)
    rate = tokens / took / gpus
    hours = f"{rate:,.0f} tokens/s each, {took * gpus / 3600:,.0f} GPU hours"
    row = f"{took / DAY:,.1f} days at an MFU of {config.plan.mfu:.1%} ({hours})"
    table.add_row(f"on {gpus} {config.plan.gpu}", row)
    size = checkpoint_bytes(model)
    kept = f"{human_bytes(size * train.keep_checkpoints)} for train.keep_checkpoints={train.keep_checkpoints}"
    table.add_row("a checkpoint", f"{human_bytes(size)} (fp32 weights and Adam's moments); {kept}")
    table.add_row("the export", human_bytes(model.parameter_bytes(4)))
    for name, published in LLAMA_HOURS.items():
        if published.model.parameter_count() == model.parameter_count():
            took_them = f"{published.hours:,} A100 hours for {published.tokens / 1e12:.1f}T tokens"
            table.add_row(f"{name} took", f"{took_them}: an MFU of {implied_mfu(published):.1%}")
    return table


def _memory(config: Config, gpus: int, limit: int) -> Table:
    model, train = config.model, config.train
    columns = ("weights", "gradients", "optimizer", "activations", "buffers", "all", "on the host")
    table = Table("zero", "activations", *columns, "largest micro-batch")
    table.title = (
        f"Memory of a GPU, GB, with train.micro_batch={train.micro_batch} in {train.dtype}; largest for {limit / 1e9:.0f} GB"
    )
    table.title_justify = "left"
    for name, (stage, offload) in STAGES.items():
        if train.dtype == "bf16" and stage == 0:
            continue
        for activations in ACTIVATIONS:
            place: dict[str, Any] = {"stage": stage, "offload": offload, "world": gpus, "activations": activations}
            need = memory(model, train, **place)
            parts = (need.weights, need.gradients, need.optimizer, need.activations, need.buffers, need.total, need.host)
            largest = largest_micro_batch(model, train, limit, **place)
            here = (stage, offload, activations) == (config.zero.stage, config.zero.offload, train.activations)
            style = "bold" if here else None
            table.add_row(name, activations, *(f"{part / 1e9:,.2f}" for part in parts), str(largest or "none"), style=style)
    return table


def _sources(config: Config) -> Table:
    from pipeline.stages.train import mixed

    manifest = Path(config.out) / "records" / "tokenize.json"
    tokens = dict(config.plan.tokens)
    if manifest.exists():
        sources = read_json(manifest)["result"]["sources"]
        tokens = {source: splits["train"]["tokens"] for source, splits in sources.items()} | tokens
    table = Table("source", "share", "tokens it takes", "tokens there are", "epochs", "")
    wanted = {source: share for source, share in config.mixture.shares.items() if share > 0}
    if missing := sorted(set(wanted) - set(tokens)):
        whole = config.train.tokens(config.train.steps)
        for source, share in wanted.items():
            taken = whole * share / sum(wanted.values())
            there = tokens.get(source)
            epochs = f"{taken / there:.2f}" if there else "?"
            table.add_row(
                source, f"{share / sum(wanted.values()):.1%}", f"{taken:,.0f}", f"{there:,}" if there else "?", epochs, ""
            )
        table.caption = f"Tokens of {', '.join(missing)} are not known: tokenize them, or give plan.tokens.{missing[0]}=…"
        return table
    try:
        planned = mixed(config, tokens)
    except ValueError as error:
        table.caption = f"It can't be trained: {error}"
        return table
    for source, entry in planned.items():
        ends = f"ends at sample {entry['ends']:,}" if entry["ends"] is not None else ""
        row = (f"{entry['actual_share']:.1%}", f"{entry['tokens']:,}", f"{tokens[source]:,}", f"{entry['epochs']:.2f}", ends)
        table.add_row(source, *row)
    return table
