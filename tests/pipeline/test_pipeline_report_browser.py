"""The report in a real browser, on a crawl with hostile pages: figures recounted from Parquet, layout, accessibility."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from crawls import prose
from playwright.sync_api import sync_playwright
from report_page import read_page
from wet_files import write_wet

from ccnet.buckets import bin_of
from pipeline.__main__ import main
from pipeline.page_road import FinishedRun, find_pages
from pipeline.samples import chosen_segments, sample_segment

pytestmark = pytest.mark.slow
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
SETTINGS = (
    "lm.vocab_size=300",
    "lm.min_bytes=1000",
    "dedup.partitions=4",
    "executor.workers=1",
    "keep_dropped=true",
    "report.samples=20",
)
TOKENS = ("tokenizer.vocab_size=400", "tokenizer.sample_chars=100000", "tokenize.validation=0.1")
STAGES = "stages=[fetch,hash,dedup,lm,mine,regroup,tokenizer,tokenize,report]"
SCRIPT = "<script>document.title='pwned'</script>"
SHARED = f"{SCRIPT}<img src=x onerror=\"document.title='pwned'\"> shared by all hostile pages"
HOSTILE = [
    SHARED,
    "</style></title></del></table>--><svg onload=\"document.title='pwned'\">",
    '" onmouseover="document.title=\'pwned\'" x="',
    "a NUL \x00, an escape \x1b[31m, and an override \u202egnp.exe\u202c \u2066here",
    "{{ 7 * 7 }} {% include 'x' %}",
    "word " * 200_000 + "the end of a line of a megabyte",
]
ARABIC = ["الرئيسية", "تسخن الشمس مياه البحار والبحيرات فيتحول جزء منها إلى بخار لا يرى بالعين ثم يصعد إلى السماء " * 4]
CHINESE = ["首页", "太阳照在海面上，水慢慢变成看不见的水汽，升到天空中，遇冷以后又变成小水滴，聚在一起就成了云。" * 8]


def pages() -> list[tuple[str, str, list[str]]]:
    """German pages of which every second has a line of the one before, English and other ones, short and hostile ones."""
    result = []
    for n in range(40):
        shared = prose("de", 1000 + n // 2, 1)
        result.append((f"http://de{n % 3}.example/{n}", f"Seite {n}", [*shared, *prose("de", n, 4), *prose("de", n, 1)]))
    result += [(f"http://en.example/{n}", "page", prose("en", n, 6)) for n in range(12)]
    result += [(f"http://short.example/{n}", "short", ["too little"]) for n in range(5)]
    result += [("http://copy.example/", "copy", prose("en", 3, 6))]
    hostile = [
        "javascript:document.title='pwned'",
        'http://"><script>document.title="pwned"</script>/x',
        f"http://h.example/{SCRIPT}",
    ]
    result += [(url, SCRIPT, [*HOSTILE, *prose("en", 50 + n, 3)]) for n, url in enumerate(hostile)]
    return [*result, ("http://ar.example/", ARABIC[0], ARABIC), ("http://zh.example/", CHINESE[0], CHINESE)]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished run of the data stage, with the metrics of a training."""
    folder = tmp_path_factory.mktemp("browser")
    text = "\n\n".join("\n".join(prose("de", 500 + n, 6)) for n in range(60))
    (folder / "de.txt").write_text(text, encoding="utf-8")
    every = pages()
    for name, part in (("a", every[:30]), ("b", every[30:])):
        write_wet(folder / f"{name}.warc.wet.gz", part)
    out = folder / "out"
    (out / "train").mkdir(parents=True)
    check = {"validation_loss": 8.1, "validation_loss/crawl": 8.0, "validation_loss/wiki": 8.2}
    common = {"lr": 1e-3, "grad_norm": 1.0, "seconds": 1.0, "tokens_per_second": 4096.0, "mfu": 0.4, "memory": 7 << 30}
    common |= {"share/crawl": 0.75, "share/wiki": 0.25}
    rows = [
        {"step": s, "tokens": 4096 * s, "loss": 8 - s / 200, **common} | (check if s % 100 == 0 else {}) for s in range(1, 1001)
    ]
    (out / "train/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    event = {"step": 7, "seen": "spike", "action": "skip", "loss": "NaN", "grad_norm": 3.5, "samples": [[0, 8]]}
    (out / "train/events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    files = f"crawl.files=[{folder}/a.warc.wet.gz,{folder}/b.warc.wet.gz]"
    assert main(["all", STAGES, files, f"lm.text=[{folder}/de.txt]", f"out={out}", *SETTINGS, *TOKENS]) == 0
    return out


@pytest.fixture(scope="module")
def other(out, tmp_path_factory):
    """The same run with another threshold and other percentiles, its report set against the first."""
    other = tmp_path_factory.mktemp("other") / "out"
    shutil.copytree(out, other)
    changed = ["language.threshold=0.9", "bucket.percentiles=[20.0,40.0]", "overwrite=true"]
    assert main(["regroup", f"out={other}", *SETTINGS, *changed]) == 0
    assert main(["report", f"out={other}", f"report.against={out}", *SETTINGS]) == 0
    return other


@pytest.fixture(scope="module")
def browser():
    """Chromium; where a person has none the tests are skipped, in CI they fail."""
    if not CHROMIUM.exists() and not os.environ.get("CI"):
        pytest.skip("no /usr/bin/chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


def opened(browser, path, width=1440, **more):
    """The page, with a list of all that it asks the network for and says on the console."""
    context = browser.new_context(viewport={"width": width, "height": 900}, **more)
    page, told = context.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: None if request.url == path.as_uri() else told.append(request.url))
    page.goto(path.as_uri())
    return page, told


def documents(out):
    """The rows of all files of the corpus."""
    return [row for path in sorted((out / "corpus").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def dropped(out):
    """The rows of all files of what was dropped."""
    return [row for path in sorted((out / "dropped").rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def number(text):
    """A whole number as the page shows it."""
    return int(text.replace(",", ""))


def test_figures_are_those_of_an_independent_count(out):
    tables = read_page((out / "report.html").read_text(encoding="utf-8")).tables
    corpus, gone = documents(out), dropped(out)
    funnel = {row[1].split(":")[0]: row for row in tables["funnel"][1:]}
    assert number(funnel["pages of the crawl"][2]) == len(corpus) + len(gone) == len(pages())
    assert number(funnel["the corpus"][2]) == len(corpus)
    assert number(funnel["the corpus"][3]) == sum(len(row["raw_content"].split("\n")) for row in corpus)
    assert number(funnel["the corpus"][4]) == sum(len(row["raw_content"]) for row in corpus)
    reasons = Counter(row["reason"] for row in gone)
    assert reasons["short"] == 5 and reasons["duplicate"] == 1
    for reason, count in reasons.items():
        assert number(funnel[reason][2]) == count
    by_bucket = Counter((row["language"], row["bucket"]) for row in corpus)
    chars = Counter()
    for row in corpus:
        chars[row["language"], row["bucket"]] += len(row["raw_content"])
    shown = {(row[0], row[1]): (number(row[2]), number(row[3])) for row in tables["buckets"][1:]}
    assert shown == {key: (by_bucket[key], chars[key]) for key in by_bucket}
    assert {bucket for language, bucket in shown if language == "de"} == {"head", "middle", "tail"}
    bars = Counter(bin_of(row["perplexity"]) // 20 for row in corpus if row["language"] == "de")
    assert [number(row[2]) for row in tables["perplexity-de"][1:]] == [count for _, count in sorted(bars.items())]
    kept, dropped_domains = (Counter(row["source_domain"] for row in rows) for rows in (corpus, gone))
    for row in tables["domains"][1:]:
        if "U+" not in row[0] and "no domain" not in row[0]:
            assert (number(row[1]), number(row[2])) == (kept[row[0]], dropped_domains[row[0]])
    lengths = Counter(len(row["raw_content"]).bit_length() - 1 for row in corpus)
    for low, _, _, count in tables["lengths"][1:]:
        assert number(count) == lengths[number(low).bit_length() - 1]
    counts = Counter(line for _, _, lines in pages() if sum(map(len, lines)) + len(lines) - 1 >= 300 for line in set(lines))
    assert [SHARED[:200], "3"] in tables["frequent-paragraphs"] and counts[SHARED] == 3


def test_every_section_is_there_and_nothing_is_asked_or_said(out, browser):
    page, told = opened(browser, out / "report.html")
    names = [section.get_attribute("id") for section in page.query_selector_all("main > section")]
    expected = "overview funnel languages perplexity quality duplicates domains tokens training input work samples"
    assert names == expected.split()
    assert [link.get_attribute("href") for link in page.query_selector_all("nav a")] == [f"#{name}" for name in names]
    assert {
        "loss",
        "validation-by-source",
        "mixture-so-far",
        "throughput",
        "mfu",
        "memory",
        "events",
        "fertility",
        "work",
    } <= set(read_page((out / "report.html").read_text(encoding="utf-8")).tables)
    assert page.query_selector_all(".chart") and not page.query_selector_all(".chart:not([role=img][aria-label])")
    row = read_page((out / "report.html").read_text(encoding="utf-8")).tables["events"][1]
    assert row == ["7", "spike", "skip", "NaN", "3.5", "samples [[0, 8]]"]
    for chart in page.query_selector_all(".chart"):
        assert chart.evaluate("chart => chart.nextElementSibling.querySelector('table') !== null")
    assert not told
    assert (out / "report.html").stat().st_size < 5_000_000


def test_hostile_pages_are_text(out, browser):
    page, told = opened(browser, out / "report.html")
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    page.mouse.move(400, 400)
    assert "pwned" not in page.title() and not told
    assert page.evaluate("document.querySelectorAll('script, iframe, object, form, img, link, main a').length") == 0
    assert page.evaluate("[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !/^on/.test(a.name)))")
    samples = page.inner_text("#samples")
    assert SCRIPT in samples and "{{ 7 * 7 }}" in samples and "javascript:document.title" in samples
    source = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", source)
    for code in ("U+0000", "U+001B", "U+202E"):
        assert code in samples
    assert "more characters" in samples and "the end of a line of a megabyte" not in source


def test_right_to_left_and_chinese_are_shown_as_such(out, browser):
    page, _ = opened(browser, out / "report.html")
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    for language, direction, text in (("ar", "rtl", "الشمس"), ("zh", "ltr", "太阳")):
        line = page.locator(f"#samples .lines[lang={language}] p", has_text=text).first
        assert line.evaluate("line => getComputedStyle(line).direction") == direction


def test_removed_lines_say_where_they_were_first_seen(out):
    """Of a page that shares its first line with the one before, against the crawl's own lines."""
    [page] = find_pages(out, "http://de1.example/1")
    assert page.outcome == "corpus" and [line.why for line in page.lines[:2]] == ["duplicate", ""]
    assert page.lines[0].first.url == "http://de0.example/0"
    by_url = {url: lines for url, _, lines in pages()}
    assert [line.text for line in page.lines] == by_url[page.url]
    seen = {}
    for url, _, lines in pages():
        for line in lines:
            seen.setdefault(line, url)
    for line in page.lines:
        assert (line.why == "duplicate") == (seen[line.text] != page.url)
    assert page.lines[-1].why == "repeated"
    assert all((line.perplexity is not None) == (not line.why) for line in page.lines)
    [copy] = find_pages(out, "http://copy.example/")
    assert copy.outcome == "duplicate" and {line.first.url for line in copy.lines} == {"http://en.example/3"}
    assert find_pages(out, "http://nowhere.example/") == []


def test_the_search_for_first_pages_is_bounded(out, monkeypatch):
    monkeypatch.setattr("pipeline.page_road.KEYS_BYTES", 0)
    [copy] = find_pages(out, "http://copy.example/")
    assert {line.reason for line in copy.lines} == {"duplicate: another page has it"}


def test_samples_follow_from_the_seed_and_know_their_outcome(out):
    run = FinishedRun(out)
    outcomes = {row["url"]: row["bucket"] for row in documents(out)} | {row["url"]: row["reason"] for row in dropped(out)}
    assert chosen_segments(run, 1) == [0, 1]
    found = [page for n in (0, 1) for _, page in sample_segment(run, n, 4, seed=1)]
    assert all((page.bucket or page.outcome) == outcomes[page.url] for page in found)
    assert {outcomes[page.url] for page in found} == set(outcomes.values())
    again = [page for n in (0, 1) for _, page in sample_segment(run, n, 4, seed=1)]
    assert found == again != [page for n in (0, 1) for _, page in sample_segment(run, n, 4, seed=2)]


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_layout_and_accessibility(other, browser, width, scheme):
    page, told = opened(browser, other / "report.html", width, color_scheme=scheme)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate(fits)
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    found = Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
    assert not told


def test_the_keyboard_reaches_what_scrolls_and_opens(out, browser):
    page, _ = opened(browser, out / "report.html", 375)
    reached, last = [], None
    for _ in range(400):
        page.keyboard.press("Tab")
        here = page.evaluate("document.activeElement.tagName + ' ' + (document.activeElement.className || '')")
        if here.startswith("BODY"):
            break
        reached.append(here)
        last = here
    assert last is not None
    kinds = Counter(name.split()[0] for name in reached)
    assert kinds["SUMMARY"] == len(page.query_selector_all("summary"))
    assert kinds["DIV"] == page.evaluate(
        "[...document.querySelectorAll('.wide')].filter(e => !e.closest('details:not([open])')).length"
    )
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_two_runs_side_by_side(out, other):
    tables = read_page((other / "report.html").read_text(encoding="utf-8")).tables
    here, there = ({row["url"]: row["bucket"] for row in documents(folder)} for folder in (other, out))
    now = {row["url"] for path in (other / "dropped").glob("*.regroup.parquet") for row in pq.read_table(path).to_pylist()}
    before = {row["url"] for path in (out / "dropped").glob("*.regroup.parquet") for row in pq.read_table(path).to_pylist()}
    expected = Counter()
    for url in {*here, *there, *now, *before}:
        expected[there.get(url, "language_score"), here.get(url, "language_score")] += 1
    head, *rows = tables["compare-moves"]
    found = Counter({(row[0], name): number(cell) for row in rows for name, cell in zip(head[1:], row[1:], strict=True)})
    assert +found == expected
    assert found["middle", "tail"]
    settings = {row[0]: row[1:] for row in tables["compare-settings"]}
    assert settings["language.threshold"] == ["0.5", "0.9"] and "lm.order" not in settings
    moves = {(row[0], row[1]) for row in tables["compare-examples"][1:]}
    assert moves == {move for move in expected if move[0] != move[1]}
    counts = {(row[0], row[1]): row[2:4] for row in tables["compare-counts"]}
    assert list(map(number, counts["kept", "the corpus"])) == [len(there), len(here)]
    assert "<dt>out of date</dt><dd>tokenizer, tokenize</dd>" in (other / "report.html").read_text(encoding="utf-8")


def test_a_crawl_that_is_gone_costs_the_samples_only(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    manifest = copy / "records/fetch.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(".warc.wet.gz", ".gone.gz"), encoding="utf-8")
    assert main(["report", f"out={copy}", "report.seed=2", *SETTINGS]) == 0
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert "could not be read again" in text and read_page(text).tables["funnel"]


def test_a_running_stage_is_shown_from_its_records(out, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    for name in ("regroup", "tokenizer", "tokenize", "report", "mine"):
        (copy / f"records/{name}.json").unlink()
    min((copy / "records/mine/mine").glob("*/*.json"), key=lambda path: path.name).unlink()
    assert main(["report", f"out={copy}", *SETTINGS]) == 0
    tables = read_page((copy / "report.html").read_text(encoding="utf-8")).tables
    rest = len(pq.read_table(next((copy / "mine").glob("b*.parquet"))))
    assert number(next(row for row in tables["funnel"] if row[1] == "mined documents")[2]) == rest
    assert "mine (running)" in [row[0] for row in tables["work"]]
