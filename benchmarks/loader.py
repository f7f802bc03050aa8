"""The loader: tokens a second beside the obvious PyTorch dataset and Megatron-LM's, start and seek of a corpus of 10^12 tokens.

In: nothing; shards of random ids are written to a temporary folder, and 2 TB of holes beside them. Out: CPU time of one
process, in tokens a second from a warm page cache; seconds to start and to read one sample anywhere; memory.
`python -m benchmarks.loader`
"""

import itertools
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import machine
from pipeline.tokens.loader import Loader, document_boundaries
from pipeline.tokens.shards import HEADER, MAGIC, Shard, ShardFiles, Vocabulary, write_shard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of kernels for GPUs
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

SEQUENCE, EOS = 2048, 2
SHARDS, DOCUMENTS, LENGTH = 8, 32_000, 500  # 128 million tokens
BATCHES = (4, 64)  # samples
LLAMA = {"crawl": 67, "c4": 15, "github": 4.5, "wikipedia": 4.5, "books": 4.5, "arxiv": 2.5, "stackexchange": 2}


class ObviousDataset(Dataset):
    """Sample i of shuffled ones: a stored permutation, a search for its documents, their ids put together."""

    def __init__(self, shards: list[Path]) -> None:
        opened = [Shard(path) for path in shards]
        self.documents = [(shard, n) for shard in opened for n in range(len(shard))]
        self.ends = np.cumsum(np.concatenate([shard.lengths for shard in opened]))
        self.order = np.random.default_rng(1).permutation((int(self.ends[-1]) - 1) // SEQUENCE)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> torch.Tensor:
        start = int(self.order[i]) * SEQUENCE
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.ends, start + SEQUENCE, side="right"))
        ids = np.concatenate([shard.document(number) for shard, number in self.documents[first : last + 1]])
        begin = start - (int(self.ends[first - 1]) if first else 0)
        return torch.from_numpy(ids[begin : begin + SEQUENCE + 1].astype(np.int64))


