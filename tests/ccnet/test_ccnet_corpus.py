import gzip
import hashlib
import json
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawls import open_marks
from hypothesis import given, settings
from hypothesis import strategies as st

from ccnet import corpus
from ccnet.buckets import bin_of, bucket
from ccnet.corpus import CorpusRules, MinedSegment, judge_segment, regroup
from ccnet.filter import Rules, filter_segment
from ccnet.language import default_model
from ccnet.perplexity import find_models
from ccnet.schema import DOCUMENT, DROPPED, SCORED
from ccnet.stats import merge
from pipeline.tokens import documents as tokens

CUTOFFS = (300.0, 500.0)
BUCKETS = ("head", "middle", "tail", "all")
ALL = CorpusRules(threshold=0.0)


def document(number, language, perplexity, score=0.99):
    text = f"Dokument № {number}\n" * (number % 6)
    lines = text.count("\n") + 1
    return {
        "url": f"http://x.example/{number}",
        "date_download": "2024-05-18T01:58:10Z",
        "digest": f"sha1:{number}",
        "length": len(text),
        "nlines": lines,
        "source_domain": f"{number % 3}.example",
        "title": f"Title {number}",
        "raw_content": text,
        "cc_segment": "s",
        "original_nlines": 10,
        "original_length": 1000,
        "line_ids": list(range(lines)),
        "language": language,
        "language_score": score,
        "perplexity": perplexity,
        "paragraph_perplexity": perplexity and [float(np.float32(perplexity))] * lines,
    }


def write_segment(path, documents, row_group_size=3):
    """As `filter_segment` writes: by language, no row group with two of them."""
    with pq.ParquetWriter(path, SCORED) as writer:
        for language in sorted({row["language"] for row in documents}):
            rows = [row for row in documents if row["language"] == language]
            writer.write_table(pa.Table.from_pylist(rows, SCORED), row_group_size)
    return MinedSegment(path.name, path)


@pytest.fixture
def crawl(tmp_path):
    """Four segments, one of them empty and one without German; and all documents."""
    documents = [document(n, ("en", "de", "ru")[n % 3], None if n % 3 == 2 else 100.0 + n * 97 % 600) for n in range(60)]
    groups = [documents[:20], [], [row for row in documents[20:40] if row["language"] != "de"], documents[40:]]
    segments = [write_segment(tmp_path / f"segment{n}", group) for n, group in enumerate(groups)]
    return segments, [row for group in groups for row in group]


def targets_in(folder, suffix=""):
    folder.mkdir(exist_ok=True)
    return {name: folder / f"{name}{suffix}" for name in BUCKETS}


def as_written(row, name):
    """A document of the corpus."""
    return {key: value for key, value in row.items() if key in DOCUMENT.names} | {"bucket": name}


@pytest.mark.parametrize(("language", "cutoffs"), [("en", CUTOFFS), ("de", CUTOFFS), ("ru", None), ("en", None)])
def test_every_document_of_the_language_is_in_its_bucket_in_crawl_order(crawl, tmp_path, language, cutoffs):
    segments, documents = crawl
    targets = targets_in(tmp_path / "corpus")
    counts = regroup(segments, language, ALL, cutoffs, targets)
    expected = {name: [] for name in BUCKETS}
    for row in documents:
        if row["language"] == language:
            name = bucket(row["perplexity"], cutoffs)
            expected[name].append(as_written(row, name))
    for name, rows in expected.items():
        if not rows:
            assert name not in counts
            assert not targets[name].exists()
            continue
        table = pq.read_table(targets[name])
        assert table.schema.equals(DOCUMENT)
        assert table.to_pylist() == rows
        assert counts[name] == {"documents": len(rows), "chars": sum(row["length"] for row in rows)}
    assert list(counts) == [name for name in BUCKETS if name in counts]


RULES = st.builds(
    CorpusRules,
    min_length=st.integers(0, 60),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    keep=st.sampled_from([(), ("en",), ("de", "xx")]),
    rounded=st.booleans(),
)
SCORES = st.sampled_from([0.0, 0.2951, 0.3, 0.494999, 0.495, 0.4951, 0.5, 0.995, 1.0])
PERPLEXITIES = st.sampled_from([None, 299.94, 299.96, 300.0, 499.949, 499.951, 800.25])
ROWS = st.lists(st.tuples(st.sampled_from(["en", "de", "ru"]), PERPLEXITIES, SCORES, st.booleans()), max_size=12)


