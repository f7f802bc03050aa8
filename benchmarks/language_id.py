"""Language identification: its accuracy on labelled text, and the beginning of a page beside the whole page.

In: the test data in `../shared/data`, or in the folder that SHARED_DATA names; a fastText model as an argument, or the
installed one. Out: accuracy by set and language; on all real pages, before and after deduplication, how often language
and threshold are those of the whole text, and MB of text a CPU second beside the fasttext library. Exit code 1 below 99.9 %
agreement, or where the library has another language for the whole text.
`python -m benchmarks.language_id [MODEL]`
"""

import csv
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fasttext
import pyarrow.parquet as pq

from benchmarks.machine import machine
from ccnet.language import CLEAR, PART, LanguageIdentifier, default_model
from ccnet.wet import read_pages
from pipeline.__main__ import run
from pipeline.config import load

# File names of NTREX carry ISO 639-3 codes, fastText's labels are of ISO 639-1 where there is one.
NTREX = {
    "arb": "ar", "ces": "cs", "dan": "da", "deu": "de", "ell": "el", "eng": "en", "fin": "fi", "fra": "fr", "heb": "he",
    "hin": "hi", "hun": "hu", "ita": "it", "jpn": "ja", "kor": "ko", "nld": "nl", "pol": "pl", "por": "pt", "rus": "ru",
    "spa": "es", "swe": "sv", "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh",
}  # fmt: skip
THRESHOLD = 0.5
NEEDED = 0.999


def labelled(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """{set: [(language, text)]}."""
    with (folder / "papluca_test.csv").open(encoding="utf-8", newline="") as file:
        sets = {"papluca": [(language, text) for language, text in csv.reader(file) if language != "labels"]}
    sets["ntrex"] = [
        (NTREX[path.name.partition(".")[2][:3]], line)
        for path in sorted((folder / "ntrex").glob("newstest2019-ref*.txt"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]
    return sets


def pages(segments: list[Path]) -> Iterator[str]:
    """The text of every page."""
    for segment in segments:
        for batch in read_pages(str(segment), Counter()):
            yield from batch.column("raw_content").to_pylist()


def deduplicated(segments: list[Path], keep: str) -> Iterator[str]:
    """The text of every document after deduplication, by the stages themselves."""
    files = ",".join(f"'{path}'" for path in segments)
    with tempfile.TemporaryDirectory() as out:
        config = load([f"crawl.files=[{files}]", f"dedup.keep={keep}", f"lm.dir={segments[0].parents[2] / 'lm'}", f"out={out}"])
        for stage in ("fetch", "hash", "dedup", "lm", "mine"):
            run(stage, config)
        for path in sorted((Path(out) / "mine").glob("*.parquet")):
            yield from pq.read_table(path, columns=["raw_content"]).column(0).to_pylist()


def main(arguments: list[str]) -> int:
    """Prints the tables; returns the exit code."""
    data = Path(os.environ.get("SHARED_DATA", "../shared/data"))
    if not (data / "lid").is_dir():
        print(f"{data / 'lid'}: no such folder; the test data is needed, SHARED_DATA names its folder")
        return 0
    model = Path(arguments[0]) if arguments else default_model()
    whole, part = LanguageIdentifier(model, whole=True), LanguageIdentifier(model)
    print(f"accuracy of {model.name}")
    for name, rows in labelled(data / "lid").items():
        total, right = Counter(language for language, _ in rows), Counter[str]()
        right.update(language for language, text in rows if whole.predict(text)[0] == language)
        print(f"  {name:<9} {right.total() / total.total():7.2%} of {total.total():,}")
        print("   ", ", ".join(f"{language} {right[language] / total[language]:.1%}" for language in sorted(total)))

    segments = sorted((data / "crawl" / "segments").glob("*.warc.wet.gz"))
    sets = {"pages": list(pages(segments))}
    sets |= {f"documents, dedup.keep={keep}": list(deduplicated(segments, keep)) for keep in ("first", "none")}
    print(f"the first {PART} characters where they score {CLEAR} or more, beside the whole text")
    library = fasttext.load_model(str(model))
    whole.predict("compiles")
    lowest = 1.0
    for name, texts in sets.items():
        answers, seconds = [], []
        for predict in (lambda text: library.predict(text.replace("\n", "")), whole.predict, part.predict):
            start = time.process_time()
            answers.append([predict(text) for text in texts])
            seconds.append(time.process_time() - start)
        theirs = [labels[0].removeprefix("__label__") for labels, _ in answers.pop(0)]
        assert theirs == [language for language, _ in answers[0]]
        decisions = [[(language, score >= THRESHOLD) for language, score in found] for found in answers]
        same = sum(a == b for a, b in zip(*decisions, strict=True))
        lowest = min(lowest, same / len(texts))
        size = sum(len(text.encode()) for text in texts) / 1e6
        print(f"  {name:<29} {same} of {len(texts)} agree ({same / len(texts):.2%}); {size:.1f} MB,", end=" ")
        rates = " MB/s, ".join(f"{name} {size / s:.1f}" for name, s in zip(("library", "whole", "part"), seconds, strict=True))
        print(f"{rates} MB/s; library / whole {seconds[0] / seconds[1]:.2f}, whole / part {seconds[1] / seconds[2]:.2f}")
    print(machine())
    return 0 if lowest >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
