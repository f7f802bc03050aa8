"""Files come whole from a server that fails in every way, or not at all."""

import gzip
import importlib.util
import io
import random

import pytest
from crawl_server import CrawlServer
from wet_files import wet_record

from ccnet import crawl
from ccnet.crawl import choose, download, list_segments, listing_path, open_source

PATH = "crawl-data/CC-MAIN-2024-10/segments/1/wet/a.warc.wet.gz"
DATA = b"".join(
    gzip.compress(wet_record(f"http://{n}/", "t", [random.Random(n).randbytes(2000).hex()]), mtime=0) for n in range(200)
)


@pytest.fixture
def server():
    with CrawlServer({PATH: DATA}) as running:
        yield running


def fetch(server, path=PATH, **options):
    target = io.BytesIO()
    download(server.root + path, target, **{"timeout": 1.0, "pause": 0.01, **options})
    return target.getvalue()


def ranges(server):
    return [None if wanted is None else int(wanted[6:-1]) for _, wanted in server.requests]


def test_a_server_without_faults_is_asked_once(server):
    assert fetch(server) == DATA and server.requests == [(PATH, None)]


@pytest.mark.parametrize("fault", ["503", "429", "500"])
def test_a_busy_server_is_asked_again(server, fault):
    server.faults[PATH] = [fault] * 5
    assert fetch(server) == DATA and ranges(server) == [None] * 6


@pytest.mark.parametrize("fault", ["cut", "reset", "stall"])
def test_a_broken_download_goes_on_where_it_was(server, fault):
    server.faults[PATH] = [fault] * 3
    assert fetch(server) == DATA
    starts = [start or 0 for start in ranges(server)]
    assert len(starts) == 4 and starts == sorted(starts) and len(DATA) // 4 < starts[2] < starts[3] < len(DATA)


def test_all_faults_one_after_another(server):
    server.faults[PATH] = ["503", "cut", "reset", "503", "stall", "whole", "cut", "429"]
    assert fetch(server, attempts=3) == DATA


def test_a_server_that_ignores_ranges_is_read_from_the_start(server):
    server.faults[PATH] = ["cut", "whole"]
    assert fetch(server) == DATA and ranges(server) == [None, len(DATA) // 2]


def test_a_file_that_changes_between_two_requests(server):
    server.faults[PATH] = ["cut"]

    class Changing(io.BytesIO):
        def write(self, data):
            server.files[PATH] = gzip.compress(b"another file" * 1000, mtime=0)
            return super().write(data)

    target = Changing()
    download(server.root + PATH, target, timeout=1.0, pause=0.01)
    assert target.getvalue() == server.files[PATH]


def test_a_wrong_length_is_seen_by_the_gzip_end(server):
    server.faults[PATH] = ["short"]
    assert fetch(server) == DATA and ranges(server) == [None, None]
    server.faults[PATH] = ["short"] * 3
    with pytest.raises(OSError, match=r"given up after 3 tries: .*gzip member is cut"):
        fetch(server, attempts=3)


def test_something_else_under_the_name(server):
    server.faults[PATH] = ["garbage"]
    assert fetch(server) == DATA
    server.faults[PATH] = ["garbage"] * 2
    with pytest.raises(OSError, match="no gzip file"):
        fetch(server, attempts=2)


def test_the_md5_that_s3_tells_is_checked(server):
    server.headers = {"Server": "AmazonS3"}  # and its own ETag, which is the MD5
    assert fetch(server) == DATA
    server.headers = {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}
    with pytest.raises(OSError, match="its MD5 is"):
        fetch(server, attempts=2)


def test_a_server_that_always_breaks_at_the_same_byte(server):
    server.faults[PATH] = ["whole cut"] * 10
    with pytest.raises(OSError, match=r"given up after 3 tries: the connection broke after"):
        fetch(server, attempts=3)
    assert len(server.requests) == 4


def test_a_file_that_is_not_there_is_asked_for_once(server):
    with pytest.raises(FileNotFoundError, match=r"no such file \(HTTP 404\)"):
        fetch(server, "nothing.gz")
    server.faults[PATH] = ["403"]
    with pytest.raises(OSError, match="refuses it: HTTP 403"):
        fetch(server)
    assert len(server.requests) == 2


def test_a_server_that_never_answers_well(server):
    server.faults[PATH] = ["503"] * 10
    with pytest.raises(OSError, match="given up after 3 tries: HTTP 503"):
        fetch(server, attempts=3)
    assert len(server.requests) == 3


def test_nobody_listens():
    with pytest.raises(OSError, match=r"given up after 2 tries: .*refused"):
        download("http://127.0.0.1:9/x", io.BytesIO(), pause=0.01, attempts=2)


def test_a_url_is_opened_like_a_file(server):
    server.faults[PATH] = ["503", "cut"]
    with open_source(server.root + PATH) as file:
        assert file.read() == DATA


def test_common_crawls_bucket_needs_no_signature_but_a_package():
    assert crawl._options("s3://commoncrawl/x") == {"anon": True} and crawl._options("s3://mine/x") == {}
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(ValueError, match="needs the package s3fs"):
            download("s3://commoncrawl/x", io.BytesIO())


def test_lists(tmp_path):
    good, bad = tmp_path / "wet.paths.gz", tmp_path / "bad.gz"
    good.write_bytes(gzip.compress(f"{PATH}\n\n{PATH}2\n".encode()))
    assert list_segments(good) == [PATH, PATH + "2"]
    for line in ("/etc/passwd", "crawl-data/../../x", "crawl-data/.hidden", "crawl-data/a b", "https://elsewhere/x"):
        bad.write_bytes(gzip.compress(line.encode()))
        with pytest.raises(ValueError, match="is no path of a crawl file"):
            list_segments(bad)
    assert listing_path("CC-MAIN-2024-10", "wet") == "crawl-data/CC-MAIN-2024-10/wet.paths.gz"
    assert listing_path("CC-MAIN-2008-2009", "warc").endswith("2008-2009/warc.paths.gz")
    with pytest.raises(ValueError, match="no name of a snapshot"):
        listing_path("../x", "wet")


@pytest.mark.parametrize(
    ("which", "chosen"),
    [([], "abcde"), (["0"], "a"), (["1:3"], "bc"), (["3:", "0"], "dea"), (["::2"], "ace"), (["7:9"], ""), ([":2", "4"], "abe")],
)
def test_choosing_segments(which, chosen):
    assert "".join(choose(list("abcde"), which)) == chosen


@pytest.mark.parametrize("which", [["5"], ["-1"], ["a"], ["1:2:0"], ["1", "0:2"], [""]])
def test_a_wrong_choice_of_segments(which):
    with pytest.raises(ValueError, match=r"crawl\.segments"):
        choose(list("abcde"), which)
