import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ccnet import corpus
from ccnet.buckets import bucket
from ccnet.corpus import read_corpus, regroup
from ccnet.schema import DOCUMENT

CUTOFFS = (300.0, 500.0)
BUCKETS = ("head", "middle", "tail", "all")


def document(number, language, perplexity):
    text = f"Dokument № {number}\n" * (1 + number % 5)
    return {
        "url": f"http://x.example/{number}",
        "date_download": "2024-05-18T01:58:10Z",
        "digest": f"sha1:{number}",
        "length": len(text),
        "nlines": text.count("\n") + 1,
        "source_domain": "x.example",
        "title": f"Title {number}",
        "raw_content": text,
        "cc_segment": "s",
        "original_nlines": 10,
        "original_length": 1000,
        "line_ids": list(range(text.count("\n") + 1)),
        "language": language,
        "language_score": 0.99,
        "perplexity": perplexity,
        "bucket": None,
    }


def write_part(path, documents, row_group_size=3):
    """As `filter_segment` writes: by language, no row group with two of them."""
    with pq.ParquetWriter(path, DOCUMENT) as writer:
        for language in sorted({row["language"] for row in documents}):
            rows = [row for row in documents if row["language"] == language]
            writer.write_table(pa.Table.from_pylist(rows, DOCUMENT), row_group_size)
    return path


@pytest.fixture
def crawl(tmp_path):
    """Four parts, one of them empty and one without German; and all documents."""
    documents = [document(n, ("en", "de", "ru")[n % 3], None if n % 3 == 2 else 100.0 + n * 97 % 600) for n in range(60)]
    groups = [documents[:20], [], [row for row in documents[20:40] if row["language"] != "de"], documents[40:]]
    parts = [write_part(tmp_path / f"part{n}", group) for n, group in enumerate(groups)]
    return parts, [row for group in groups for row in group]


def targets_in(folder):
    folder.mkdir(exist_ok=True)
    return {name: folder / name for name in BUCKETS}


@pytest.mark.parametrize(("language", "cutoffs"), [("en", CUTOFFS), ("de", CUTOFFS), ("ru", None), ("en", None)])
def test_every_document_of_the_language_is_in_its_bucket_in_crawl_order(crawl, tmp_path, language, cutoffs):
    parts, documents = crawl
    targets = targets_in(tmp_path / "corpus")
    counts = regroup(parts, language, cutoffs, targets)
    expected = {name: [] for name in BUCKETS}
    for row in documents:
        if row["language"] == language:
            name = bucket(row["perplexity"], cutoffs)
            expected[name].append({**row, "bucket": name})
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


def test_small_parts_make_large_row_groups(crawl, tmp_path, monkeypatch):
    parts, _ = crawl
    targets = targets_in(tmp_path / "corpus")
    regroup(parts, "ru", None, targets)
    assert pq.ParquetFile(targets["all"]).num_row_groups == 1
    monkeypatch.setattr(corpus, "ROW_GROUP_BYTES", 200)
    small = targets_in(tmp_path / "small")
    regroup(parts, "ru", None, small)
    file = pq.ParquetFile(small["all"])
    texts = [file.read_row_group(n).column("raw_content").to_pylist() for n in range(file.num_row_groups)]
    *full, _ = [sum(len(text.encode()) + 9 for text in group) for group in texts]  # in memory, with offsets, at most
    assert len(full) >= 2 and min(full) >= 200
    assert pq.read_table(small["all"]).equals(pq.read_table(targets["all"]))


def test_the_same_bytes_again(crawl, tmp_path):
    parts, _ = crawl
    for folder in ("1", "2"):
        regroup(parts, "en", CUTOFFS, targets_in(tmp_path / folder))
    for name in ("head", "middle", "tail"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_language_that_is_not_there(crawl, tmp_path):
    parts, _ = crawl
    targets = targets_in(tmp_path / "corpus")
    assert regroup(parts, "fr", CUTOFFS, targets) == {}
    assert regroup([], "en", CUTOFFS, targets) == {}
    assert list((tmp_path / "corpus").iterdir()) == []


def test_read_corpus(crawl, tmp_path, monkeypatch):
    parts, documents = crawl
    targets = targets_in(tmp_path / "corpus")
    regroup(parts, "ru", None, targets)
    monkeypatch.setattr(corpus, "BATCH", 7)
    batches = list(read_corpus([targets["all"], targets["all"]], ["raw_content", "digest"]))
    assert all(0 < batch.num_rows <= 7 and batch.schema.names == ["raw_content", "digest"] for batch in batches)
    russian = [{k: row[k] for k in ("raw_content", "digest")} for row in documents if row["language"] == "ru"]
    assert [row for batch in batches for row in batch.to_pylist()] == russian * 2
    assert list(read_corpus([], ["url"])) == []


def test_datasets_reads_the_corpus(crawl, tmp_path):
    parts, documents = crawl
    targets = targets_in(tmp_path / "corpus")
    regroup(parts, "ru", None, targets)
    loaded = datasets.load_dataset("parquet", data_files=str(targets["all"]), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["line_ids"] == [row["line_ids"] for row in documents if row["language"] == "ru"]
    assert loaded.column_names == DOCUMENT.names
