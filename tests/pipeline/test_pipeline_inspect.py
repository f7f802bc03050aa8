"""inspect and stats on a small run with hostile pages: answers recounted from the files, text made harmless, mistakes told."""

import csv
import io
import json
import math
import shutil
import statistics
from collections import Counter, defaultdict

import duckdb
import pyarrow.parquet as pq
import pytest
from crawls import prose
from wet_files import write_wet

from pipeline.__main__ import main
from pipeline.commands.inspect import QUESTIONS
from pipeline.figures import Run, figures
from pipeline.tables import TABLES, opened
from pipeline.terminal import json_text

HOSTILE = (
    "an escape \x1b]0;pwned\x07\x1b[31m, a C1 \x9b31m, an override \u202egnp.exe\u202c, [red]markup[/red], 'quotes\" and $text"
)
GIVEN = {"language": "de", "bucket": "head", "text": "gnp.exe", "reason": "short"}
SETTINGS = (
    "lm.vocab_size=300",
    "lm.min_bytes=1000",
    "dedup.partitions=2",
    "near.threshold=0.8",
    "near.partitions=2",
    "executor.workers=1",
    "keep_dropped=true",
    "tokenizer.vocab_size=400",
    "tokenizer.sample_chars=100000",
    "tokenize.validation=0.1",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished run up to the tokens, in a folder whose name SQL and globs would read otherwise, with a training's metrics."""
    folder = tmp_path_factory.mktemp("inspect")
    text = "\n\n".join("\n".join(prose("de", 500 + n, 6)) for n in range(60))
    (folder / "de.txt").write_text(text, encoding="utf-8")
    pages = [(f"http://de{n % 3}.example/{n}?a=b", "Seite", prose("de", n // 2 * 9, 2) + prose("de", n, 5)) for n in range(40)]
    pages += [(f"http://en.example/{n}", "page", prose("en", n, 6)) for n in range(12)]
    line = " ".join(prose("en", 700, 20))
    pages += [("http://one.example/", "one", [line]), ("http://twin.example/", "twin", [f"{line} More."])]
    pages += [("http://short.example/", "short", ["too little"])]
    pages += [("http://hostile.example/", HOSTILE, [HOSTILE, *prose("en", 99, 4)])]
    for name, part in (("a", pages[::2]), ("b", pages[1::2])):
        write_wet(folder / f"{name}.warc.wet.gz", part)
    out = folder / "it's [a] run*"
    files = f"crawl.files=[{folder}/a.warc.wet.gz,{folder}/b.warc.wet.gz]"
    stages = "stages=[fetch,hash,dedup,lm,mine,near,regroup,tokenizer,tokenize]"
    assert main(["all", stages, files, f"lm.text=[{folder}/de.txt]", f'out="{out}"', *SETTINGS]) == 0
    (out / "train").mkdir()
    rows = [{"step": s, "loss": 8 - s / 50, "grad_norm": 1.0, "seconds": 0.5, "tokens": s, "lr": 0.1} for s in range(1, 101)]
    rows = [row | {"tokens_per_second": 100.0} | ({"validation_loss": 6.5} if row["step"] == 50 else {}) for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "train/metrics.jsonl").write_text(text + '{"step": 101, "lo', encoding="utf-8")  # cut by a crash
    return out


@pytest.fixture
def ask(out, capsys):
    """Asks a question as the command line does; the answer as JSON."""

    def asked(*words, out=out):
        capsys.readouterr()
        assert main(["inspect", f"out={out}", "--json", *words]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return asked


@pytest.fixture
def told(out, capsys):
    """The one line that a mistake gets."""

    def asked(*words, out=out, command="inspect"):
        capsys.readouterr()
        assert main([command, f"out={out}", *words]) == 1
        text, line = capsys.readouterr()
        assert not text and line.startswith("error: ") and line.count("\n") == 1 and len(line) < 800
        return line

    return asked


def documents(out, *parts):
    return [row for path in sorted(out.joinpath(*parts).rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_sql_is_answered_as_counted_from_the_files(out, ask):
    groups = defaultdict(list)
    for row in documents(out, "corpus"):
        groups[row["language"], row["bucket"]].append(row["perplexity"])
    assert {"head", "all"} <= {bucket for _, bucket in groups}
    answer = ask("select language, bucket, count(*) as n, median(perplexity) as m from corpus group by all")
    assert {(row["language"], row["bucket"]): row["n"] for row in answer} == {k: len(v) for k, v in groups.items()}
    for row in answer:
        values = [p for p in groups[row["language"], row["bucket"]] if p is not None]
        assert row["m"] == (pytest.approx(statistics.median(values)) if values else None)


def test_every_named_question_has_an_answer(out, ask):
    for name, question in QUESTIONS.items():
        rows = ask(name, *(GIVEN[word] for word in question.needs))
        assert rows, name
    kept, mined = (
        documents(out, "corpus"),
        [row for path in sorted((out / "mine").glob("*.parquet")) for row in pq.read_table(path).to_pylist()],
    )
    chars = Counter()
    for row in kept:
        chars[row["source_domain"]] += row["length"]
    assert {row["domain"]: row["chars"] for row in ask("domains")} == chars
    scored, stayed = (Counter(row["source_domain"] for row in rows) for rows in (mined, kept))
    assert {row["domain"]: row["lost"] for row in ask("lost-domains")} == dict(scored - stayed)
    rows = documents(out, "dropped")
    told = Counter(row["reason"] for row in rows)
    assert {row["reason"]: row["documents"] for row in ask("reasons") if row["documents"]} == told
    assert told["near_duplicate"] == 1 == len(ask("near-duplicates")) and told["short"] == len(ask("dropped", "short")) == 1
    assert [row["stage"] for row in ask("dropped", "near_duplicate")] == ["regroup"]
    cut = json.loads((out / "records/regroup.json").read_text())["result"]["cutoffs"]["de"]
    assert ask("from cutoffs") == [{"language": "de", **{end: cut[end] for end in ("low", "high")}}]
    near = ask("near-cutoff", "de")
    assert {row["bucket"] for row in near} >= {"head", "middle"}
    for edge in ("head | middle", "middle | tail"):
        end = "low" if edge == "head | middle" else "high"
        distances = [abs(math.log(row["perplexity"] / cut[end])) for row in near if row["cutoff"] == edge]
        assert distances == sorted(distances) and len(distances) <= 20
    assert not ask("near-cutoff", "de' or true or '")  # words are values, never SQL


def test_records_metrics_and_tokens_are_tables(out, ask):
    manifests = {path.stem: json.loads(path.read_text()) for path in (out / "records").glob("*.json")}
    rows = ask("select stage, units, seconds, result->>'$.page' as page from stages")
    assert {row["stage"]: row["units"] for row in rows} == {name: m["units"] for name, m in manifests.items()}
    rows = ask(
        "select stage, count(*) as units, sum(files)::int as files, sum(bytes)::bigint as bytes from units group by stage"
    )
    written = {
        name: [len(m["outputs"]), sum(e["bytes"] for e in m["outputs"].values())] for name, m in manifests.items() if m["units"]
    }
    assert {row["stage"]: [row["files"], row["bytes"] or 0] for row in rows} == written
    tokens = manifests["tokenize"]["result"]["train"]["tokens"]
    assert [row["tokens"] for row in ask("tokens") if row["split"] == "train"] == [tokens]
    assert ask("select count(*) as n, max(step) as last, count(validation_loss) as checks from metrics")[0] == {
        "n": 100,
        "last": 100,
        "checks": 1,
    }
    assert {row["name"] for row in ask("show tables")} == set(TABLES) - {"events"}


def test_ccnet_files_are_the_same_corpus(out, ask, tmp_path):
    other = tmp_path / "ccnet"
    shutil.copytree(out, other)
    assert main(["regroup", f"out={other}", *SETTINGS, "corpus.layout=ccnet", "overwrite=true"]) == 0
    assert list((other / "corpus").glob("*.json.gz")) and not list((other / "corpus").rglob("*.parquet"))
    query = "select url, language, bucket, length, perplexity, raw_content from corpus order by url"
    assert ask(query, out=other) == ask(query)


def test_text_of_pages_is_shown_and_not_obeyed(out, ask, capsys):
    query = "select title, raw_content, [title] as list, {'k': title} as struct from corpus where url like '%hostile%'"
    [row] = ask(query)
    assert row["title"] == HOSTILE == row["list"][0] == row["struct"]["k"] and row["raw_content"].startswith(HOSTILE)
    for words in ([query], ["--json", query], ["search", "gnp.exe"], ["page", "http://hostile.example/"]):
        capsys.readouterr()
        assert main(["inspect", f"out={out}", *words]) == 0
        shown = capsys.readouterr().out
        assert all(c.isprintable() or c == "\n" for c in shown) and "gnp.exe" in shown
    assert main(["inspect", f"out={out}", "--csv", query]) == 0  # no terminal: as it is
    assert next(iter(csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))))["title"] == HOSTILE
    assert main(["inspect", f"out={out}", "select title::int from corpus where url like '%hostile%'"]) == 1
    shown = capsys.readouterr().err
    assert "gnp.exe" in shown and all(c.isprintable() or c == "\n" for c in shown)


def test_a_terminal_gets_harmless_csv(out, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["inspect", f"out={out}", "--csv", "select title from corpus where url like '%hostile%'"]) == 0
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().out)


def test_tables_show_as_many_rows_as_asked_and_say_so(out, capsys):
    assert main(["inspect", f"out={out}", "rows=2", "select url from corpus"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("http://") == 2 and "The first 2 rows; rows=0 shows all." in shown
    assert main(["inspect", f"out={out}", "select 1 as a where false"]) == 0
    assert "No rows." in capsys.readouterr().out
    assert main(["inspect", f"out={out}", "rows=1", "from corpus"]) == 0
    assert next(line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()) == "url"


def test_the_road_of_a_page(ask, told, out, capsys):
    [page] = ask("page", "http://de1.example/1?a=b")
    assert page["outcome"] == "corpus" and [line["why"] for line in page["lines"]][:2] == ["duplicate", "duplicate"]
    assert main(["inspect", f"out={out}", "page", "http://de1.example/1?a=b"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "first seen on" in shown and "in the corpus, bucket" in shown
    assert main(["inspect", f"out={out}", "--csv", "page", "http://de1.example/1?a=b"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row["text"] for row in rows] == [line["text"] for line in page["lines"]]
    assert "no such page" in told("page", "http://nowhere.example/")
    assert "give the URL" in told("page")


def test_mistakes_are_one_line(out, told, tmp_path):
    assert "did you mean domains?" in told("domain")
    assert "--help lists them" in told("qqqqqqq")
    assert "copus: no such table; did you mean corpus?" in told("from copus")
    assert "zzz: no such table; there are corpus, " in told("from zzz")
    assert "events: " in told("from events") and "has none" in told("from events")
    assert '"urll" not found' in told("select urll from corpus")
    assert "syntax error" in told("selec 1")
    assert "near-cutoff needs language and got nothing" in told("near-cutoff")
    assert "languages needs nothing and got de" in told("languages", "de")
    assert "one pair of quotes" in told("select 1", "from corpus")
    assert "ask a question" in told()
    assert "choose one" in told("--json", "--csv", "languages")
    assert "memory=much" in told("languages", "memory=much")
    assert "rows=-1" in told("languages", "rows=-1")
    assert "row: no such key; did you mean rows?" in told("languages", "row=1")
    assert "question: no such key" in told("question=[languages]")
    assert "no such folder" in told("languages", out=tmp_path / "nowhere")
    assert "no such folder" in told(out=tmp_path / "nowhere", command="watch")
    assert "no stage has left records there" in told(out=tmp_path, command="stats")


def test_a_broken_file_spoils_its_own_table_only(told, ask, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/metrics.jsonl").write_text("")
    assert "mined: can't be read: " in told("from mined", out=tmp_path)
    assert "metrics: can't be read: " in told("from metrics", out=tmp_path)
    assert ask("show tables", out=tmp_path) == []


def test_a_question_reads_the_run_and_nothing_else(out, told, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    target = out / "made.csv"
    for query in (
        f"from read_text('{secret}')",
        f"from read_csv('{out}/../../{secret.name}')",
        f"from '{secret}'",
        f"from glob('{tmp_path}/*')",
        f"copy (select 1) to '{target}'",
        f"attach '{tmp_path}/x.db'",
        "from read_parquet('https://x.example/a.parquet')",
        "install httpfs",
        "load spatial",
        "set enable_external_access = true",
        "reset lock_configuration",
        "create table x as select 1",
        "select 1; drop view corpus",
        "from json_text",  # a name in Python
    ):
        line = told(query)
        assert "secret" not in line.replace(str(secret), "").replace(secret.name, "")
    assert not target.exists() and [path.name for path in tmp_path.iterdir()] == ["secret.txt"]
    with opened(out, "1GB") as tables, pytest.raises(duckdb.Error, match="has been locked"):
        tables._connection.execute("SET enable_external_access = true")


def test_stats_has_the_figures_of_the_report(out, capsys):
    sections = figures(out, Run(out).read())
    assert main(["stats", f"out={out}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in told["sections"]] == [s.name for s in sections]
    for section, mine in zip(told["sections"], sections, strict=True):
        for figure, own in zip(section["figures"], mine.figures, strict=True):
            assert (figure["name"], figure["rows"]) == (own.name, json.loads(json_text(own.rows)))
            assert [column["name"] for column in figure["columns"]] == [column.name for column in own.columns]
    counted = Counter((row["language"], row["bucket"]) for row in documents(out, "corpus"))
    [buckets] = [f for s in told["sections"] for f in s["figures"] if f["name"] == "buckets"]
    assert {(language, bucket): n for language, bucket, n, *_ in buckets["rows"]} == counted
    assert main(["stats", f"out={out}", "rows=0"]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert all(f.title in shown for s in sections for f in s.figures) and "rows=0 shows all" not in shown
