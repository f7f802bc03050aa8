"""generate: a folder in Hugging Face format and a prompt in; what the model goes on with, as it is chosen, on the terminal.

`config.json` says what stands before a prompt (`bos_token_id`, null: nothing) and what ends a text (`eos_token_id`).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import key, require

BOS, EOS = 1, 2  # of a config.json that does not name them, as in transformers


@dataclass
class Settings:
    """Keys of the command; `model.generate` checks the ranges."""

    model_dir: str = key("", "folder with config.json, *.safetensors and tokenizer.model, as `export` writes it")
    prompt: str = key("", "the text to go on with; empty: from the start of a document")
    samples: int = key(1, "texts, as one batch; more than one are shown when all are done")
    max_new: int = key(200, "tokens, at most; fewer where the document ends or the model's longest sequence is reached")
    temperature: float = key(0.8, "0 takes the most probable token; higher is more varied")
    top_k: int = key(0, "draw from this many most probable tokens; 0: from all")
    top_p: float = key(0.95, "draw from the fewest tokens that hold this much of the probability")
    seed: int = key(0, "of the draws; the next sample has the next seed")

    def __post_init__(self) -> None:
        require(1 <= self.samples <= 1024, f"samples={self.samples}: choose 1 to 1024")
        require(self.prompt == self.prompt.encode(errors="ignore").decode(), f"prompt={self.prompt!a}: not UTF-8")
        require(0 <= self.seed < 1 << 63, f"seed={self.seed}: choose 0 to {(1 << 63) - 1}")


def run(settings: Settings) -> None:
    """Prints the prompt and what follows."""
    require(bool(settings.model_dir), "model_dir is not given: name a folder in Hugging Face format, e.g. out/demo/model")
    import torch

    from model.convert.hugging_face import CONFIG, from_hugging_face, read_json
    from model.generate import stream
    from model.llama import Llama
    from pipeline.tokens.tokenizer import load

    folder = Path(settings.model_dir)
    weights, config = from_hugging_face(folder)
    processor = load(folder / "tokenizer.model")
    require(
        processor.get_piece_size() <= config.vocab_size,
        f"{folder}: the tokenizer has {processor.get_piece_size()} pieces, the model only {config.vocab_size}",
    )
    model = Llama(config)
    model.load_state_dict(weights, assign=True)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    marks = read_json(folder / CONFIG)
    bos, eos = marks.get("bos_token_id", BOS), marks.get("eos_token_id", EOS)
    for name, mark in (("bos_token_id", bos), ("eos_token_id", eos)):
        good = mark is None or (isinstance(mark, int) and 0 <= mark < config.vocab_size)
        require(good, f"{folder / CONFIG}: {name} is {mark}: one id of the model, or null")
    prompt = [*([] if bos is None else [bos]), *processor.encode(settings.prompt)]
    texts: list[list[int]] = [[] for _ in range(settings.samples)]
    shown = ""
    for chosen in stream(
        model,
        [prompt] * settings.samples,
        max_new=settings.max_new,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        eos=eos,
    ):
        for text, token in zip(texts, chosen, strict=True):
            if token is not None:
                text.append(token)
        if settings.samples == 1:
            whole = processor.decode(prompt + texts[0])
            if not whole.endswith("�"):  # a character whose other bytes are still to come
                _show(whole[len(shown) :])
                shown = whole
    if settings.samples == 1:
        _show(processor.decode(prompt + texts[0])[len(shown) :] + "\n")
        return
    for number, text in enumerate(texts, 1):
        _show(f"--- {number}\n{processor.decode(prompt + text)}\n")


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
