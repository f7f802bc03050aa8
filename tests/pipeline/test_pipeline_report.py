"""The summary and the report of a run of the data stage that is not the demo."""

import pytest
from crawls import prose
from report_page import read_page
from wet_files import write_wet

from pipeline.__main__ import main
from pipeline.page_road import find_pages

pytestmark = pytest.mark.slow
BEFORE = "stages=[fetch,hash,dedup,lm,mine,near,regroup,report]"


def test_numbers_of_every_step_are_shown(tmp_path, capsys):
    """Models of text with a broken byte, near-duplicates, an earlier run; then the same corpus from its metadata."""
    (tmp_path / "de.txt").write_bytes("\n\n".join(["\n".join(prose("de", n, 6)) for n in range(60)]).encode() + b"\n\xff\n")
    pages = [(f"http://x.example/{n}", "x", [" ".join(prose("de", 100 + n, 30))]) for n in range(12)]
    twin = ("http://x.example/twin", "x", [pages[5][2][0] + " Ende."])
    write_wet(tmp_path / "a.warc.wet.gz", pages[:4])
    write_wet(tmp_path / "b.warc.wet.gz", [*pages, twin])
    common = ["lm.vocab_size=300", "lm.min_bytes=1000", "dedup.partitions=2", "near.partitions=2", "executor.workers=1"]
    before, out, again = tmp_path / "before", tmp_path / "out", tmp_path / "again"
    for stage in ("fetch", "hash"):
        assert main([stage, f"crawl.files=[{tmp_path}/a.warc.wet.gz]", f"out={before}", *common]) == 0
    more = [f"crawl.files=[{tmp_path}/b.warc.wet.gz]", f"lm.text=[{tmp_path}/de.txt]", f"dedup.seen=[{before}]"]
    assert main(["all", BEFORE, *more, "near.threshold=0.8", f"out={out}", *common]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "13, 13 different (4 in earlier runs), 9 kept" in shown
    assert "of lm.text: undecodable 1" in shown
    tables = read_page((out / "report.html").read_text(encoding="utf-8")).tables
    assert ["of these in earlier runs", "4", "30.8 %"] in tables["duplicated"]
    assert ["lm.text", "bad text", "undecodable", "1"] in tables["bad-input"]
    assert ["compared", "9"] in tables["near-duplicates"]
    assert tables["language-models"][1][:2] == ["de", "60"]
    [seen] = find_pages(out, "http://x.example/0")
    assert [line.why for line in seen.lines] == ["earlier_run"] and "earlier run" in seen.lines[0].reason
    [near] = find_pages(out, "http://x.example/twin")
    assert near.outcome == "near_duplicate" and near.steps[-1][1].endswith("same as http://x.example/5")

    assert main(["fetch", f"crawl.files=[{tmp_path}/b.warc.wet.gz]", f"out={again}", *common]) == 0
    write_wet(tmp_path / "b.warc.wet.gz", pages[:-1])
    metadata = f"regenerate.metadata={out}/mine/metadata"
    stages = "stages=[fetch,regenerate,regroup,report]"
    files = f"crawl.files=[{tmp_path}/b.warc.wet.gz]"
    assert main(["all", stages, files, metadata, "max_bad_fraction=0.5", f"out={again}", *common]) == 0
    assert "page_missing 2" in " ".join(capsys.readouterr().out.split())
    tables = read_page((again / "report.html").read_text(encoding="utf-8")).tables
    assert ["crawl", "bad records", "page_missing", "2"] in tables["bad-input"]
