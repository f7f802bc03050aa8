"""inspect: a question in, its answer out, as a table, JSON or CSV. It has a name, or is SQL over `pipeline.tables`.

`page URL` is the road of one page through the stages (`pipeline.page_road`), line by line.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.config import key, require, words
from pipeline.page_road import Page, find_pages
from pipeline.tables import TABLES, opened
from pipeline.terminal import print_json, print_rows, print_table


@dataclass
class Settings:
    """Keys of the command."""

    out: str = key("out", "the folder of the run")
    question: list[str] = words("a question by name with what it needs, or SQL: see below")
    rows: int = key(100, "rows that a table shows, at most; 0: all; JSON and CSV have all")
    json: bool = key(False, "--json: a list of objects, in place of a table")
    csv: bool = key(False, "--csv: lines of values after one of headings, in place of a table")
    memory: str = key("4GB", "memory that a question may take; what needs more goes through the disk")

    def __post_init__(self) -> None:
        require(self.rows >= 0, f"rows={self.rows}: choose 0 or more")
        require(not (self.json and self.csv), "json=true and csv=true: choose one")


@dataclass(frozen=True)
class Question:
    """A ready-made question: what it answers, the words that it needs (`$word` in the SQL), the SQL."""

    help: str
    needs: tuple[str, ...]
    query: str


OF_LANGUAGE = "count(*) AS documents, sum(length)::BIGINT AS chars"
QUESTIONS = {
    "languages": Question(
        "documents, characters, median length and score by language",
        (),
        f"SELECT language, {OF_LANGUAGE}, median(length)::BIGINT AS median_length, median(language_score) AS median_score"
        " FROM corpus GROUP BY language ORDER BY chars DESC",
    ),
    "buckets": Question(
        "documents, characters and perplexities by language and bucket",
        (),
        f"SELECT language, bucket, {OF_LANGUAGE}, min(perplexity) AS lowest, median(perplexity) AS median,"
        " max(perplexity) AS highest FROM corpus GROUP BY language, bucket ORDER BY sum(chars) OVER (PARTITION BY language)"
        " DESC, language, list_position(['head', 'middle', 'tail', 'all'], bucket)",
    ),
    "domains": Question(
        "the domains with the most characters in the corpus",
        (),
        f"SELECT source_domain AS domain, {OF_LANGUAGE}, count(DISTINCT language) AS languages, median(perplexity) AS"
        " median_perplexity FROM corpus GROUP BY domain ORDER BY chars DESC, domain",
    ),
    "lost-domains": Question(
        "the domains that lost the most documents between mine and the corpus, to thresholds and near-duplicates",
        (),
        "SELECT domain, count(*) FILTER (scored) AS mined, count(*) FILTER (NOT scored) AS kept, mined - kept AS lost FROM"
        " (SELECT source_domain AS domain, true AS scored FROM mined UNION ALL SELECT source_domain, false FROM corpus)"
        " GROUP BY domain HAVING lost > 0 ORDER BY lost DESC, domain",
    ),
    "near-cutoff": Question(
        "documents around each cut-off of a language, nearest first",
        ("language",),
        "SELECT cutoff, bucket, perplexity, url, raw_content FROM (SELECT *, abs(ln(perplexity / low)) AS from_low,"
        " abs(ln(perplexity / high)) AS from_high, if(from_low < from_high, 'head | middle', 'middle | tail') AS cutoff,"
        " least(from_low, from_high) AS distance FROM corpus JOIN cutoffs USING (language) WHERE language = $language)"
        " QUALIFY row_number() OVER (PARTITION BY cutoff ORDER BY distance, url) <= 20 ORDER BY cutoff, distance, url",
    ),
    "sample": Question(
        "documents of a language and bucket, drawn evenly, the same ones each time",
        ("language", "bucket"),
        "SELECT url, perplexity, length, raw_content FROM corpus WHERE language = $language AND bucket = $bucket"
        " ORDER BY md5(digest || url) LIMIT 20",
    ),
    "longest": Question(
        "the longest documents",
        (),
        "SELECT length, nlines, language, bucket, url FROM corpus ORDER BY length DESC, url LIMIT 40",
    ),
    "shortest": Question(
        "the shortest documents",
        (),
        "SELECT length, language, bucket, url, raw_content FROM corpus ORDER BY length, url LIMIT 40",
    ),
    "search": Question(
        "documents with a text in them",
        ("text",),
        "SELECT language, bucket, url, substr(raw_content, greatest(strpos(raw_content, $text) - 60, 1), 150) AS around"
        " FROM corpus WHERE contains(raw_content, $text)",
    ),
    "reasons": Question("why documents, lines and characters were dropped", (), "FROM reasons"),
    "dropped": Question(
        "documents that were dropped for a reason; of a run with keep_dropped=true",
        ("reason",),
        "SELECT stage, language, language_score, url, raw_content FROM dropped WHERE reason = $reason"
        " ORDER BY md5(digest || url) LIMIT 40",
    ),
    "duplicates": Question(
        "the most frequent duplicated paragraphs",
        (),
        "SELECT documents, text FROM paragraphs ORDER BY documents DESC",
    ),
    "near-duplicates": Question(
        "near-duplicate documents, the least alike first",
        (),
        "SELECT similarity, url, kept_url FROM near ORDER BY similarity, url",
    ),
    "dates": Question(
        "documents by the month of their download",
        (),
        f"SELECT substr(date_download, 1, 7) AS month, {OF_LANGUAGE} FROM corpus GROUP BY month ORDER BY month",
    ),
    "tokens": Question(
        "documents and tokens by split and source",
        (),
        "SELECT split, source, sum(documents)::BIGINT AS documents, sum(tokens)::BIGINT AS tokens,"
        " sum(bytes) / sum(tokens) AS bytes_per_token FROM shards GROUP BY split, source ORDER BY split, source",
    ),
    "slowest": Question(
        "the units that took longest",
        (),
        "SELECT stage, round, unit, seconds, bytes FROM units ORDER BY seconds DESC LIMIT 40",
    ),
    "loss": Question(
        "the training's loss and rate, in 20 parts",
        (),
        "SELECT max(step) AS step, avg(loss) AS loss, avg(grad_norm) AS grad_norm, median(tokens_per_second) AS"
        " tokens_per_second FROM (SELECT *, ntile(20) OVER (ORDER BY step) AS part FROM metrics) GROUP BY part ORDER BY step",
    ),
}
PAGE = "page"


def _details() -> str:
    named = [(f"{name}{''.join(f' {word.upper()}' for word in q.needs)}", q.help) for name, q in QUESTIONS.items()]
    named.append((f"{PAGE} URL", "the road of a page through every stage, with what happened to each of its lines and why"))
    width = max(len(name) for name, _ in named) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in named]
    tables = [f"  {name:<{width}}{table.help}" for name, table in TABLES.items()]
    example = '"select language, bucket, count(*), median(perplexity) from corpus group by all"'
    return "\n".join(
        ["questions by name:", *lines, "", f"or SQL as DuckDB has it, such as {example}", "on the tables:", *tables]
    )


DETAILS = _details()


def run(settings: Settings) -> None:
    """Prints the answer."""
    out = Path(settings.out)
    require(out.is_dir(), f"out={out}: no such folder; name the folder of a run")
    require(bool(settings.question), "ask a question, by name or in SQL; --help lists the names and the tables")
    name, *given = settings.question
    if name == PAGE:
        require(len(given) == 1, f"{PAGE}: give the URL of one page")
        _print_pages(find_pages(out, given[0]), given[0], settings)
        return
    query, parameters = _question(name, given)
    with opened(out, settings.memory) as tables:
        columns, rows = tables.ask(query, parameters)
        _print(name if name in QUESTIONS else "", columns, rows, settings)


def _question(name: str, given: Sequence[str]) -> tuple[str, dict[str, str]]:
    """(SQL, parameters) of a question by name, or of one in SQL."""
    if name in QUESTIONS:
        needs = QUESTIONS[name].needs
        wanted = " and ".join(needs) or "nothing"
        require(len(given) == len(needs), f"{name} needs {wanted} and got {' '.join(given) or 'nothing'}")
        return QUESTIONS[name].query, dict(zip(needs, given, strict=True))
    if re.fullmatch(r"[\w-]+", name):
        near = get_close_matches(name, [*QUESTIONS, PAGE], n=1)
        raise ValueError(f"{name}: no such question; {f'did you mean {near[0]}?' if near else '--help lists them'}")
    require(not given, f"{' '.join(given)}: put a question in SQL into one pair of quotes")
    return name, {}


def _print(title: str, columns: list[str], rows: Iterable[Sequence[Any]], settings: Settings) -> None:
    if settings.json or settings.csv:
        print_rows(columns, rows, "json" if settings.json else "csv")
        return
    first = next(iter(rows := iter(rows)), None)
    numbers = [] if first is None else [n for n, value in enumerate(first) if isinstance(value, int | float)]
    answer = rows if first is None else chain([first], rows)
    print_table(title, columns, answer, most=settings.rows, right=numbers, note="No rows." if first is None else "")


def _print_pages(pages: Sequence[Page], url: str, settings: Settings) -> None:
    require(bool(pages), f"{url}: the crawl of {settings.out} has no such page")
    if settings.json:
        print_json([asdict(page) for page in pages])
        return
    lines = [
        (page.url, page.segment, page.number, n, line.reason or "kept", line.perplexity, line.text)
        for page in pages
        for n, line in enumerate(page.lines)
    ]
    columns = ["url", "segment", "page", "line", "what happened", "perplexity", "text"]
    if settings.csv:
        print_rows(columns, lines, "csv")
        return
    for page in pages:
        print_table(page.url, ["stage", "what happened"], page.steps, most=0, note=f"Title: {page.title}")
        rows = [line[3:] for line in lines if line[1:3] == (page.segment, page.number)]
        print_table("", columns[3:], rows, most=settings.rows, right=(0, 2))
