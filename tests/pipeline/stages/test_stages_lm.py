"""The stage `lm` through the command line: the four ways to language models."""

import bz2
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from crawls import prose
from wet_files import write_wet

from ccnet.perplexity import LanguageModel
from pipeline.__main__ import main
from pipeline.outputs import read_json


@pytest.fixture(scope="module")
def crawled(tmp_path_factory):
    """(folder, overrides) of a small crawl that `fetch`, `hash` and `dedup` are done with."""
    folder = tmp_path_factory.mktemp("crawl")
    pages = [(f"http://x.example/{n}", f"Page {n}", prose("en", n, 8)) for n in range(120)]
    write_wet(folder / "seg-0.warc.wet.gz", pages[:60])
    write_wet(folder / "seg-1.warc.wet.gz", pages[60:])
    common = [
        f"crawl.files=[{folder}/*.gz]",
        "dedup.partitions=4",
        "lm.vocab_size=500",
        "lm.min_bytes=1000",
        "executor.workers=1",
    ]
    for stage in ("fetch", "hash", "dedup"):
        assert main([stage, f"out={folder / 'out'}", *common]) == 0
    return folder, common


@pytest.fixture
def lm(crawled, tmp_path, capsys):
    """Runs `lm` with overrides in a copy of the outputs; returns its result, or the line that says why there is none."""
    folder, common = crawled
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)

    def run(*overrides, stage="lm"):
        capsys.readouterr()
        code = main([stage, f"out={out}", *common, *overrides])
        if code:
            lines = capsys.readouterr().err.strip().splitlines()
            assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
            return lines[-1]
        return read_json(out / "records" / f"{stage}.json")["result"]

    run.out = out
    return run


def texts(language, count, first=0):
    return "\n\n".join("\n".join(prose(language, seed, 6)) for seed in range(first, first + count))


def score(out, language, text):
    return LanguageModel(out / f"lm/{language}.sp.model", out / f"lm/{language}.arpa.bin").perplexity(text)


def test_without_anything_pages_of_the_crawl_are_held_out(lm):
    result = lm("lm.held_out=0.3")
    assert result["held_out"] == 0.3 and list(result["models"]) == ["en"]
    assert result["models"]["en"] == ["lm/en.sp.model", "lm/en.arpa.bin"]


@pytest.mark.slow
def test_models_of_text_files_and_dumps(lm, tmp_path):
    (tmp_path / "de.txt").write_text(texts("de", 60), encoding="utf-8")
    (tmp_path / "ru.one.txt").write_text(texts("ru", 30), encoding="utf-8")
    (tmp_path / "ru.two.txt").write_text(texts("ru", 30, 30), encoding="utf-8")
    articles = "".join(
        f"<page><title>{n}</title><ns>0</ns><revision><text>{text}\n\n== x ==\nx</text></revision></page>"
        for n, text in enumerate(texts("en", 60).split("\n\n"))
    )
    (tmp_path / "enwiki-pages-articles.xml.bz2").write_bytes(
        bz2.compress(f'<mediawiki xml:lang="en">{articles}</mediawiki>'.encode())
    )
    files = f"lm.text=[{tmp_path}/*.txt,{tmp_path}/*.bz2]"
    result = lm(files, "lm.format=trie")
    assert result["held_out"] == 0.0 and list(result["models"]) == ["de", "en", "ru"]
    assert {language: counts["documents"] for language, counts in result["trained"].items()} == {"de": 60, "en": 60, "ru": 60}
    for language in ("de", "en", "ru"):
        scores = {other: score(lm.out, language, texts(other, 1, 100)) for other in ("de", "en", "ru")}
        assert min(scores, key=scores.get) == language
    assert "pages_read" in lm("lm.text=[]", stage="hash")["statistics"]
    mined = lm(files, "lm.format=trie", stage="mine")["statistics"]
    assert mined["documents"]["kept"] == 120  # of 120: none was held out

    before = {language: lm.out.joinpath(f"lm/{language}.arpa.bin").stat().st_mtime_ns for language in ("de", "en", "ru")}
    (tmp_path / "ru.two.txt").write_text(texts("ru", 40, 30), encoding="utf-8")
    assert lm(files, "lm.format=trie")["trained"]["ru"]["documents"] == 70
    after = {language: lm.out.joinpath(f"lm/{language}.arpa.bin").stat().st_mtime_ns for language in ("de", "en", "ru")}
    assert {language for language in before if before[language] != after[language]} == {"ru"}


