"""The command line and its configuration: every mistake is one line that names the key."""

import re

import pytest

from pipeline.__main__ import main
from pipeline.config import describe, flatten, load
from pipeline.stages import SPECS


def test_defaults_and_overrides():
    config = load(["dedup.keep=none", "language.keep=[en,de]", "zero=2", "crawl=demo"])
    assert (config.dedup.keep, config.language.keep, config.zero.stage, config.crawl.kind) == (
        "none",
        ["en", "de"],
        2,
        "demo",
    )
    assert load([]).dedup.keep == "first"


def test_an_experiment_gives_way_to_the_command_line():
    config = load(["experiment=demo", "crawl=local", "crawl.files=[a.wet]"])
    assert config.stages[0] == "fetch" and config.crawl.kind == "local" and config.crawl.files == ["a.wet"]


def test_the_preset_of_released_ccnet():
    config = load(["corpus=ccnet", "bucket.part_bytes=100000"])
    assert (config.dedup.keep, config.language.whole, config.bucket.cutoffs) == ("none", True, "released")
    assert (config.corpus.layout, config.corpus.rounded, config.bucket.part_bytes) == ("ccnet", True, 100000)
    assert load(["corpus=ccnet", "dedup.keep=first"]).dedup.keep == "first"
    assert load([]).corpus.layout == "parquet" and not load([]).language.whole


def test_mixtures_take_new_sources_and_leave_others_out():
    llama = load(["mixture=llama", "mixture.shares.c4=0", "mixture.shares.own=0.1", "mixture.epochs={own: 3}"]).mixture
    assert sum(load(["mixture=llama"]).mixture.shares.values()) == pytest.approx(1)
    assert (llama.shares["crawl"], llama.shares["c4"], llama.shares["own"]) == (0.67, 0, 0.1)
    assert (llama.epochs["github"], llama.epochs["own"]) == (0.64, 3)
    assert load([]).mixture.shares == {"crawl": 1}
    assert load(["mixture.shares={own: 1}"]).mixture.shares == {"crawl": 1, "own": 1}  # beside those of the preset
    sources = load(["tokenize.sources={books: [a.parquet, b/*.parquet]}", "tokenize.sources.wiki=[c.jsonl]"]).tokenize.sources
    assert sources == {"books": ["a.parquet", "b/*.parquet"], "wiki": ["c.jsonl"]}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dedup.kep=first", ["dedup.kep", "did you mean dedup.keep"]),
        ("dedup.keep=last", ["dedup.keep=last", "first or none"]),
        ("dedup.partitions=3", ["dedup.partitions=3", "power of 2"]),
        ("dedup.seen=[out,out]", ["dedup.seen", "name each run once"]),
        ("near.partitions=12", ["near.partitions=12", "power of 2"]),
        ("near.threshold=0.2", ["near.threshold=0.2", "0.5 to 1"]),
        ("dedup.partitions=many", ["dedup.partitions", "many"]),
        ("language.threshold=1.5", ["language.threshold=1.5"]),
        ("model=enormous", ["model/enormous", "demo"]),
        ("zero=7", ["zero/7"]),
        ("bucket.percentiles=[60,30]", ["bucket.percentiles", "rising"]),
        ("bucket.cutoffs=mine", ["bucket.cutoffs=mine", "released"]),
        ("corpus.layout=csv", ["corpus.layout=csv", "parquet or ccnet"]),
        ("corpus=wet", ["corpus/wet", "ccnet"]),
        ("max_removed=0", ["max_removed=0"]),
        ("tokenize.buckets=[top]", ["tokenize.buckets", "head"]),
        ("model.heads=5", ["5", "dim"]),
        ("executor.workers=0", ["executor.workers=0"]),
        ("out=s3://bucket/run", ["out=s3://bucket/run"]),
        ("crawl.files=[a", ["crawl.files"]),
        ("crawl.kind=web", ["crawl.kind=web", "common_crawl"]),
        ("crawl.dump=[CC-MAIN-2024-10]", ["crawl.dump", "crawl=common_crawl"]),
        ("crawl=common_crawl crawl.dump=[a,a]", ["twice"]),
        ("crawl.split_bytes=10", ["crawl.split_bytes=10"]),
        ("crawl.content=html", ["crawl.content=html", "wet or warc"]),
        ("crawl.root=/data", ["crawl.root=/data"]),
        ("crawl.connections=0", ["crawl.connections=0"]),
        ("nonsense", ["nonsense"]),
        ("mixture=gpt", ["mixture/gpt", "llama"]),
        ("mixture.shares.crawl=-1", ["mixture.shares.crawl=-1"]),
        ("mixture.shares.crawl=most", ["mixture.shares.crawl", "most"]),
        ("mixture.shares=1", ["mixture.shares"]),
        ("mixture.epochs.crawl=0", ["mixture.epochs.crawl=0", "positive"]),
        ("mixture.epochs.craw=1", ["mixture.epochs.craw=1", "mixture.shares has no such source"]),
        ("tokenize.sources.crawl=[a]", ["tokenize.sources", "crawl"]),
        ("tokenize.sources={../up: [a]}", ["tokenize.sources", "../up"]),
        ("tokenize.sources.books=[]", ["tokenize.sources.books=[]"]),
        ("tokenize.shard_bytes=1", ["tokenize.shard_bytes=1"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, words, capsys):
    assert main(["mine", *override.split(" ")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert all(word in lines[0] for word in words), lines[0]


def test_an_unknown_command(capsys):
    assert main(["mien"]) == 1
    assert "mien: no such command; there are fetch, hash" in capsys.readouterr().err


def test_every_key_has_help():
    assert all(len(text) > 5 and "\n" not in text for _, _, text in describe(load([])))


def test_stages_name_keys_that_exist():
    known = flatten(load([]))
    for spec in SPECS.values():
        for key in (*spec.keys, *spec.files, *spec.alone, *spec.choices):
            assert any(name == key or name.startswith(f"{key}.") for name in known), key
        assert all(name in SPECS for name in spec.reads)


@pytest.mark.parametrize("stage", [*SPECS, "all"])
def test_help_of_a_stage_shows_its_keys(stage, capsys):
    assert main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"python -m pipeline {stage}" in text and "out=out" in text
    if stage == "dedup":
        assert "dedup.keep=first\n      first: the first copy" in text and "train." not in text


def test_usage_lists_the_stages(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in [*SPECS, "all"])
    assert main([]) == 2


def test_what_a_stage_needs_comes_before_what_all_need():
    executor = load(["executor=slurm", "executor.stages.mine.memory=9G", "executor.resources.partition=big"]).executor
    assert (executor.needs("mine").memory, executor.needs("mine").bundle) == ("9G", 40)
    assert executor.needs("hash").memory == executor.resources.memory
    assert {executor.needs("mine").partition, executor.own_process().partition} == {"big"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("executor.kind=lsf", "executor.kind=lsf: choose from local, slurm, ray"),
        ("executor.attempts=0", "executor.attempts=0: choose 1 to 100"),
        ("executor.stages.mine.memory=8", "executor.stages.mine: memory=8: choose a number with M, G or T"),
        ("executor.stages.mine.mem=8G", "executor.stages.mine: mem: no such key"),
        ("executor.controller.minutes=x", "executor.controller: minutes: Value 'x' of type 'str' could not be converted"),
    ],
)
def test_mistakes_in_what_is_needed_are_one_line(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load([override])