def megatron_dataset(prefix: Path, boundaries: bool) -> GPTDataset:
    """Megatron-core's GPTDataset over one shard, which makes a loss mask and positions beside tokens and labels."""
    ids = SimpleNamespace(eod=EOS, pad=-1, eos=EOS, bos=1, vocab_size=32000, unique_identifiers={"class": "ids"})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=SEQUENCE,
        split="1",
        tokenizer=ids,
        reset_position_ids=boundaries,
        reset_attention_mask=False,
        eod_mask_loss=boundaries,
        create_attention_mask=False,
        path_to_cache=str(prefix.parent / "cache"),
    )
    documents = IndexedDataset(str(prefix))
    numbers = np.arange(len(documents), dtype=np.int32)
    return GPTDataset(documents, str(prefix), numbers, len(numbers) * LENGTH // SEQUENCE, Split.train, config)


def rate(batch: Callable[[int], object], samples: int) -> float:
    """Million tokens a CPU second of `samples` a call."""
    calls = max(8, 4096 // samples)
    batch(0)
    start = time.process_time()
    for number in range(calls):
        batch(number)
    return calls * samples * SEQUENCE / (time.process_time() - start) / 1e6


def speed(folder: Path) -> None:
    """Prints tokens a second."""
    random, shards = np.random.default_rng(0), [folder / f"part-{n:05d}" for n in range(SHARDS)]
    for prefix in shards:
        files = ShardFiles.of(prefix)
        ids = random.integers(3, 32000, (DOCUMENTS, LENGTH)).astype("<u2")
        ids[:, -1] = EOS
        write_shard(ids, files.bin, files.idx, ids.dtype)
        Vocabulary("a" * 64, 32000, EOS).write(files.meta)
    loader = Loader({"crawl": shards}, {"crawl": 1}, {}, SEQUENCE, 1)
    mixture = Loader(dict.fromkeys(LLAMA, shards), LLAMA, {}, SEQUENCE, 1)
    peers = {
        "obvious torch Dataset": ObviousDataset(shards),
        "megatron-core GPTDataset": megatron_dataset(shards[0], boundaries=False),
        "megatron-core, with boundaries": megatron_dataset(shards[0], boundaries=True),
    }
    for shard in loader.streams["crawl"].shards:  # warm
        assert shard.tokens.max() < 32000
    print(f"million tokens a second at sequence {SEQUENCE}, of one core")
    print(f"{'':40}" + "".join(f"{f'{samples} samples':>14}" for samples in BATCHES))
    table: dict[str, list[float]] = {}
    for samples in BATCHES:
        rows: dict[str, Callable[[int], object]] = {
            "loader, one source": lambda n, s=samples: loader.batch(n * s, s),
            "loader, LLaMA's seven": lambda n, s=samples: mixture.batch(n * s, s),
            "loader, seven, with boundaries": lambda n, s=samples: document_boundaries(mixture.batch(n * s, s), EOS),
        }
        for name, peer in peers.items():
            batches = itertools.chain.from_iterable(itertools.repeat(DataLoader(peer, batch_size=samples)))
            rows[name] = lambda n, batches=batches: next(batches)
        for name, batch in rows.items():
            table.setdefault(name, []).append(rate(batch, samples))
    for name, rates in table.items():
        print(f"{name:40}" + "".join(f"{r:14.1f}" for r in rates))
    for ours, theirs in (("loader, LLaMA's seven", "megatron-core GPTDataset"), [name for name in table if "with" in name]):
        ratios = [a / b for a, b in zip(table[ours], table[theirs], strict=True)]
        print(f"{f'ratio to {theirs}':40}" + "".join(f"{r:14.1f}" for r in ratios))


def start_and_seek(folder: Path, count: int, tokens: int) -> None:
    """Prints seconds and memory with `count` shards of `tokens` each, all holes but for the ends of their indexes. The first
    call loads the kernels."""
    documents = tokens // 1000
    for number in range(count):
        files = ShardFiles.of(folder / f"hole-{number:05d}")
        with files.bin.open("wb") as file:
            file.truncate(2 * tokens)
        with files.idx.open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
            file.seek(HEADER.size + 12 * documents - 8)
            file.write((2 * tokens).to_bytes(8, "little"))
            file.truncate(HEADER.size + 20 * documents + 8)
        Vocabulary("a" * 64, 32000, EOS).write(files.meta)
    shards = [folder / f"hole-{number:05d}" for number in range(count)]
    before = resident()
    start, cpu = time.perf_counter(), time.process_time()
    loader = Loader({source: shards[n::7] for n, source in enumerate(LLAMA)}, LLAMA, {"books": 2.5}, SEQUENCE, 1)
    loader.batch(0, 1)
    started, cpu = time.perf_counter() - start, time.process_time() - cpu
    places = np.random.default_rng(0).integers(0, 10**9, 1000).tolist()
    slowest = 0.0
    for place in places:
        start = time.perf_counter()
        loader.batch(place, 1)
        slowest = max(slowest, time.perf_counter() - start)
    print(f"{count * tokens:>20,} tokens in {count:,} shards: start {started:.3f} s ({cpu:.3f} s of CPU),"
          f" slowest of {len(places)} seeks {slowest * 1e3:.2f} ms, memory {(resident() - before) / 1e6:.1f} MB")  # fmt: skip


def resident() -> int:
    """Bytes of this process that are not files: what grows where a loader stores something."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() - mapped()


def mapped() -> int:
    return int(Path("/proc/self/statm").read_text().split()[2]) * resource.getpagesize()


def main() -> None:
    """Prints both tables."""
    torch.set_num_threads(1)
    print(machine())
    for count, tokens in ((40, 250_000), (400, 250_000_000), (4000, 250_000_000), (16_000, 62_500_000)):
        with tempfile.TemporaryDirectory() as folder:
            start_and_seek(Path(folder), count, tokens)
    with tempfile.TemporaryDirectory() as folder:
        speed(Path(folder))


if __name__ == "__main__":
    main()