def test_models_from_elsewhere_need_no_crawl(tmp_path, capsys):
    (tmp_path / "de.txt").write_text(texts("de", 40), encoding="utf-8")
    small = ["lm.vocab_size=300", "lm.min_bytes=1000", "executor.workers=1"]
    assert main(["lm", f"out={tmp_path / 'one'}", f"lm.text=[{tmp_path}/de.txt]", *small]) == 0
    assert main(["lm", f"out={tmp_path / 'two'}", f"lm.dir={tmp_path / 'one/lm'}"]) == 0
    one, two = (read_json(tmp_path / name / "records/lm.json") for name in ("one", "two"))
    assert list(one["result"]["models"]) == list(two["result"]["models"]) == ["de"]
    assert list(one["inputs"]) == ["lm.text"] and list(two["inputs"]) == ["lm.dir"]
    assert main(["lm", f"out={tmp_path / 'three'}"]) == 1
    assert "lm reads what fetch writes" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["de.sp.model", "de.arpa.bin"])
def test_a_folder_with_a_file_that_is_no_model(tmp_path, shared_data, name, capsys):
    for path in (shared_data / "lm").glob("de.*"):
        shutil.copyfile(path, tmp_path / path.name)
    (tmp_path / name).write_bytes(b"no model")
    assert main(["lm", f"out={tmp_path / 'out'}", f"lm.dir={tmp_path}"]) == 1
    assert f"{name}: not a " in capsys.readouterr().err


def test_models_that_the_same_stage_would_remove(tmp_path, capsys):
    (tmp_path / "de.txt").write_text(texts("de", 40), encoding="utf-8")
    out = tmp_path / "out"
    small = [f"out={out}", "lm.vocab_size=300", "lm.min_bytes=1000", "executor.workers=1"]
    assert main(["lm", *small, f"lm.text=[{tmp_path}/de.txt]"]) == 0
    assert main(["lm", *small, f"lm.dir={out / 'lm'}", "overwrite=true"]) == 1
    assert f"lm.dir={out / 'lm'} is what lm wrote in {out}, and would be removed" in capsys.readouterr().err
    assert main(["lm", *small, f"lm.dir={tmp_path}/mistyped", "overwrite=true"]) == 1
    assert f"{tmp_path}/mistyped: no such file" in capsys.readouterr().err
    assert (out / "lm/de.arpa.bin").exists()
    assert main(["lm", *small, f"lm.text=[{tmp_path}/de.txt]"]) == 0


def test_the_order_of_workers_does_not_matter(lm, tmp_path):
    for language in ("de", "ru"):
        (tmp_path / f"{language}.txt").write_text(texts(language, 40), encoding="utf-8")
    written = []
    for workers in (1, 2):
        lm(f"lm.text=[{tmp_path}/*.txt]", f"executor.workers={workers}", "overwrite=true")
        written.append(read_json(lm.out / "records/lm.json")["outputs"])
        (lm.out / "records/lm.json").unlink()
        shutil.rmtree(lm.out / "lm")
    assert written[0] == written[1] != {}


