"""Encoding: the kernel beside SentencePiece and Hugging Face's tokenizers with the same model, in one run on the same text.

In: a SentencePiece model like LLaMA's and text (plain or gzip; a form feed parts documents) or WET files; without arguments
the demo crawl and a model trained on it. Out: MB of UTF-8 a CPU second on one core, ratios, and how many documents have
SentencePiece's ids; then the whole of `tokenize_part`, from Parquet to a shard. The best of ROUNDS rounds.
`python -m benchmarks.encoding [MODEL FILE …]`
"""

import gzip
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from benchmarks.machine import machine
from ccnet.demo_crawl import plan, write_segment
from ccnet.wet import read_pages
from pipeline.tokens import tokenizer
from pipeline.tokens.encode import SPLITS, Encoder, tokenize_part
from pipeline.tokens.hugging_face import write_hugging_face_tokenizer
from pipeline.tokens.shards import ShardFiles

ROUNDS = 3
SENTENCEPIECE, HUGGING_FACE = "SentencePiece", "Hugging Face tokenizers"
BATCH = 1024  # documents, as they come from Parquet


def documents(file: Path) -> Iterator[str]:
    """The texts of a file."""
    if ".wet" in file.name:
        for batch in read_pages(str(file), Counter()):
            yield from batch.column("raw_content").to_pylist()
    else:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        yield from data.decode().split("\f")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def encode(encoder: Encoder, texts: pa.StringArray) -> list[list[int]]:
    """Batch by batch, as `tokenize_part` does; the ids of each document as arrays, without eos."""
    found: list[np.ndarray] = []
    for first in range(0, len(texts), BATCH):
        ids, ends = encoder.encode_batch(texts[first : first + BATCH])
        found += [ids[start : end - 1] for start, end in pairwise(ends.tolist())]
    return found


def main(arguments: list[str]) -> None:
    """Prints the tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments:
            model, files = Path(arguments[0]), [Path(file) for file in arguments[1:]]
        else:
            model, files = folder / "new.model", [folder / f"{number}.warc.wet.gz" for number in range(8)]
            for names, file in zip(plan(8), files, strict=True):
                write_segment(names, file)
            tokenizer.train((text for file in files for text in documents(file)), model, vocab_size=32_000)
        listed = [text for file in files for text in documents(file)]
        texts = pa.array(listed, pa.string())
        compare(model, texts, folder)
        tokenize(model, texts, folder)


def compare(model: Path, texts: pa.StringArray, folder: Path) -> None:
    """The encoders on the same documents."""
    listed = texts.to_pylist()
    size = sum(len(text.encode()) for text in listed) / 1e6
    processor = tokenizer.load(model)
    write_hugging_face_tokenizer(model, folder)
    hugging_face = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    Encoder(model).encode("compiles")
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        loading, encoder = timed(lambda: Encoder(model))
        runs: dict[str, Callable[[], list[Any]]] = {
            SENTENCEPIECE: lambda: [processor.encode(text) for text in listed],
            HUGGING_FACE: lambda: [one.ids for one in hugging_face.encode_batch_fast(listed, add_special_tokens=False)],
            "kernel, cold": partial(encode, encoder, texts),
            "kernel, warm": partial(encode, encoder, texts),
        }
        found = {}
        for name, run in runs.items():
            taken, found[name] = timed(run)
            seconds.setdefault(name, []).append(taken)
    reference = found[SENTENCEPIECE]
    print(machine())
    print(f"text: {size:.1f} MB, {len(listed):,} documents, {sum(map(len, reference)):,} tokens")
    print(f"model: {model.name}, {processor.get_piece_size():,} pieces; tables of the kernel made in {loading:.2f} s")
    print(f"{'':<26}{'MB/s':>8}{'to SentencePiece':>18}{'to Hugging Face':>17}{'equal documents':>17}")
    for name, taken in seconds.items():
        to_peers = [min(seconds[peer]) / min(taken) for peer in (SENTENCEPIECE, HUGGING_FACE)]
        equal = sum(map(np.array_equal, reference, found[name]))
        print(f"{name:<26}{size / min(taken):>8.1f}{to_peers[0]:>18.2f}{to_peers[1]:>17.2f}{equal:>17,}")


def tokenize(model: Path, texts: pa.StringArray, folder: Path) -> None:
    """The work of the stage: the model is loaded, Parquet is read, documents are split and encoded, shards written."""
    part, size = folder / "part.parquet", texts.buffers()[2].size / 1e6
    digests = pa.array([f"sha1:{number}" for number in range(len(texts))])
    pq.write_table(pa.table({"digest": digests, "raw_content": texts}), part, compression="zstd")
    targets = {split: ShardFiles.of(folder / split) for split in SPLITS}
    seconds = min(timed(lambda: tokenize_part([part], model, targets, validation=0.01))[0] for _ in range(ROUNDS))
    print(f"{'tokenize_part':<26}{size / seconds:>8.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
