"""export: the last checkpoint and the tokenizer in, a Hugging Face folder out (`model/`), loaded there and compared."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.outputs import Outputs
from pipeline.stage import Stage, StageError, Unit
from pipeline.stages.train import FOLDER, last_checkpoint
from pipeline.training.job import Job

if TYPE_CHECKING:
    from model.llama import Llama

MODEL = "model"
LARGEST_DIFFERENCE = 1e-4  # of fp32 logits; they are computed by other kernels there


def run(stage: Stage) -> None:
    """One unit: the folder."""
    tokenizer = stage.upstream("tokenizer")["result"]
    arguments = {
        "job": stage.out / FOLDER / "job.json",
        "weights": last_checkpoint(stage.out),
        "tokenizer": stage.out / tokenizer["model"],
    }
    inputs = {"train": stage.upstream("train")["digest"], "tokenizer": tokenizer["digest"]}
    [record] = stage.map("export", export_unit, [Unit("model", arguments, inputs)])
    if record.statistics["largest_difference"] > LARGEST_DIFFERENCE:
        raise StageError(f"export: transformers' logits differ by {record.statistics['largest_difference']:.2e}")
    stage.finish({"folder": MODEL, **record.statistics})


def export_unit(outputs: Outputs, job: Path, weights: Path, tokenizer: Path) -> dict[str, Any]:
    """Work of the unit: writes the folder, then compares transformers' logits with ours on random tokens."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from pipeline.training.checkpoint import load_model

    disable_progress_bar()
    torch.set_num_threads(1)  # the last digits of sums depend on it
    told = Job.read(job)
    model = load_model(told, weights)
    with tempfile.TemporaryDirectory(dir=outputs.temporary) as name:
        folder = Path(name)
        write_model(model, told.train.document_mask, tokenizer, folder)
        theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(told.train.seed)
        tokens = torch.randint(told.model.vocab_size, (2, told.train.sequence), generator=generator)
        with torch.no_grad():
            difference = (theirs(tokens).logits - model(tokens)).abs().max().item()
        for path in sorted(folder.iterdir()):
            shutil.move(path, outputs.path(f"{MODEL}/{path.name}"))
    return {"largest_difference": difference}


def write_model(model: "Llama", document_mask: bool, tokenizer: Path, folder: Path) -> None:
    """Writes a model that was trained with or without `document_mask`, and its tokenizer, for Hugging Face."""
    from model.convert.hugging_face import to_hugging_face
    from pipeline.tokens.hugging_face import write_hugging_face_tokenizer
    from pipeline.tokens.tokenizer import load, specification, unlike_llama

    eos = load(tokenizer).eos_id()
    bos = None if document_mask else eos  # what the model has seen before a document; <s> it has never seen
    to_hugging_face(model.state_dict(), model.config, folder, bos=bos, eos=eos)
    if unlike_llama(specification(tokenizer)) is None:
        write_hugging_face_tokenizer(tokenizer, folder)
    else:
        shutil.copyfile(tokenizer, folder / "tokenizer.model")