def test_only_languages_that_are_kept_are_trained(lm, tmp_path):
    for language in ("de", "ru"):
        (tmp_path / f"{language}.txt").write_text(texts(language, 40), encoding="utf-8")
    files = f"lm.text=[{tmp_path}/*.txt]"
    assert list(lm(files, "language.mine=[de]")["models"]) == ["de"]
    line = lm(files, "language.mine=[fr]", "overwrite=true")
    assert "no text of language.mine=['fr'] in it; the languages are: de, ru" in line


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("en.txt", b"Too short.", "10 bytes of en, fewer than lm.min_bytes=1000"),
        ("english.txt", b"text", "begins with its language"),
        ("dump.xml", b"<html>", "1 of 1 records are bad (not_a_dump 1)"),
        ("dump.xml", b"<!DOCTYPE x [<!ENTITY a 'b'>]><mediawiki xml:lang='en'>&a;</mediawiki>", "doctype 1"),
        ("dump.xml", b"<mediawiki xml:lang='../x'>", "language 1"),
        ("dump.xml.bz2", bz2.compress(b"<mediawiki xml:lang='en'>")[:-5], "bad (truncated 1)"),
        ("none.txt", None, "none.txt: no such file"),
    ],
)
def test_text_that_is_of_no_use_is_one_line(lm, tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert words in lm(f"lm.text=[{tmp_path / name}]")
    assert not (lm.out / "records/lm.json").exists()


def test_released_cutoffs_are_for_released_models(lm, tmp_path):
    (tmp_path / "de.txt").write_text(texts("de", 40), encoding="utf-8")
    for models in ("lm.held_out=0.3", f"lm.text=[{tmp_path}/de.txt]"):
        assert "that table holds for CCNet's released models" in lm(models, "corpus=ccnet")
        assert not (lm.out / "lm").exists()
    lm("lm.held_out=0.3")
    for stage in ("mine", "near"):
        lm("lm.held_out=0.3", stage=stage)
    assert "lm=ccnet or from lm.dir, or choose" in lm("lm.held_out=0.3", "bucket.cutoffs=released", stage="regroup")
    assert lm("lm.held_out=0.3", stage="regroup")["cutoffs"]


def test_ways_that_exclude_each_other(lm):
    assert "lm.dir and lm.text: choose one" in lm("lm.dir=x", "lm.text=[y]")
    assert "lm.text and lm.url: choose one" in lm("lm=ccnet", "lm.text=[y]", "language.mine=[en]")
    assert "language.mine=[en,de]" in lm("lm=ccnet")
    assert "lm.url=ftp://x: choose an http(s) address" in lm("lm.url=ftp://x", "language.mine=[en]")
    assert "lm.format=arpa: choose probing or trie" in lm("lm.format=arpa")
    assert "bucket.cutoffs=mine: choose computed or released" in lm("bucket.cutoffs=mine")
    assert "none of language.mine=['sw'] has a released model" in lm("lm=ccnet", "language.mine=[sw]")


class Faulty(SimpleHTTPRequestHandler):
    """Serves a folder; the first answer for a file is 503, the second is cut, the others are whole."""

    asked: ClassVar[dict[str, int]] = {}

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        if self.asked[self.path] == 1:
            self.send_error(503)
        elif self.asked[self.path] == 2:
            self.wfile_whole, self.wfile = self.wfile, Cut(self.wfile)
            super().do_GET()
            self.wfile = self.wfile_whole
        else:
            super().do_GET()


class Cut:
    """The first 60,000 bytes that are written."""

    def __init__(self, file):
        self.file, self.left = file, 60_000

    def write(self, data):
        self.file.write(data[: self.left])
        self.left -= len(data[: self.left])
        return len(data)

    def flush(self):
        self.file.flush()


@pytest.fixture
def served(tmp_path):
    """(folder, URL): a web server of a folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    Faulty.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Faulty, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def copy_models(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


@pytest.mark.slow
def test_released_models_are_downloaded_whole_through_all_faults(lm, served, shared_data):
    folder, url = served
    copy_models(shared_data / "lm", folder)
    overrides = ["lm=ccnet", f"lm.url={url}", "language.mine=[en,sw,de]"]
    result = lm(*overrides)
    assert result["held_out"] == 0.0 and list(result["models"]) == ["de", "en"]  # none of Swahili was released
    for path in (shared_data / "lm").iterdir():
        assert (lm.out / "lm" / path.name).read_bytes() == path.read_bytes()
    assert Faulty.asked == {f"/{path.name}": 3 for path in folder.iterdir()}
    lm(*overrides)
    assert max(Faulty.asked.values()) == 3  # what is there is not asked for again

    (lm.out / "records/lm.json").unlink()
    changed = bytearray((lm.out / "lm/en.sp.model").read_bytes())
    changed[1000] ^= 1
    (lm.out / "lm/en.sp.model").write_bytes(changed)
    assert "en.sp.model is not what was downloaded; remove it" in lm(*overrides)
    (lm.out / "lm/en.sp.model").unlink()
    assert lm(*overrides) == result
    assert {path for path, times in Faulty.asked.items() if times > 3} == {"/en.sp.model"}


@pytest.mark.parametrize(("name", "kind"), [("en.sp.model", "SentencePiece"), ("en.arpa.bin", "KenLM")])
@pytest.mark.parametrize("data", [b"<html><body>Not found</body></html>", b"", None])
def test_what_is_no_model_is_refused(lm, served, shared_data, name, kind, data):
    """An error page with status 200, nothing, or a model that lies cut on the server."""
    folder, url = served
    copy_models(shared_data / "lm", folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if data is None else data)
    line = lm(f"lm.url={url}", "language.mine=[en]")
    assert f"/{name}: its {(folder / name).stat().st_size} bytes are no {kind} model" in line
    assert not (lm.out / "lm" / name).exists()


def test_a_server_that_has_no_such_file(lm, served):
    _, url = served
    assert "/en.sp.model: there is no such file" in lm(f"lm.url={url}", "language.mine=[en]")
