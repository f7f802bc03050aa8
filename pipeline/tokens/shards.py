"""Token shards. Documents as arrays of token ids in, three files with one prefix out, and back, memory-mapped.

`{prefix}.bin` and `{prefix}.idx` are Megatron's indexed dataset (Megatron-LM, megatron/core/datasets/indexed_dataset.py),
so Megatron-LM, NeMo and GPT-NeoX read them too. `{prefix}.json` names the tokenizer that made the ids. docs/data-formats.md
gives every byte.
"""

import ctypes
import json
import mmap
import os
import struct
import weakref
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document indices
CODES: dict[np.dtype, int] = {np.dtype("<i4"): 4, np.dtype("<u2"): 8}
DTYPES = {code: dtype for dtype, code in CODES.items()}
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class ShardFiles(NamedTuple):
    """The three files of a shard."""

    bin: Path
    idx: Path
    meta: Path

    @classmethod
    def of(cls, prefix: Path) -> "ShardFiles":
        """The files of the shard `prefix`: the name with .bin, .idx and .json added."""
        return cls(*(prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx", ".json")))


@dataclass(frozen=True)
class Vocabulary:
    """What a reader must know of the tokenizer behind the ids."""

    tokenizer: str
    """SHA-256 of the SentencePiece model file, hexadecimal."""
    pieces: int
    """Ids are 0 … pieces - 1."""
    eos: int
    """The id that ends every document."""

    def write(self, path: Path) -> None:
        """Write `{prefix}.json`."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Read `{prefix}.json`. ValueError if it is missing or says something else."""
        try:
            fields = json.loads(path.read_text())
            vocabulary = cls(fields["tokenizer"], fields["pieces"], fields["eos"])
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; it names the tokenizer of the shard") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: not the description of a token shard (tokenizer, pieces, eos)") from None
        return vocabulary


def dtype_for(pieces: int) -> np.dtype:
    """The dtype of the ids of a vocabulary: uint16 up to 65,536 pieces, else int32."""
    return np.dtype("<u2") if pieces <= 1 << 16 else np.dtype("<i4")


def write_shard(documents: Iterable[np.ndarray], bin: Path, idx: Path, dtype: np.dtype) -> dict[str, int]:
    """Write documents (one-dimensional integer arrays, one sequence each) to exactly `bin` and `idx`; `dtype` is uint16 or
    int32. Returns counts: documents, tokens. ValueError if an id does not fit the dtype."""
    dtype = np.dtype(dtype)
    largest = np.iinfo(dtype).max
    lengths = array("i")
    with open(bin, "wb") as out:
        for ids in documents:
            if ids.dtype != dtype:
                if len(ids) and not 0 <= ids.min() <= ids.max() <= largest:
                    worst = ids.max() if ids.max() > largest else ids.min()
                    raise ValueError(f"token id {worst} does not fit the shard's dtype {dtype} (0 to {largest})")
                ids = ids.astype(dtype)
            out.write(ids.data)
            lengths.append(len(ids))
    sizes = np.frombuffer(lengths, np.int32)
    ends = np.cumsum(sizes, dtype=np.int64)
    with open(idx, "wb") as out:
        out.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], len(sizes), len(sizes) + 1))
        out.write(sizes.astype("<i4").data)
        out.write(((ends - sizes) * dtype.itemsize).astype("<i8").data)
        out.write(np.arange(len(sizes) + 1, dtype="<i8").data)
    return {"documents": len(sizes), "tokens": int(ends[-1]) if len(ends) else 0}


class Shard:
    """A shard, memory-mapped. Opening costs the same for any size: the ends of the files are checked, not what is between
    them, and they are mapped when they are first read.

    Attributes: `size` (tokens), `dtype` (uint16 or int32), `vocabulary`; `tokens` of this dtype [tokens], all documents end to
    end; `lengths` int32 [documents], in tokens; `pointers` int64 [documents], in bytes. ValueError, in one line, if a file is
    missing, is truncated or does not belong to the others.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        bin, idx, meta = self._files = ShardFiles.of(prefix)
        try:
            size = bin.stat().st_size
            with open(idx, "rb", buffering=0) as index:
                self._documents, self.dtype, end = _read_index(index, idx)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename}: no such file") from None
        if size != end:
            state = "truncated" if size < end else "does not match its index"
            raise ValueError(f"{bin}: {state}: {size} bytes, the index speaks of {end}")
        self.size = size // self.dtype.itemsize
        self.vocabulary = Vocabulary.read(meta)
        if self.vocabulary.pieces - 1 > np.iinfo(self.dtype).max:
            raise ValueError(f"{meta}: {self.vocabulary.pieces} pieces do not fit the shard's dtype {self.dtype}")

    @cached_property
    def tokens(self) -> np.ndarray:
        return _map(self._files.bin, self.dtype, 0, self.size)

    @cached_property
    def lengths(self) -> np.ndarray:
        return _map(self._files.idx, np.dtype("<i4"), HEADER.size, self._documents)

    @cached_property
    def pointers(self) -> np.ndarray:
        return _map(self._files.idx, np.dtype("<i8"), HEADER.size + 4 * self._documents, self._documents)

    def __len__(self) -> int:
        """The number of documents."""
        return self._documents

    def document(self, number: int) -> np.ndarray:
        """The ids of one document, eos included: a view into the file, dtype of the shard."""
        start = int(self.pointers[number]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[number])]


def _read_index(file: RawIOBase, path: Path) -> tuple[int, np.dtype, int]:
    """(documents, dtype, bytes of the .bin file) of an index, from its first and its last numbers."""
    head = file.read(HEADER.size) or b""
    if len(head) < HEADER.size:
        raise ValueError(f"{path}: truncated: {len(head)} bytes, the header alone has {HEADER.size}")
    magic, version, code, sequences, indices = HEADER.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise ValueError(f"{path}: not an index of Megatron's format, version {VERSION}")
    if code not in DTYPES:
        raise ValueError(f"{path}: dtype code {code}; token ids are int32 (4) or uint16 (8)")
    size, expected = file.seek(0, os.SEEK_END), HEADER.size + 12 * sequences + 8 * indices
    if size != expected:
        raise ValueError(f"{path}: {size} bytes, but its header speaks of {sequences} documents: {expected} bytes")
    if not sequences:
        return 0, DTYPES[code], 0
    (length,) = struct.unpack("<i", os.pread(file.fileno(), 4, HEADER.size + 4 * (sequences - 1)))
    (pointer,) = struct.unpack("<q", os.pread(file.fileno(), 8, HEADER.size + 12 * sequences - 8))
    return sequences, DTYPES[code], pointer + length * DTYPES[code].itemsize


def _map(path: Path, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    """`count` items of the file from byte `offset`, read-only; of an empty range, which can't be mapped, an empty array.

    Python's own mmap holds a file open for each map, and a corpus has more shards than a process may open files.
    """
    if not count:
        return np.empty(0, dtype)
    size = offset + count * dtype.itemsize
    with open(path, "rb") as file:
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"can't be mapped: {os.strerror(code)}", str(path))
    pages = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(pages, LIBC.munmap, address, size)
    items = np.frombuffer(memoryview(pages), dtype, count, offset)
    items.flags.writeable = False
    return items
