"""Segments with their keep marks: what `lm` and `mine` read.

In: the manifests of `fetch`, `hash` and `dedup`. Out: for each segment where it is, where its marks are, and the
fingerprint of both, which changes only when the segment or one of its marks does.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccnet.crawl import Source
from ccnet.dedup import SegmentMarks, segment_offsets
from ccnet.language import default_model
from pipeline.config import Config
from pipeline.stage import Stage, digest_json, fingerprint
from pipeline.stages.dedup import marks_files
from pipeline.stages.fetch import source_of


@dataclass(frozen=True)
class MarkedSegment:
    """A segment (a file or a part of one, compressed bytes) and where its marks begin in each partition's file."""

    name: str
    source: Source
    bytes: int
    fingerprint: str
    marks: list[Path]
    offsets: np.ndarray  # int64[partitions]
    partition_keys: np.ndarray  # int64[partitions]

    def open_marks(self) -> SegmentMarks:
        """The marks, from the first paragraph on."""
        return SegmentMarks(self.marks, self.offsets, self.partition_keys)


def marked_segments(stage: Stage) -> list[MarkedSegment]:
    """All segments in crawl order."""
    segments = stage.upstream("fetch")["result"]["segments"]
    hashed = {s["name"]: s["partition_keys"] for s in stage.upstream("hash")["result"]["segments"]}
    stage.upstream("dedup")
    partition_keys = np.array([hashed[s["name"]] for s in segments], np.int64)
    offsets = segment_offsets(partition_keys)
    files = [[stage.out / file for file in marks_files(p)] for p in range(partition_keys.shape[1])]
    digests = np.stack([np.fromfile(digests, np.uint64) for _, digests in files], axis=1)  # [segments, partitions]
    return [
        MarkedSegment(
            s["name"],
            source_of(stage, s),
            s["bytes"],
            digest_json([s["fingerprint"], digests[n].tolist()]),
            [marks for marks, _ in files],
            offsets[n],
            partition_keys[n],
        )
        for n, s in enumerate(segments)
    ]


def language_model(config: Config) -> tuple[Path, str]:
    """The fastText model of `language.model`, or the installed one, and its fingerprint."""
    path = Path(config.language.model) if config.language.model else default_model()
    return path, fingerprint(str(path))[1]
