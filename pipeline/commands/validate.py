"""validate: a checkpoint or a model in Hugging Face format in; its perplexity on a run's validation splits, by source, and
its scores on tasks of lm-evaluation-harness out, as a table.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import key, require

if TYPE_CHECKING:
    from model.llama import Llama


@dataclass
class Settings:
    """Keys of the command."""

    model: str = key("", "a checkpoint, as out/demo/train/checkpoints/step-00000100, or a folder in Hugging Face format")
    out: str = key("out", "the run whose tokens the model is measured on; its tokenizer must be the model's")
    sequence: int = key(0, "tokens a sample; 0: as a checkpoint was trained, or the model's longest")
    document_mask: bool = key(False, "attention stays inside a document; a checkpoint's is that of its training")
    micro_batch: int = key(8, "samples at a time")
    tasks: list[str] = key([], "tasks of lm-evaluation-harness, by name or as YAML files; needs the lm-eval extra")

    def __post_init__(self) -> None:
        require(self.sequence >= 0, f"sequence={self.sequence}: choose 0 or a number of tokens")
        require(self.micro_batch >= 1, f"micro_batch={self.micro_batch}: must be at least 1")


def run(settings: Settings) -> None:
    """Measures the model and prints the table."""
    require(bool(settings.model), "model is not given: a checkpoint, or a folder in Hugging Face format")
    from rich.console import Console
    from rich.table import Table

    result, scores = measure(settings)
    table = Table("", "loss", "perplexity", "tokens", title=settings.model, title_justify="left")
    for name, value in {**result["sources"], "all": result}.items():
        table.add_row(name, f"{value['loss']:.4f}", f"{value['perplexity']:,.2f}", f"{value['tokens']:,}")
    Console().print(table)
    for task, values in scores.items():
        print(task, ", ".join(f"{name} {value:.4f}" for name, value in sorted(values.items())))


def measure(settings: Settings) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The result on the validation splits (of `pipeline.training.evaluate.ValidationSplits`), and {task: {metric: value}}."""
    import torch

    from pipeline.outputs import read_json
    from pipeline.stages.export import write_model
    from pipeline.tokens.tokenizer import digest, load
    from pipeline.training.evaluate import ValidationSplits

    device = "cuda" if torch.cuda.is_available() else "cpu"
    given, out = Path(settings.model), Path(settings.out)
    manifest = out / "records" / "tokenize.json"
    require(manifest.exists(), f"out={out}: has no tokens; tokenize is to be run first")
    shards = {name: splits["validation"]["shards"] for name, splits in read_json(manifest)["result"]["sources"].items()}
    checkpoint = (given / "checkpoint.json").exists()
    if checkpoint:
        model, job = _checkpoint(given)
        tokenizer = out / "tokenizer" / "tokenizer.model"
        sequence, document_mask = settings.sequence or job["train"]["sequence"], job["train"]["document_mask"]
        made_with = job["tokenizer"]
    else:
        model = _hugging_face(given)
        tokenizer = given / "tokenizer.model"
        require(tokenizer.exists(), f"{given}: has no tokenizer.model, so that nothing says what its ids mean")
        sequence, document_mask = settings.sequence or model.config.max_sequence, settings.document_mask
        made_with = digest(tokenizer)
    require(
        sequence <= model.config.max_sequence,
        f"sequence={sequence}: the model takes at most {model.config.max_sequence} tokens",
    )
    splits = ValidationSplits(shards, out, sequence, settings.micro_batch, made_with)
    model.to(device).eval()
    eos = load(tokenizer).eos_id() if document_mask else None
    result = splits.result(splits.sums(model, device, eos))
    if not settings.tasks:
        return result, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if checkpoint else given
        if checkpoint:
            write_model(model, document_mask, tokenizer, folder)
        return result, harness(folder, settings.tasks, settings.micro_batch, device)


def harness(folder: Path, tasks: list[str], batch: int, device: str) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of lm-evaluation-harness for a model in Hugging Face format, in fp32 on a CPU, else as stored.

    `tasks` are names that it knows, or paths of YAML files. ValueError where it is not installed or does not know a task.
    """
    try:
        import lm_eval
    except ImportError:
        raise ValueError(f"tasks={tasks}: pip install 'llama-pretrain[lm-eval]'") from None
    from lm_eval.tasks import TaskManager

    files = [Path(task).resolve() for task in tasks if task.endswith((".yaml", ".yml"))]
    for file in files:
        require(file.exists(), f"tasks: {file}: no such file")
    manager = TaskManager(include_path=sorted({str(file.parent) for file in files}) or None)
    known = set(manager.all_tasks)
    for task in tasks:
        require(task.endswith((".yaml", ".yml")) or task in known, f"tasks: {task}: lm-evaluation-harness has no such task")
    told = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32" if device == "cpu" else "auto"},
        tasks=[str(Path(task).resolve()) if task.endswith((".yaml", ".yml")) else task for task in tasks],
        task_manager=manager,
        batch_size=batch,
        device=device,
        bootstrap_iters=0,
        log_samples=False,
    )
    assert told is not None, "it returns nothing in ranks but the first"
    return {
        task: {name.removesuffix(",none"): value for name, value in values.items() if isinstance(value, float)}
        for task, values in told["results"].items()
    }


def _checkpoint(folder: Path) -> tuple["Llama", dict[str, Any]]:
    from model.config import LlamaConfig
    from model.llama import Llama
    from pipeline.outputs import read_json
    from pipeline.training.checkpoint import load_weights

    job = read_json(folder / "checkpoint.json")["job"]
    model = Llama(LlamaConfig(**job["model"]))
    model.load_state_dict(load_weights(folder))
    return model, job


def _hugging_face(folder: Path) -> "Llama":
    from model.convert.hugging_face import from_hugging_face
    from model.llama import Llama

    weights, config = from_hugging_face(folder)
    model = Llama(config)
    model.load_state_dict(weights, assign=True)
    return model
