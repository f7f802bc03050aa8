"""Prose to fill pages with, and the marks of a small crawl."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccnet.dedup import SegmentMarks, hash_segment, mark_partition, segment_offsets

PARTITIONS = 4
WORDS = {
    "en": (
        "The {} was {} by the {} near the old {}.",
        ["house", "river", "teacher", "garden", "letter", "village", "winter", "morning", "farmer", "kitchen"],
        ["seen", "remembered", "forgotten", "followed", "described", "painted", "visited", "explained"],
    ),
    "de": (
        "Das {} wurde gestern von dem {} {}, obwohl das {} schon geschlossen war.",
        ["Haus", "Wasser", "Kind", "Fenster", "Buch", "Dorf", "Geschäft", "Mädchen", "Schiff", "Gebäude"],
        ["gesehen", "vergessen", "beschrieben", "besucht", "gefunden", "verlassen", "gemalt"],
    ),
    "ru": (
        "Мой {} вчера {} на тот {}, где стоял старый {}.",
        ["дом", "город", "учитель", "сосед", "человек", "магазин", "вокзал", "берег"],
        ["смотрел", "пришёл", "показывал", "приехал"],
    ),
}


def prose(language: str, seed: int, lines: int, sentences: int = 3) -> list[str]:
    """Lines of a few sentences each, the same ones for the same seed."""
    pattern, nouns, verbs = WORDS[language]
    choice = random.Random(f"{language} {seed}").choice
    verb_at = {"en": 1, "de": 2, "ru": 1}[language]

    def sentence() -> str:
        return pattern.format(*(choice(verbs) if i == verb_at else choice(nouns) for i in range(4)))

    return [" ".join(sentence() for _ in range(sentences)) for _ in range(lines)]


def open_marks(sources: Sequence[Path], folder: Path, keep: str = "first", min_length: int = 300) -> list[SegmentMarks]:
    """The marks of each segment of a crawl, computed by the stages before; files are put into `folder`."""
    folder.mkdir(exist_ok=True)
    key_files = [folder / f"{number}.keys" for number in range(len(sources))]
    counts = [
        hash_segment(str(source), target, partitions=PARTITIONS, min_length=min_length)["partition_keys"]
        for source, target in zip(sources, key_files, strict=True)
    ]
    partition_keys = np.array(counts)
    marks = [folder / f"{partition}.marks" for partition in range(PARTITIONS)]
    for partition, path in enumerate(marks):
        mark_partition(key_files, partition, partition_keys, keep, path, folder / "digests")
    offsets = segment_offsets(partition_keys)
    return [SegmentMarks(marks, offsets[n], partition_keys[n]) for n in range(len(sources))]