@settings(deadline=None, max_examples=40)
@given(RULES, st.lists(ROWS, min_size=1, max_size=3))
def test_rules_against_one_document_after_the_other(tmp_path_factory, rules, crawl):
    """Judged and written, in both rounds the same; the counts of the first are those of the second."""
    folder = tmp_path_factory.mktemp("rules")
    segments, order, near = [], [], []
    for number, rows in enumerate(crawl):
        documents = [document(20 * number + n, *values[:3]) | {"near": values[3]} for n, values in enumerate(rows)]
        documents.sort(key=lambda row: row["language"])
        near += [{"segment": str(number), "row": n} for n, row in enumerate(documents) if row["near"]]
        write_segment(folder / str(number), [{k: v for k, v in row.items() if k != "near"} for row in documents])
        segments.append(MinedSegment(str(number), folder / str(number), folder / "near"))
        order += documents
    pq.write_table(pa.Table.from_pylist(near, pa.schema({"segment": pa.string(), "row": pa.int64()})), folder / "near")

    expected, reasons = {}, Counter()
    for row in order:
        score, perplexity = row["language_score"], row["perplexity"]
        if rules.rounded:
            score, perplexity = round(score, 2), perplexity and round(perplexity, 1)
        if row["length"] < rules.min_length:
            reasons["short_after_dedup"] += 1
        elif score < rules.threshold:
            reasons["language_score"] += 1
        elif rules.keep and row["language"] not in rules.keep:
            reasons["language_not_kept"] += 1
        elif row["near"]:
            reasons["near_duplicate"] += 1
        else:
            name = bucket(perplexity, CUTOFFS)
            kept = as_written(row | {"language_score": score, "perplexity": perplexity}, name)
            expected.setdefault((row["language"], name), []).append(kept)

    counts = merge(judge_segment(s, rules, folder / f"{s.name}.dropped") for s in segments)
    written = {}
    for language in ("de", "en", "ru"):
        targets = targets_in(folder / language)
        for name, sizes in regroup(segments, language, rules, CUTOFFS, targets).items():
            written[language, name] = pq.read_table(targets[name]).to_pylist()
            assert sizes["documents"] == len(written[language, name])
    assert written == expected
    assert {reason: n for reason, n in counts["documents"]["dropped"].items() if n} == reasons
    assert counts["documents"]["kept"] == sum(map(len, expected.values()))
    for measure in ("documents", "chars", "lines"):
        assert counts[measure]["in"] == counts[measure]["kept"] + sum(counts[measure]["dropped"].values())
    assert counts["bytes"].keys() == counts["languages"].keys() == {language for language, _ in expected}
    assert all(size > 0 for size in counts["bytes"].values())
    scored = [(lang, row) for (lang, name), rows in expected.items() for row in rows if name != "all"]
    histogram = Counter((lang, str(bin_of(row["perplexity"]))) for lang, row in scored)
    assert {(lang, n): count for lang, bins in counts["perplexity"].items() for n, count in bins.items()} == histogram
    gone = [pq.read_table(folder / f"{s.name}.dropped") for s in segments]
    assert all(table.schema.equals(DROPPED) for table in gone)
    assert Counter(reason for table in gone for reason in table.column("reason").to_pylist()) == reasons


def test_the_bytes_of_a_language_follow_its_text(tmp_path):
    """By them segments are grouped: near to the text of all that stays."""
    documents = [document(n, ("en", "de")[n % 2], 300.0 + n) for n in range(40)]
    for row in documents:
        row["raw_content"] = row["title"] + "ß" * 1000 * (1 + len(row["line_ids"]))
        row["length"] = len(row["raw_content"])
    segment = write_segment(tmp_path / "segment", documents, row_group_size=100)
    for rules in (ALL, CorpusRules(threshold=0.0, min_length=4000)):
        rows = [row for row in documents if row["length"] >= rules.min_length]
        true = {name: sum(len(r["raw_content"].encode()) for r in rows if r["language"] == name) for name in ("de", "en")}
        assert judge_segment(segment, rules)["bytes"] == pytest.approx(true, rel=0.1)


def test_small_segments_make_large_row_groups(crawl, tmp_path, monkeypatch):
    segments, _ = crawl
    targets = targets_in(tmp_path / "corpus")
    regroup(segments, "ru", ALL, None, targets)
    assert pq.ParquetFile(targets["all"]).num_row_groups == 1
    monkeypatch.setattr(corpus, "ROW_GROUP_BYTES", 200)
    small = targets_in(tmp_path / "small")
    regroup(segments, "ru", ALL, None, small)
    file = pq.ParquetFile(small["all"])
    texts = [file.read_row_group(n).column("raw_content").to_pylist() for n in range(file.num_row_groups)]
    *full, _ = [sum(len(text.encode()) + 9 for text in group) for group in texts]  # in memory, with offsets, at most
    assert len(full) >= 2 and min(full) >= 200
    assert pq.read_table(small["all"]).equals(pq.read_table(targets["all"]))


