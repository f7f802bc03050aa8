"""The demo crawl: its bytes, its records as fastwarc reads them, its languages, and sources that are odd."""

import base64
import hashlib
import json
import sys
from pathlib import Path

import pytest
from fastwarc import ArchiveIterator, WarcRecordType

from ccnet import demo_crawl
from ccnet.language import LanguageIdentifier

MODULE = '''"""Reads clocks.

Second line.
"""

def now():
    """The time."""

class Clock:
    """A clock."""

    async def tick(self):
        """Moves on."""

    def quiet(self):
        return """not a docstring"""
'''


@pytest.fixture
def installation(tmp_path: Path) -> tuple[Path, Path]:
    """A small installation with every kind of odd source, as (stdlib, site-packages)."""
    stdlib = tmp_path / "lib" / "python3.11"
    packages = stdlib / "site-packages"
    files = {
        stdlib / "clock.py": MODULE.encode(),
        stdlib / "silent.py": b"x = 1\n",
        stdlib / "strings.py": b'x = """no docstring\n"""\n',
        stdlib / "empty.py": b"",
        stdlib / "test" / "test_clock.py": MODULE.encode(),
        packages / "My_Pkg" / "__init__.py": b'"""A package."""',
        packages / "My_Pkg" / "tests" / "test_pkg.py": MODULE.encode(),
        packages / "My_Pkg" / "broken.py": b'def """:\n',
        packages / "My_Pkg" / "null.py": b'"""null"""\n\x00',
        packages / "My_Pkg" / "latin.py": b'# -*- coding: latin-1 -*-\n"""Gr\xfc\xdfe."""\n',
        packages / "My_Pkg" / "not_utf8.py": b'"""Gr\xfc\xdfe."""\n',
        packages / "My_Pkg" / "deep.py": b'"""deep"""\n' + b"(" * 3000 + b")" * 3000,
        packages / "My_Pkg" / "surrogate.py": b'"""half \\ud800 of a pair"""\n',
        packages / "single.py": '"""Ein Satz: größer."""\n'.encode(),
        packages / "__editable___own_finder.py": MODULE.encode(),
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return stdlib, packages


def read(path: Path) -> list[tuple[dict[str, str], bytes]]:
    """The records of a segment, as fastwarc sees them; it checks the digests itself."""
    records = []
    for record in ArchiveIterator(str(path), record_types=WarcRecordType.any_type, verify_digests=True):
        records.append((dict(record.headers), record.reader.read()))
    return records


def pages(path: Path) -> dict[str, list[str]]:
    """Lines of each page by its address."""
    return {headers["WARC-Target-URI"]: body.decode().split("\n") for headers, body in read(path)[1:]}


def test_plan_names_every_module_once(installation: tuple[Path, Path]) -> None:
    stdlib, packages = installation
    segments = demo_crawl.plan(3, stdlib=stdlib, site_packages=packages)
    files = [file for segment in segments for file in segment]
    assert len(segments) == 3 and max(map(len, segments)) - min(map(len, segments)) <= 1
    assert len(files) == len(set(files)) and json.loads(json.dumps(segments)) == segments
    names = {demo_crawl.module_name(Path(file)) for file in files if file.endswith(".py")}
    assert names == {
        *(("stdlib", name) for name in ("clock", "silent", "strings", "empty")),
        *(("My_Pkg", f"My_Pkg.{name}") for name in ("broken", "null", "latin", "not_utf8", "deep", "surrogate")),
        ("My_Pkg", "My_Pkg"),
        ("single", "single"),
    }
    assert len(files) == len(names) + len(list(demo_crawl.DEMO_PAGES.glob("*.txt")))


def test_plan_takes_a_share_and_caps_large_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for package in ("large", "small"):
        (packages / package).mkdir(parents=True)
    for number in range(1000):
        (packages / "large" / f"m{number}.py").write_text('"""x"""')
    (packages / "small" / "m.py").write_text('"""x"""')
    monkeypatch.setattr(demo_crawl, "PACKAGE_CAP", 2500)  # of the 7000 bytes of the large package

    def count(package: str, share: float = 1.0) -> int:
        (files,) = demo_crawl.plan(1, share, stdlib=tmp_path / "none", site_packages=packages)
        return sum(Path(file).parent.name == package for file in files)

    assert count("small") == 1
    assert 300 < count("large") < 415
    assert 150 < count("large", 0.5) < count("large")


def test_segment_is_the_same_twice(installation: tuple[Path, Path], tmp_path: Path) -> None:
    stdlib, packages = installation
    (files,) = demo_crawl.plan(1, stdlib=stdlib, site_packages=packages)
    counts = [demo_crawl.write_segment(files, tmp_path / name) for name in ("one", "two.gz")]
    assert counts[0] == counts[1]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert str(tmp_path).encode() not in b"".join(body for _, body in read(tmp_path / "one"))


def test_records_are_as_common_crawl_writes_them(installation: tuple[Path, Path], tmp_path: Path) -> None:
    stdlib, packages = installation
    (files,) = demo_crawl.plan(1, stdlib=stdlib, site_packages=packages)
    counts = demo_crawl.write_segment(files, tmp_path / "segment")
    (info, _), *conversions = read(tmp_path / "segment")
    assert info["WARC-Type"] == "warcinfo"
    assert counts["pages"] == len(conversions)
    assert counts["bytes"] == sum(len(body) for _, body in conversions)
    for headers, body in conversions:
        assert list(headers) == [
            "WARC-Type",
            "WARC-Target-URI",
            "WARC-Date",
            "WARC-Record-ID",
            "WARC-Refers-To",
            "WARC-Block-Digest",
            "WARC-Identified-Content-Language",
            "Content-Type",
            "Content-Length",
        ]
        assert headers["WARC-Type"] == "conversion" and int(headers["Content-Length"]) == len(body)
        assert headers["WARC-Block-Digest"] == "sha1:" + base64.b32encode(hashlib.sha1(body).digest()).decode()
    # A gzip member a record: each can be read alone.
    members = (tmp_path / "segment").read_bytes().count(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")
    assert members == len(conversions) + 1


def test_a_module_becomes_a_page(installation: tuple[Path, Path], tmp_path: Path) -> None:
    stdlib, _ = installation
    demo_crawl.write_segment([str(stdlib / "clock.py")], tmp_path / "segment")
    assert pages(tmp_path / "segment") == {
        "https://docs.python.example/stdlib/clock.html": [
            "Reads clocks.",
            *("clock", "Reads clocks.", "", "Second line."),
            *("clock.now", "The time."),
            *("clock.Clock", "A clock."),
            *("clock.Clock.tick", "Moves on."),
        ]
    }


def test_odd_sources_are_counted_and_passed_over(installation: tuple[Path, Path], tmp_path: Path) -> None:
    stdlib, packages = installation
    (files,) = demo_crawl.plan(1, stdlib=stdlib, site_packages=packages)
    modules = [file for file in files if file.endswith(".py")]
    counts = demo_crawl.write_segment([*modules, str(stdlib / "gone.py")], tmp_path / "segment")
    found = pages(tmp_path / "segment")
    assert counts == {
        "files": 13,
        "pages": 5,
        "bytes": counts["bytes"],
        "without_text": 3,  # silent, strings, empty
        "bad": {"unparsable": 4, "unreadable": 1},  # broken, null, not_utf8, deep; gone
    }
    assert found["https://my-pkg.example/api/My_Pkg.latin.html"][0] == "Grüße."
    assert found["https://my-pkg.example/api/My_Pkg.surrogate.html"][0] == "half ? of a pair"
    assert found["https://single.example/api/single.html"][0] == "Ein Satz: größer."


def test_no_files(tmp_path: Path) -> None:
    assert demo_crawl.write_segment([], tmp_path / "segment") == {
        **dict.fromkeys(("files", "pages", "bytes", "without_text"), 0),
        "bad": {},
    }
    assert len(read(tmp_path / "segment")) == 1


def test_demo_pages_are_in_their_language(tmp_path: Path) -> None:
    files = sorted(demo_crawl.DEMO_PAGES.glob("*.txt"))
    assert {file.stem for file in files} == set(demo_crawl.SITES) and len(files) >= 8
    model = LanguageIdentifier(Path(sys.prefix) / "share" / "llama-pretrain" / "lid.176.ftz")
    for file in files:
        of_language = list(demo_crawl.read_pages(file))
        assert len(of_language) >= 4
        boilerplate = set.intersection(*(set(page.lines) for page in of_language))
        assert len(boilerplate) >= 3  # deduplication has something to do
        for page in of_language:
            text = "\n".join(page.lines)
            language, score = model.predict(text)
            assert language == file.stem and score > 0.9, (page.url, language, score)
            assert len(text) >= 300


def test_this_installation() -> None:
    """A plan of what is installed here: the files are there, and no two have the same address."""
    files = [Path(file) for segment in demo_crawl.plan() for file in segment]
    assert len(files) > 1000 and all(file.is_file() for file in files)
    addresses = [demo_crawl.module_name(file) for file in files if file.suffix == ".py"]
    assert len(addresses) == len(set(addresses))
