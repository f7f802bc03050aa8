"""The rules on texts and the replacement of addresses, from the command line to the corpus, for the crawl and for a source."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from road import run_bad, run_good

from pipeline.outputs import read_json

QUESTION = "Which of the following planets is the largest one in the whole solar system that we live in?"


def documents() -> dict[str, str]:
    """English texts by what is wrong with them."""
    letter = random.Random(1).choice
    words = ["".join(letter("abcdefghijklmnopqrstuvwxyz") for _ in range(6)) for _ in range(900)]

    def text(number: int) -> str:
        some = words[80 * number : 80 * number + 80]
        return "The start of it.\n" + "\n".join(f"{' '.join(some[n : n + 10])}." for n in range(0, 80, 10))

    return {
        "good": text(0),
        "contaminated": f"{text(1)}\nA quiz: {QUESTION.lower()}",
        "repeated": text(2) + "\nThe same line of it again and again, as we have it." * 8,
        "unended": text(3).replace(".", ""),
        "person": f"{text(4)}\nWrite to jane.doe@mail.example.co.uk, 10.1.2.3, or call +49 30 1234 5678 for the rest of it.",
    }


@pytest.mark.slow
def test_rules_and_addresses_from_the_crawl_to_the_corpus(shared_data: Path, tmp_path: Path) -> None:
    crawl, evaluations = tmp_path / "crawl.jsonl", tmp_path / "evaluations.jsonl"
    rows = [{"text": f"title\n{text}", "url": f"http://x.example/{name}"} for name, text in documents().items()]
    crawl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluations.write_text(json.dumps({"question": QUESTION}) + "\n")
    out = tmp_path / "out"
    shared = [
        "crawl=local",
        f"crawl.files=[{crawl}]",
        f"lm.dir={shared_data / 'lm'}",
        "near.threshold=null",
        "language.threshold=0",
    ]
    rules = ["quality.rules=[evaluations,gopher,fineweb]", "quality.languages=[]", f"quality.evaluations=[{evaluations}]"]
    assert "quality.evaluations is empty" in run_bad("mine", out, *shared, "quality.rules=[evaluations]")
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "regroup"):
        run_good(stage, out, *shared, *rules, "dedup.keep=first", "privacy.replace=[email,ip,phone]", "max_removed=1")
    dropped = read_json(out / "records/mine.json")["result"]["statistics"]["documents"]["dropped"]
    reasons = {reason: n for reason, n in dropped.items() if n}
    assert reasons == {"evaluation_set": 1, "fineweb_ended_lines": 1}  # the repeated lines went as duplicates
    result = read_json(out / "records/regroup.json")["result"]
    assert result["replaced"] == {"email": 1, "ip": 1, "phone": 1}
    rows = [row for path in (out / "corpus").glob("*/*/*.parquet") for row in pq.read_table(path).to_pylist()]
    corpus = {row["url"].rpartition("/")[2]: row for row in rows}
    assert sorted(corpus) == ["good", "person", "repeated"]
    last = corpus["person"]["raw_content"].splitlines()[-1]
    assert last == "Write to email@example.com, 192.0.2.1, or call 555-0100 for the rest of it."
    assert all(row["length"] == len(row["raw_content"]) for row in corpus.values())


@pytest.mark.slow
def test_rules_and_addresses_of_a_source(tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for name, text in documents().items():
        (books / f"{name}.txt").write_text(text)
    out = tmp_path / "out"
    run_good(
        *("sources", out, f"sources.files={{books: [{books}]}}", "sources.quality={books: [gopher, fineweb]}"),
        *("privacy.replace=[email]", "max_removed=1"),
    )
    counts = read_json(out / "records/sources.json")["result"]["statistics"]["books"]
    reasons = {reason: n for reason, n in counts["documents"]["dropped"].items() if n}
    assert reasons == {"gopher_repeated_lines": 1, "fineweb_ended_lines": 1}
    assert counts["replaced"] == {"email": 1}
    texts = [
        t for path in (out / "sources/books").glob("*.parquet") for t in pq.read_table(path).column("raw_content").to_pylist()
    ]
    assert len(texts) == 3
    assert any("email@example.com, 10.1.2.3" in text for text in texts)
