"""LLaMA's sources beside the usual tools: from the published form to the corpus schema, in one process.

In: the test data's folder (argument); the standard library's modules are the code, and the articles' text is that of C4's
pages, of papers with macros and of posts. Out: MB of input text a second of CPU. Ours writes all columns and counts, the
others the text alone, all to
Parquet.
`python -m benchmarks.sources DATA`
"""

import bz2
import gzip
import io
import json
import os
import re
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import mwparserfromhell
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import load_dataset

from benchmarks.machine import machine
from ccnet.quality import rules
from ccnet.wikipedia import read_articles
from ccnet.wikitext import plain_text
from pipeline.config import SourcesConfig
from pipeline.sources import Given, sources
from pipeline.sources.documents import write_documents

ROUNDS = 3
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
HEADERS = re.compile(r"^(?:\s*#[^\n]*\n)+|^\s*/\*.*?\*/", re.DOTALL)
MARKUP = re.compile(r"^.*(?:\[\[|\]\]|\{\{|\}\}|\{\||\|\}|'''|<ref|\bthumb\||^==|^[*#|!]).*$", re.MULTILINE)
MARKS = ("*** START OF", "***START OF", "*END*THE SMALL PRINT", "*** END OF", "***END OF", "End of Project Gutenberg")


def ours(source: str, path: Path) -> int:
    """A file, as a unit of the stage reads and writes it; returns its documents."""
    settings, counts = SourcesConfig(quality={"c4": ["c4"]}), Counter[str]()
    given = Given(str(path), None, settings, path.parent)
    documents = ((path.name, document) for document in sources()[source].read(given, counts))
    chosen = rules(settings.quality.get(source, []))
    statistics = write_documents(documents, source, path.parent / "target.parquet", chosen, [], counts)
    return int(statistics["documents"]["kept"])


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What `datasets` streams of a file of JSON lines."""
    return iter(load_dataset("json", data_files=str(path), split="train", streaming=True))


def plain_c4(path: Path) -> Iterator[str]:
    """`datasets` and C4's rules, as `c4_utils` of TensorFlow Datasets has them, without its sentence splitter's model."""
    for row in rows(path):
        lines: list[str] = []
        sentences = 0
        for line in row["text"].splitlines():
            line, lower = line.strip(), line.lower()
            if not line.endswith((".", "?", "!", '"')) or line.endswith("...") or max(map(len, line.split())) > 1000:
                continue
            if len(line.split()) < 5 or "javascript" in lower or any(words in lower for words in POLICY):
                continue
            if "lorem ipsum" in lower or "{" in line:
                break
            sentences += len(re.findall(r"[.?!]['\")\]]*(?:\s|$)", line))
            lines.append(line)
        else:
            if sentences >= 3:
                yield "\n".join(lines)


def plain_github(path: Path) -> Iterator[str]:
    """`datasets` and regular expressions."""
    seen = set()
    for row in rows(path):
        text = HEADERS.sub("", row["content"])
        lines = text.splitlines() or [""]
        letters = sum(c.isalnum() for c in text) / max(len(text), 1)
        sound = max(map(len, lines)) <= 1000 and sum(map(len, lines)) <= 100 * len(lines) and letters >= 0.25
        if row["license"] in ("mit", "bsd-3-clause", "apache-2.0") and sound and hash(text) not in seen:
            seen.add(hash(text))
            yield text


def plain_book(path: Path) -> Iterator[str]:
    """Line by line, as the package `gutenberg` goes about it."""
    text: list[str] = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if line.startswith(MARKS[:3]):
            text = []
        elif line.startswith(MARKS[3:]):
            break
        else:
            text.append(line)
    yield "\n".join(text)


def plain_arxiv(path: Path) -> Iterator[str]:
    """Regular expressions, as RedPajama's cleaner goes about it: macros without arguments only."""
    with tarfile.open(path) as bulk:
        for member in bulk:
            packed = bulk.extractfile(member)
            assert packed is not None
            text = gzip.decompress(packed.read()).decode()
            text = re.sub(r"(?m)^%.*\n?|(?<!\\)%.*$", "", text)
            for name, body in re.findall(r"\\newcommand\{\\(\w+)\}\{(.*?)\}$", text, re.MULTILINE):
                text = re.sub(rf"\\{name}(?![A-Za-z])", lambda _, body=body: body, text)
            start = text.find("\\section")
            yield re.sub(r"(?s)\\begin\{thebibliography\}.*", "", text[max(start, 0) :])


