"""Sources and the mixture, through the real command line."""

import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_page import read_page
from road import digest, run, run_bad, run_good, run_killed

from pipeline.outputs import read_json
from pipeline.tokens.shards import Shard

pytestmark = pytest.mark.slow
WORDS = ["river", "bread", "library", "weather", "morning", "window", "garden", "paper", "number", "engine"]


def write_source(path, documents, seed):
    words = random.Random(seed)
    texts = [" ".join(words.choice(WORDS) for _ in range(words.randint(1, 400))) for _ in range(documents)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=50)
    return texts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Everything up to the tokenizer, and the files of two sources."""
    folder = tmp_path_factory.mktemp("sources")
    for stage in ("fetch", "hash", "dedup", "lm", "mine", "near", "regroup", "tokenizer"):
        run_good(stage, folder / "out")
    for number in range(3):
        write_source(folder / f"books-{number}.parquet", 120, number)
    write_source(folder / "wiki.parquet", 40, 9)
    return folder


def with_sources(folder):
    return [
        f"tokenize.sources={{books: [{folder}/books-*.parquet], wiki: [{folder}/wiki.parquet]}}",
        "tokenize.shard_bytes=65536",
        "mixture.shares={crawl: 0.5, books: 0.3, wiki: 0.2}",
    ]


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared / "out", tmp_path / "out")
    return tmp_path / "out"


def result(out, stage):
    return read_json(out / "records" / f"{stage}.json")["result"]


def test_shards_by_source_the_same_for_any_number_of_workers_and_after_kills(prepared, copy, tmp_path):
    more = with_sources(prepared)
    run_good("tokenize", copy, *more, "executor.workers=1")
    said = result(copy, "tokenize")
    assert list(said["sources"]) == ["crawl", "books", "wiki"]
    for split in ("train", "validation"):
        assert said[split]["tokens"] == sum(source[split]["tokens"] for source in said["sources"].values())
        for source, splits in said["sources"].items():
            assert all(prefix.startswith(f"tokens/{split}/{source}/") for prefix in splits[split]["shards"])
            shards = [Shard(copy / prefix) for prefix in splits[split]["shards"]]
            assert sum(shard.size for shard in shards) == splits[split]["tokens"]
            assert sum(map(len, shards)) == splits[split]["documents"]
    books = said["sources"]["books"]
    assert books["train"]["documents"] + books["validation"]["documents"] == 360
    assert len(books["train"]["shards"]) > 3  # files are cut
    other = tmp_path / "other"
    shutil.copytree(prepared / "out", other)
    for seconds in (0.8, 1.1):
        run_killed("tokenize", other, seconds, *more)
    run_good("tokenize", other, *more, "executor.workers=3")
    assert digest("tokenize", other) == digest("tokenize", copy)
    before = digest("tokenize", copy)
    again = run("tokenize", copy, *more)
    assert again.returncode == 0 and "units" not in again.stderr  # planned anew, nothing done
    assert digest("tokenize", copy) == before


def test_what_sources_wrote_becomes_shards(copy, tmp_path):
    """The stage's documents are a source of the tokenizer's sample and of the shards, under its name."""
    (tmp_path / "books").mkdir()
    words = random.Random(1)
    for number in range(200):
        (tmp_path / "books" / f"{number}.txt").write_text(" ".join(words.choice(WORDS) for _ in range(300)))
    more = [f"sources.files.books=[{tmp_path}/books]", "mixture.shares={crawl: 0.5, books: 0.5}", "overwrite=true"]
    assert "run it first" in run_bad("tokenize", copy, *more)
    for stage in ("sources", "tokenizer", "tokenize"):
        run_good(stage, copy, *more)
    said = result(copy, "tokenize")["sources"]
    assert list(said) == ["crawl", "books"]
    assert sum(said["books"][split]["documents"] for split in said["books"]) == 200
    assert {row["source"] for row in result(copy, "tokenizer")["fertility"]} == {"crawl", "books"}


def test_only_what_is_new_is_done(prepared, copy, tmp_path):
    write_source(tmp_path / "a.parquet", 60, 1)
    more = [f"tokenize.sources={{own: [{tmp_path}/*.parquet]}}"]
    run_good("tokenize", copy, *more)
    first = result(copy, "tokenize")["sources"]
    write_source(tmp_path / "b.parquet", 60, 2)
    done = run("tokenize", copy, *more)
    assert done.returncode == 0 and "tokenize: 1 units" in done.stderr
    second = result(copy, "tokenize")["sources"]
    assert second["crawl"] == first["crawl"]
    assert second["own"]["train"]["shards"][:1] == first["own"]["train"]["shards"]


def test_a_mixture_is_trained_as_planned_and_shown(prepared, copy):
    more = [*with_sources(prepared), "mixture.epochs={wiki: 0.1}"]
    run_good("tokenize", copy, *more)
    tokens = {source: splits["train"]["tokens"] for source, splits in result(copy, "tokenize")["sources"].items()}
    run_good("train", copy, *more)
    mixture = result(copy, "train")["mixture"]
    samples = 30 * 512 // 64
    wiki = -(-round(0.1 * tokens["wiki"]) // 64)
    assert mixture["wiki"]["samples"] == wiki < 0.2 * samples
    assert abs(mixture["wiki"]["ends"] - wiki / 0.2) <= 6
    assert {source: taken["share"] for source, taken in mixture.items()} == {"books": 0.3, "crawl": 0.5, "wiki": 0.2}
    assert sum(taken["samples"] for taken in mixture.values()) == samples
    assert mixture["crawl"]["samples"] / mixture["books"]["samples"] == pytest.approx(5 / 3, abs=0.1)
    job = read_json(copy / "train/job.json")
    assert list(job["train_shards"]) == ["crawl", "books", "wiki"] == list(job["validation_shards"])
    run_good("report", copy, *more)
    tables = read_page((copy / "report.html").read_text()).tables
    shards = {(row[0], row[1]): row for row in tables["tokens"]}
    for split in ("train", "validation"):
        counts = result(copy, "tokenize")["sources"]["wiki"][split]
        row = shards["wiki", split]
        assert (row[2], row[5]) == (f"{counts['documents']:,}", f"{counts['tokens']:,}")
    [whole] = [row for row in result(copy, "tokenizer")["fertility"] if row["language"] == "all"]
    row = next(row for row in tables["fertility"] if row[0] == f"{whole['source']} all")
    assert (row[1], float(row[4])) == (f"{whole['documents']:,}", pytest.approx(whole["chars_per_token"], abs=0.001))
    row = next(row for row in tables["mixture"] if row[0] == "wiki")
    assert row[1:4] == ["20.0 %", f"{100 * wiki / samples:.1f} %", str(wiki)]
    assert "mixture.shares is" in run_bad("train", copy, *with_sources(prepared), "mixture.shares.wiki=0.3")


def test_mistakes_are_one_clear_line(prepared, copy, tmp_path):
    own = "tokenize.sources={{own: [{}]}}".format
    assert "nowhere.parquet: no such file" in run_bad("tokenize", copy, own(tmp_path / "nowhere.parquet"))
    (tmp_path / "prose.parquet").write_text("no such thing")
    assert "prose.parquet: no Parquet file" in run_bad("tokenize", copy, own(tmp_path / "prose.parquet"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    assert "source own is empty: none of its files has a text" in run_bad("tokenize", copy, own(tmp_path / "empty.parquet"))
    run_good("tokenize", copy, "overwrite=true")
    line = run_bad("train", copy, "mixture=llama")
    assert "no tokens of arxiv, books, c4, github, stackexchange, wikipedia (but of crawl)" in line
    line = run_bad("train", copy, "mixture.epochs.crawl=0.01")
    assert "train.steps=30: the run takes 240 samples, the mixture has" in line and "crawl of" in line
    assert "mixture.epochs.crawl=0.0: choose a positive number" in run_bad("train", copy, "mixture.epochs.crawl=0")
