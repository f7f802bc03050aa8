"""references as a stage: its five rounds on real pages, and what regroup makes of the scores."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from road import run_bad, run_good

from pipeline.figures import Run, figures
from pipeline.outputs import read_json

SEGMENTS = ("seg-00000.warc.wet.gz", "seg-00001.warc.wet.gz")
DUMPS = "text/*wiki*.bz2"


@pytest.mark.slow
def test_pages_unlike_those_of_cited_hosts_go(shared_data: Path, tmp_path: Path) -> None:
    crawl = [
        "crawl=local",
        "crawl.files=[" + ",".join(str(shared_data / "crawl/segments" / name) for name in SEGMENTS) + "]",
        f"lm.dir={shared_data / 'lm'}",
        "near.threshold=null",
    ]
    like = [f"references.dumps=[{shared_data / DUMPS}]", "references.match=host"]
    for stage in ("fetch", "hash", "dedup", "lm", "mine"):
        run_good(stage, tmp_path, *crawl)
    assert "run it first" in run_bad("regroup", tmp_path, *crawl, *like)
    run_good("references", tmp_path, *crawl, *like)
    run_good("regroup", tmp_path, *crawl, *like)
    found = read_json(tmp_path / "records/references.json")
    assert found["result"]["found"]["en"]["cited"] > 40
    assert list(found["result"]["models"]) == ["en"]
    threshold = found["result"]["models"]["en"]["best"]

    scores = {}
    for path in sorted((tmp_path / "mine").glob("*.parquet")):
        table = pq.read_table(path, columns=["digest", "language"])
        scored = pq.read_table(tmp_path / "references" / path.name).column("reference_score")
        scores |= dict(zip(table.column("digest").to_pylist(), scored.to_pylist(), strict=True))
        assert [score is not None for score in scored.to_pylist()] == [
            name == "en" for name in table.column("language").to_pylist()
        ]
    corpus = pa.concat_tables(pq.read_table(path) for path in (tmp_path / "corpus").glob("*/*/*.parquet"))
    kept = dict(zip(corpus.column("digest").to_pylist(), corpus.column("reference_score").to_pylist(), strict=True))
    assert all(scores[digest] == score for digest, score in kept.items())
    assert all(score is None or score >= threshold for score in kept.values())
    funnel = read_json(tmp_path / "records/regroup.json")["result"]["funnel"]["documents"]
    assert funnel["dropped"]["unlike_references"] > 0
    assert funnel["kept"] == len(kept)

    sections = figures(tmp_path, Run(tmp_path).read())
    [figure] = next(section.figures for section in sections if section.name == "references")
    assert figure.rows[0][0] == 0.05 and len(figure.rows) == len(found["result"]["models"]["en"]["curve"]) == 19
    assert f"{threshold} is the threshold" in figure.note
    run_good("report", tmp_path, *crawl, *like, "report.samples=0")
    assert "Pages like cited ones, en" in (tmp_path / "report.html").read_text()

    run_good("regroup", tmp_path, *crawl, *like, "references.threshold=0.9", "overwrite=true")
    stricter = read_json(tmp_path / "records/regroup.json")["result"]["funnel"]["documents"]
    assert stricter["dropped"]["unlike_references"] > funnel["dropped"]["unlike_references"]
    assert read_json(tmp_path / "records/references.json")["digest"] == found["digest"]
    run_good("regroup", tmp_path, *crawl, "overwrite=true")  # without it the corpus has no such column
    path = next((tmp_path / "corpus").glob("*/*/*.parquet"))
    assert "reference_score" not in pq.read_schema(path).names