def plain_stackexchange(path: Path) -> Iterator[str]:
    """ElementTree, and the standard library's HTML parser."""

    class Text(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.parts: list[str] = []

        def handle_data(self, data: str) -> None:
            self.parts.append(data)

    def stripped(html: str) -> str:
        parser = Text()
        parser.feed(html)
        return "".join(parser.parts)

    questions: dict[str, str] = {}
    answers: dict[str, list[tuple[int, str]]] = {}
    for _, row in ElementTree.iterparse(path):
        if row.get("PostTypeId") == "1":
            questions[row.attrib["Id"]] = f"Q: {row.get('Title')}\n\n{stripped(row.attrib['Body'])}"
        elif row.get("PostTypeId") == "2":
            answers.setdefault(row.attrib["ParentId"], []).append((-int(row.attrib["Score"]), stripped(row.attrib["Body"])))
        row.clear()
    for number, question in questions.items():
        yield "\n\n".join([question, *(f"A: {text}" for _, text in sorted(answers.get(number, [])))])


def papers(articles: list[str], path: Path) -> int:
    """Articles as a bulk file of papers that use macros; returns the bytes of their LaTeX."""
    size = 0
    macros = (
        "\\newcommand{\\R}{\\mathbb{R}}\n\\newcommand{\\eps}{\\varepsilon}\n\\newcommand{\\norm}[1]{\\left\\|#1\\right\\|}\n"
    )
    head = f"\\documentclass{{article}}\n{macros}\\title{{T}}\n\\begin{{document}}\n\\maketitle\n\\section{{One}}\n"
    with tarfile.open(path, "w") as bulk:
        for number, article in enumerate(articles):
            text = re.sub(r"[\\%{}]", "", article).replace(". ", ". For $x\\in\\R$ and \\eps\\ we have $\\norm{x}$. % note\n")
            latex = (
                head + text + "\n\\begin{thebibliography}{1}\\bibitem{a} A\\end{thebibliography}\n\\end{document}\n"
            ).encode()
            packed = gzip.compress(latex)
            member = tarfile.TarInfo(f"2201/2201.{number:05d}.gz")
            member.size = len(packed)
            bulk.addfile(member, io.BytesIO(packed))
            size += len(latex)
    return size


def posts(articles: list[str], path: Path) -> int:
    """Articles' paragraphs as the posts of a site, one question to two answers; returns the file's bytes."""
    paragraphs = [part for article in articles for part in article.split("\n") if len(part) > 200]
    rows = []
    for number, part in enumerate(paragraphs):
        body = escape(
            f'<p>{escape(part)} <a href="http://x.org">link</a></p>\n<pre><code>x = {number}\n</code></pre>',
            {'"': "&quot;", "\n": "&#xA;"},
        )
        question = number // 3 * 3
        kind = 'PostTypeId="1" Title="t"' if number == question else f'PostTypeId="2" ParentId="{question}"'
        rows.append(f'  <row Id="{number}" {kind} Score="{number % 7}" Body="{body}" />\n')
    path.write_text(f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{"".join(rows)}</posts>')
    return path.stat().st_size


def written(texts: Callable[[Path], Iterator[str]]) -> Callable[[Path], None]:
    """The same with the texts in a Parquet file."""
    return lambda path: pq.write_table(pa.table({"text": list(texts(path))}), path.parent / "peer.parquet", compression="zstd")


def seconds(work: Callable[[Any], Any], given: Any) -> float:
    """The least CPU time of some rounds, after one that is not counted."""
    work(given)
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work(given)
        times.append(time.process_time() - start)
    return min(times)


def show(name: str, size: int, our: float, peer: str, their: float) -> None:
    """A line of the table."""
    print(f"{name:<24}{size / our / 1e6:8.1f} MB/s   {peer}: {size / their / 1e6:.1f} MB/s   ours {their / our:.1f} times")


def wikitexts(path: Path) -> list[str]:
    """The wikitext of a dump's articles, some of them."""
    dump = bz2.decompress(path.read_bytes()).decode()
    texts = re.findall(r"<text[^>]*>([^<]{2000,})</text>", dump)[:20]
    return [text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&") for text in texts]


def both(texts: list[str]) -> list[tuple[str, str]]:
    """Each text by us and by mwparserfromhell."""
    return [(plain_text(text), mwparserfromhell.parse(text).strip_code()) for text in texts]


def left(texts: list[str], to_text: Callable[[str], str]) -> int:
    """Lines in which there is markup yet."""
    return sum(len(MARKUP.findall(to_text(text))) for text in texts)


def main(data: Path) -> None:
    """Prints the table."""
    print(machine())
    dump = next((data / "text").glob("enwiki*"))
    articles = [article.text for article in read_articles(str(dump), Counter())]
    texts = wikitexts(dump)
    parse = mwparserfromhell.parse
    size = sum(len(text.encode()) for text in texts)
    show(
        "wikitext to text",
        size,
        seconds(lambda some: [plain_text(text) for text in some], texts),
        "mwparserfromhell",
        seconds(lambda some: [parse(text).strip_code() for text in some], texts),
    )
    mine, their = (Counter(re.findall(r"\w+", text)) for text in map(" ".join, zip(*both(texts), strict=True)))
    print(
        f"of mwparserfromhell's words {(mine & their).total() / their.total():.1%} are in ours, of ours"
        f" {(mine & their).total() / mine.total():.1%} in its; lines with markup left: ours {left(texts, plain_text)}, its"
        f" {left(texts, lambda text: parse(text).strip_code())}"
    )
    with tempfile.TemporaryDirectory() as folder:
        (wiki := Path(folder) / "dump.xml.bz2").write_bytes(dump.read_bytes())
        spent = seconds(lambda path: ours("wikipedia", path), wiki)
        with_bz2 = len(bz2.decompress(wiki.read_bytes()))
        print(f"{'wikipedia, whole':<24}{with_bz2 / spent / 1e6:8.1f} MB/s of XML, bz2 and Parquet included")

        (c4 := Path(folder) / "c4.json.gz").write_bytes(
            gzip.compress("".join(json.dumps({"text": text, "url": "http://x.org"}) + "\n" for text in articles * 3).encode())
        )
        size = 3 * sum(len(text.encode()) for text in articles)
        peer = "datasets + Python"
        show("c4", size, seconds(lambda path: ours("c4", path), c4), peer, seconds(written(plain_c4), c4))

        modules = [path.read_text(errors="replace") for path in sorted(Path(os.__file__).parent.glob("*.py"))]
        (code := Path(folder) / "code.jsonl").write_text(
            "".join(json.dumps({"path": "a.py", "content": text, "license": "mit"}) + "\n" for text in modules)
        )
        size = sum(len(text.encode()) for text in modules)
        show("github", size, seconds(lambda path: ours("github", path), code), peer, seconds(written(plain_github), code))

        source = next((data / "text" / "books").glob("*en*.gz"))
        text = gzip.decompress(source.read_bytes()).decode() * 4
        name = "THE PROJECT GUTENBERG EBOOK X ***\n"
        framed = f"Title: x\n*** START OF {name}{text}\n*** END OF {name}"
        (book := Path(folder) / "book.txt.gz").write_bytes(gzip.compress(framed.encode()))
        size = len(framed.encode())
        show("books", size, seconds(lambda path: ours("books", path), book), "line by line", seconds(written(plain_book), book))

        size = papers(articles, bulk := Path(folder) / "arXiv_src_2201_001.tar")
        peer = "regular expressions"
        show("arxiv", size, seconds(lambda path: ours("arxiv", path), bulk), peer, seconds(written(plain_arxiv), bulk))

        (site := Path(folder) / "cooking.stackexchange.com").mkdir()
        size = posts(articles, rows_of := site / "Posts.xml")
        peer = "ElementTree + HTMLParser"
        spent = seconds(lambda path: ours("stackexchange", path), rows_of)
        show("stackexchange", size, spent, peer, seconds(written(plain_stackexchange), rows_of))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
