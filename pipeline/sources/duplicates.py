"""Documents that an earlier one of the same source has too, over all its files: found, and taken out.

The first in the order of the files stays. Equal texts are told by the first 8 bytes of the SHA-1 in `digest`: one of 10^8
files is dropped without a copy in one run of 4,000. Nearly equal ones by MinHash (`ccnet.near_duplicates`).
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ccnet.near_duplicates import link_partition, pair_documents, sign_documents
from ccnet.schema import SOURCE_DOCUMENT

PASSES = 16  # over the keys, so that a 16th of them is in memory at a time, with 24 bytes each
DUPLICATES = pa.schema([pa.field("segment", pa.string(), nullable=False), pa.field("row", pa.int64(), nullable=False)])


def jaccard(overlap: float) -> float:
    """The Jaccard index of two sets alike in size of which each has the share `overlap` in common with the other."""
    return overlap / (2 - overlap)


def write_keys(documents: Path, target: Path) -> None:
    """Writes a `uint64` key for each document of a Parquet file with a column `digest`, little-endian, in their order."""
    digests = pq.read_table(documents, columns=["digest"]).column(0).to_pylist()
    keys = b"".join(base64.b32decode(digest.removeprefix("sha1:"))[:8] for digest in digests)
    target.write_bytes(keys)


def exact_duplicates(names: Sequence[str], files: Sequence[Path], target: Path) -> dict[str, int]:
    """Writes `segment` and `row` (`DUPLICATES`) of every document whose key an earlier one has.

    Args: names: of the units; files: their keys (`write_keys`).
    Returns: `duplicates`. Memory: 24 bytes for each 16th document.
    """
    documents = np.array([file.stat().st_size // 8 for file in files], np.int64)
    first = np.cumsum(documents) - documents
    found = [np.empty(0, np.int64)]
    for number in range(PASSES):
        keys, places = [np.empty(0, "<u8")], [np.empty(0, np.int64)]
        for start, file in zip(first, files, strict=True):
            some = np.fromfile(file, "<u8")
            chosen = np.flatnonzero(some % PASSES == number)
            keys.append(some[chosen])
            places.append(chosen + start)
        key, place = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(key, kind="stable")
        key, place = key[order], place[order]
        found.append(place[1:][key[1:] == key[:-1]])
    rows = np.sort(np.concatenate(found))
    of = np.searchsorted(first, rows, side="right") - 1
    table = pa.table([pa.array(names, pa.string()).take(pa.array(of)), rows - first[of]], schema=DUPLICATES)
    pq.write_table(table, target, compression="zstd")
    return {"duplicates": len(rows)}


def sign(documents: Path, signatures: Path, bands: Path, *, overlap: float) -> dict[str, Any]:
    """`ccnet.near_duplicates.sign_documents` for documents that overlap."""
    return sign_documents(documents, signatures, bands, threshold=jaccard(overlap), partitions=1)


def near_duplicates(
    temporary: Path,
    names: Sequence[str],
    files: Sequence[Path],
    signature_files: Sequence[Path],
    band_files: Sequence[Path],
    signed: Sequence[dict[str, Any]],
    overlap: float,
    target: Path,
) -> dict[str, int]:
    """Writes `ccnet.near_duplicates.PAIRS`: a row for each document that overlaps with an earlier one.

    Two are taken to overlap by more than `overlap` where the estimate of their Jaccard index is that of two alike in size
    that do; a short one within a long one is no duplicate. Memory: about 12 bytes a band, of which a document has about 40.
    """
    documents = np.array([counts["documents"] for counts in signed], np.int64)
    bands = np.array([counts["partition_bands"] for counts in signed], np.int64).reshape(-1, 1)
    links = temporary / "links"
    link_partition(band_files, signature_files, documents, bands, 0, links, threshold=jaccard(overlap))
    return pair_documents([links], signature_files, files, names, documents, target)


def without_rows(documents: Path, duplicates: Path, name: str, target: Path) -> dict[str, Any]:
    """Writes a Parquet file again without the rows that are listed for it. Returns what these were: `documents`, `chars`,
    `lines`."""
    gone = pq.read_table(duplicates, columns=["row"], filters=[("segment", "=", name)]).column(0).to_numpy()
    counts = {"documents": 0, "chars": 0, "lines": 0}
    start = 0
    with pq.ParquetFile(documents) as file, pq.ParquetWriter(target, SOURCE_DOCUMENT, compression="zstd") as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            keep = ~np.isin(np.arange(start, start + len(table)), gone)
            start += len(table)
            dropped = table.filter(pa.array(~keep))
            counts["documents"] += len(dropped)
            counts["chars"] += pc.sum(dropped.column("length")).as_py() or 0
            counts["lines"] += pc.sum(dropped.column("nlines")).as_py() or 0
            if keep.any():
                writer.write_table(table.filter(pa.array(keep)).cast(SOURCE_DOCUMENT))
    return counts
