"""The tokenizer for Hugging Face: a SentencePiece BPE model in, `tokenizer.json` and `tokenizer_config.json` out.

Written here because transformers' own conversion ranks merges otherwise than SentencePiece does, and leaves the space
before a text that begins with one away. One difference is theirs by design: `<s>`, `</s>` and `<unk>` in a text are
special pieces there, and plain text to SentencePiece.

SentencePiece merges the pair whose piece has the best score, the leftmost where scores are equal; `tokenizer.json` ranks
pairs. Pairs that make one piece can be ranked anyhow: two of them never meet. (Merges within the two halves of a piece
depend on nothing outside them, so a piece is always made from the same two halves.) Only different pieces of equal score
can: the runs of spaces in LLaMA's released model. There the leftmost pair is the one that goes on with the run begun, so
the longest piece comes first.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.tokens import tokenizer


def write_hugging_face_tokenizer(model: Path, folder: Path) -> None:
    """Writes both files, and the model as `tokenizer.model`, into `folder`.

    Raises ValueError for a model that does otherwise with text than LLaMA's, which these files could not say.
    """
    processor = tokenizer.load(model)
    if reason := tokenizer.unlike_llama(tokenizer.specification(model)):
        raise ValueError(f"{model}: no tokenizer.json for this tokenizer: {reason}; take one with LLaMA's settings")
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    special = [i for i in range(len(pieces)) if processor.is_control(i) or processor.is_unknown(i)]
    whole = {pieces[i] for i in range(len(pieces)) if i not in special and not processor.is_byte(i)}
    by_score = sorted((ids[piece] for piece in whole), key=lambda i: (-processor.get_score(i), -len(pieces[i]), i))
    merges = [
        [pieces[i][:cut], pieces[i][cut:]]
        for i in by_score
        for cut in range(1, len(pieces[i]))
        if pieces[i][:cut] in whole and pieces[i][cut:] in whole
    ]
    value: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for i in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[processor.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }
    named = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: pieces[i] for name, i in named.items() if i >= 0}
    for name, content in (("tokenizer.json", value), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(model, folder / "tokenizer.model")
