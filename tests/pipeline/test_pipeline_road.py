"""The whole road once, small: what comes out is what users are promised."""

import os
from pathlib import Path

import datasets
import pytest
import sentencepiece
import torch
from report_page import read_page
from road import ROOT, TINY, run, run_good
from transformers import AutoModelForCausalLM, AutoTokenizer

from ccnet.schema import DOCUMENT
from pipeline.config import load
from pipeline.outputs import read_json
from pipeline.training.metrics import read_metrics


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """(out, what was printed) of `all`, with `out` relative to the current folder as users have it."""
    out = tmp_path_factory.mktemp("road") / "out"
    return out, run_good("all", Path(os.path.relpath(out, ROOT)))


def result(out, stage):
    return read_json(out / "records" / f"{stage}.json")["result"]


def test_every_stage_finished_and_the_summary_fits_a_screen(road):
    out, printed = road
    assert all((out / "records" / f"{stage}.json").exists() for stage in load(TINY).stages)
    assert len(printed.splitlines()) <= 45
    for words in ("documents", "languages", "tokens", "validation", "report.html", "it writes"):
        assert words in printed


def test_a_second_run_finds_everything_done(road):
    out, _ = road
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "records" not in path.parts}
    done = run("all", out)
    assert done.returncode == 0 and "units" not in done.stderr
    assert "documents" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_corpus_is_read_with_datasets_and_its_counts_are_those_of_the_records(road):
    out, _ = road
    grouped = result(out, "regroup")
    for language, buckets in grouped["buckets"].items():
        for bucket, counts in buckets.items():
            files = str(out / "corpus" / language / bucket / "*.parquet")
            rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(out / "cache"))
            assert rows.column_names == DOCUMENT.names
            assert (len(rows), sum(rows["length"])) == (counts["documents"], counts["chars"])
            assert set(rows["language"]) == {language} and set(rows["bucket"]) == {bucket}
            if language in grouped["cutoffs"]:
                low, high = (grouped["cutoffs"][language][end] for end in ("low", "high"))
                expected = {"head": (0, low), "middle": (low, high), "tail": (high, float("inf"))}[bucket]
                assert all(expected[0] <= perplexity < expected[1] for perplexity in rows["perplexity"])
    documents = grouped["funnel"]["documents"]
    assert documents["in"] == documents["kept"] + sum(documents["dropped"].values())
    assert documents["kept"] == sum(c["documents"] for b in grouped["buckets"].values() for c in b.values())


def test_no_paragraph_is_in_the_corpus_twice(road):
    out, _ = road
    rows = datasets.load_dataset(
        "parquet", data_files=str(out / "corpus/*/*/*.parquet"), split="train", cache_dir=str(out / "cache")
    )
    lines = [line.lower() for text in rows["raw_content"] for line in text.split("\n") if line.isalpha()]
    assert lines and len(set(lines)) == len(lines)


def test_the_loss_goes_down_and_validation_improves(road):
    out, _ = road
    losses = [row["loss"] for row in read_metrics(out / "train")]
    assert losses[-1] < losses[0] - 0.5
    evaluated = result(out, "evaluate")
    assert evaluated["after"]["perplexity"] < 0.7 * evaluated["before"]["perplexity"]
    assert evaluated["before"]["tokens"] == evaluated["after"]["tokens"] > 0


def test_the_export_is_the_model_and_its_tokenizer(road):
    out, _ = road
    folder = out / result(out, "export")["folder"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / result(out, "tokenizer")["model"]))
    text = "  The quick brown fox,\n\njumps over 13 lazy dogs. Überall 漢字"
    ids = tokenizer(text)["input_ids"]
    assert ids == pieces.encode(text)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), result(out, "tokenizer")["pieces"]) and logits.isfinite().all()
    assert result(out, "export")["largest_difference"] < 1e-4
    assert model.config.bos_token_id == model.config.eos_token_id == pieces.eos_id()  # what stood before documents in training


def test_the_report_is_one_file_without_a_network(road):
    out, _ = road
    page = read_page((out / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.links and all(link.startswith("#") for link in page.links)
    documents = result(out, "regroup")["funnel"]["documents"]
    rows = {row[1]: row for row in page.tables["funnel"]}
    assert rows["the corpus"][2] == f"{documents['kept']:,}"
    assert rows["tokens to train on"][-1] == f"{result(out, 'tokenize')['train']['tokens']:,}"
