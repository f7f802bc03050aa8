"""C4 in, its documents out: files of JSON lines or Parquet, or a data set that Hugging Face's `datasets` streams.

Format: https://huggingface.co/datasets/allenai/c4: `text`, `timestamp`, `url`. What `datasets` streams is cut as its files
are; code of a data set is never run. C4's own heuristics are the rule `c4` of `ccnet.quality`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from ccnet.crawl import Source, byte_range, open_source
from ccnet.text_files import Row, json_rows, parquet_rows
from ccnet.wet import PARQUET, plain_chunks
from pipeline.sources.documents import Document
from pipeline.stage import digest_json, expand_files, fingerprint

if TYPE_CHECKING:
    from pipeline.sources import Given

STREAMED = "datasets:"  # before NAME[:CONFIG[:SPLIT]], and #shard/shards behind it
TEXT = "text"
LANGUAGE = "en"


def files(name: str) -> Sequence[str]:
    """Files of a path, glob or URL; of `datasets:NAME[:CONFIG[:SPLIT]]` a name for each of the shards that it streams in.

    NAME: of a data set on the hub, or a local folder of data files; SPLIT: `train`, where none is named.
    Raises: ValueError where it is not there.
    """
    if not name.startswith(STREAMED):
        return expand_files([name])
    shards = _stream(name).num_shards
    return [f"{name}#{shard}/{shards}" for shard in range(shards)]


def prints(path: str) -> tuple[int, str]:
    """(bytes, fingerprint): 0 bytes for a shard of a data set; its fingerprint is the data files', with their revision."""
    if not path.startswith(STREAMED):
        return fingerprint(path)
    from datasets import load_dataset_builder

    name, config, _ = _parts(path)
    builder = load_dataset_builder(name, config)
    data_files = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    local = [fingerprint(file)[1] for files in data_files.values() for file in files if os.path.exists(file)]
    return 0, digest_json([data_files, local, path])


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """A document for each row. Faults are those of `ccnet.text_files`: `bad_broken_record`, `bad_no_text`, `bad_too_large`,
    `bad_truncated`, `bad_not_a_crawl_file`, and those of compression."""
    rows = _streamed(given.path, counts) if given.path.startswith(STREAMED) else _of_file(given.path, given.part, counts)
    for row in rows:
        yield Document(row.url, row.date, row.title, row.text, LANGUAGE)


def _of_file(path: str, part: tuple[int, int] | None, counts: Counter[str]) -> Iterator[Row]:
    with open_source(path) as file:
        if file.read(len(PARQUET)) == PARQUET:
            yield from parquet_rows(file, Source(path, part, TEXT), counts)
        else:
            yield from json_rows(plain_chunks(byte_range(file, part), counts), TEXT, counts)


def _streamed(path: str, counts: Counter[str]) -> Iterator[Row]:
    number, _, shards = path.rpartition("#")[2].partition("/")
    stream = _stream(path)
    if stream.num_shards != int(shards):
        raise ValueError(f"{path}: has {stream.num_shards} shards now: run the stage again")
    for row in stream.shard(int(shards), int(number)):
        text, url, date = row.get(TEXT), row.get("url"), row.get("timestamp")
        if isinstance(text, str):
            yield Row(str(url or ""), date.isoformat() if hasattr(date, "isoformat") else str(date or ""), "", text)
        else:
            counts["bad_no_text"] += 1


def _parts(path: str) -> tuple[str, str | None, str]:
    name, config, split, *_ = chain(path.removeprefix(STREAMED).partition("#")[0].split(":"), ["", ""])
    return name, config or None, split or "train"


def _stream(path: str) -> Any:
    from datasets import load_dataset

    name, config, split = _parts(path)
    try:
        return load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # each way in which there is no such data set has its own
        raise ValueError(f"{path}: can't be streamed: {type(error).__name__}: {error}") from None