@pytest.mark.parametrize("layout", ["parquet", "ccnet"])
def test_the_same_bytes_again(crawl, tmp_path, layout):
    segments, _ = crawl
    for folder in ("1", "2"):
        regroup(segments, "en", ALL, CUTOFFS, targets_in(tmp_path / folder), layout)
    for name in ("head", "middle", "tail"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_language_that_is_not_there(crawl, tmp_path):
    segments, _ = crawl
    targets = targets_in(tmp_path / "corpus")
    assert regroup(segments, "fr", ALL, CUTOFFS, targets) == {}
    assert regroup([], "en", ALL, CUTOFFS, targets) == {}
    assert regroup(segments, "en", CorpusRules(threshold=1.0), CUTOFFS, targets) == {}
    assert list((tmp_path / "corpus").iterdir()) == []


def test_files_as_ccnet_has_them(crawl, tmp_path):
    segments, documents = crawl
    documents = [{**row, "raw_content": row["raw_content"] + "“\u2028”"} for row in documents]
    segments = [write_segment(tmp_path / "odd", documents)]
    for language in ("en", "ru"):
        targets = targets_in(tmp_path / language, ".json.gz")
        regroup(segments, language, CorpusRules(rounded=True), CUTOFFS, targets, "ccnet")
        found = []
        for name in BUCKETS:
            if targets[name].exists():
                lines = gzip.decompress(targets[name].read_bytes()).decode().split("\n")
                assert lines.pop() == ""
                rows = [json.loads(line) for line in lines]
                keys = [key for key in DOCUMENT.names if language == "en" or key != "perplexity"]
                assert all(list(row) == keys and row["bucket"] == name for row in rows)
                found += rows
        assert {row["digest"] for row in found} == {row["digest"] for row in documents if row["language"] == language}
        for row in found:
            [original] = [document for document in documents if document["digest"] == row["digest"]]
            assert all(original[key] == row[key] for key in keys if key != "bucket")


@pytest.mark.parametrize("layout", ["parquet", "ccnet"])
def test_both_layouts_are_read_for_tokens(crawl, tmp_path, monkeypatch, layout):
    segments, documents = crawl
    targets = targets_in(tmp_path / "corpus", ".json.gz" if layout == "ccnet" else ".parquet")
    regroup(segments, "ru", ALL, None, targets, layout)
    monkeypatch.setattr(tokens, "BATCH", 7)
    parts = tokens.slices(str(targets["all"]), 1 << 30) * 2
    batches = [batch for part in parts for batch in tokens.read_documents(part)]
    assert all(0 < batch.num_rows <= 7 and set(batch.schema.names) == {"raw_content", "digest"} for batch in batches)
    russian = [{k: row[k] for k in ("raw_content", "digest")} for row in documents if row["language"] == "ru"]
    assert [{k: row[k] for k in ("raw_content", "digest")} for batch in batches for row in batch.to_pylist()] == russian * 2


def test_datasets_reads_the_corpus(crawl, tmp_path):
    segments, documents = crawl
    targets = targets_in(tmp_path / "corpus")
    regroup(segments, "ru", ALL, None, targets)
    loaded = datasets.load_dataset("parquet", data_files=str(targets["all"]), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["line_ids"] == [row["line_ids"] for row in documents if row["language"] == "ru"]
    assert loaded.column_names == DOCUMENT.names


def test_the_gold_documents_of_ccnet(shared_data, tmp_path):
    """cc_net 1.0 on the same two segments: every document, its lines, text, language, perplexity and bucket."""
    sources = sorted((shared_data / "crawl" / "segments").glob("seg-0000[01].warc.wet.gz"))
    with gzip.open(shared_data / "gold" / "ccnet_segments_0_1.jsonl.gz", "rt", encoding="utf-8") as lines:
        gold = {(row["segment"], row["url"], row["digest"]): row for row in map(json.loads, lines)}
    assert len(gold) == 803
    published = {"en": (340, 520), "de": (370, 590)}  # with the models of CCNet
    models, segments = find_models(shared_data / "lm"), []
    for number, marks in enumerate(open_marks(sources, tmp_path / "marks", "none")):
        path = tmp_path / str(number)
        given = {"marks": marks, "language_model": default_model(), "rules": Rules(), "models": models, "whole": True}
        filter_segment(str(sources[number]), path, path.with_suffix(".minified"), **given)
        segments.append(MinedSegment(path.name, path))
    rules = CorpusRules(rounded=True)
    counts = merge(judge_segment(segment, rules) for segment in segments)
    assert counts["documents"]["kept"] == len(gold)
    found = {}
    for language in counts["languages"]:
        targets = targets_in(tmp_path / language, ".json.gz")
        for name in regroup(segments, language, rules, published.get(language), targets, "ccnet"):
            with gzip.open(targets[name], "rt", encoding="utf-8") as lines:
                found |= {(row["cc_segment"], row["url"], row["digest"]): row for row in map(json.loads, lines)}
    assert found.keys() == gold.keys()
    for key, row in found.items():
        row["raw_content_sha1"] = hashlib.sha1(row["raw_content"].encode()).hexdigest()
        del gold[key]["segment"]
        assert {name: row.get(name) for name in gold[key]} == gold[key]
