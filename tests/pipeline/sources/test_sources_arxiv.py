"""arXiv's bulk files: real archives made with tar and gzip, whole, broken and hostile."""

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import SourcesConfig
from pipeline.sources import Given, arxiv
from pipeline.sources.arxiv import documents, paper_files
from pipeline.sources.latex import Rejected

PAPER = "\\documentclass{article}\\title{A Title}\\begin{document}\\section{One}\ntext % comment\n\\end{document}"


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def read(path: Path, data: bytes) -> tuple[list[arxiv.Document], Counter[str]]:
    file = path / "arXiv_src_2201_001.tar"
    file.write_bytes(data)
    counts: Counter[str] = Counter()
    found = list(documents(Given(str(file), None, SourcesConfig(), path), counts))
    return found, counts


def test_papers_of_one_file_and_of_many(tmp_path: Path) -> None:
    many = {
        "./main.tex": PAPER.replace("text", "\\input{more}").encode(),
        "more.tex": "größer".encode("latin-1"),
        "figure.png": b"\x89PNG",
    }
    bulk = {
        "2201/2201.00001.gz": gzip.compress(PAPER.encode()),
        "2201/hep-th9901001.gz": gzip.compress(tar(many)),
        "2201/2201.00002.pdf": b"%PDF",
        "2201/2201.00003.gz": gzip.compress(b"%auto-ignore\nThis paper has been withdrawn"[:13]),
        "2201/2201.00004.gz": gzip.compress(tar({"a.tex": b"x", "b.tex": b"y"})),
    }
    found, counts = read(tmp_path, tar(bulk))
    assert [(d.url, d.date, d.title, d.text) for d in found] == [
        ("https://arxiv.org/abs/2201.00001", "2022-01-01T00:00:00Z", "A Title", "\\section{One}\ntext"),
        ("https://arxiv.org/abs/hep-th/9901001", "1999-01-01T00:00:00Z", "A Title", "\\section{One}\ngrößer"),
    ]
    assert counts == {"dropped_pdf_only": 1, "dropped_empty": 1, "dropped_no_main_file": 1}


@pytest.mark.parametrize(
    "readme",
    [
        {"00README.XXX": b"nohypertex\nb.tex toplevelfile\n"},
        {"00README.json": b'{"sources": [{"filename": "a.tex"}, {"usage": "toplevel", "filename": "b.tex"}]}'},
    ],
)
def test_the_authors_name_the_main_file(tmp_path: Path, readme: dict[str, bytes]) -> None:
    files = {"a.tex": PAPER.replace("text", "much longer text").encode(), "b.tex": PAPER.encode(), **readme}
    found, _ = read(tmp_path, tar({"2201/2201.00001.gz": gzip.compress(tar(files))}))
    assert [d.text for d in found] == ["\\section{One}\ntext"]


@pytest.mark.parametrize("readme", [b"{", b"[]", b'{"sources": 3}', b'{"sources": [{"usage": "toplevel"}]}', b"[" * 100_000])
def test_a_broken_readme_names_nothing(tmp_path: Path, readme: bytes) -> None:
    found, _ = read(
        tmp_path, tar({"2201/2201.00001.gz": gzip.compress(tar({"a.tex": PAPER.encode(), "00README.json": readme}))})
    )
    assert len(found) == 1


def test_links_and_paths_mean_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "secret.tex"
    outside.write_text("secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("main.tex", tarfile.SYMTYPE), ("other.tex", tarfile.LNKTYPE), ("null.tex", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(outside)
            archive.addfile(member)
        for name in ("/etc/evil.tex", "../evil.tex"):
            data = PAPER.replace("text", f"\\input{{{outside}}}\\input{{../secret}}\\input{{/etc/passwd}}").encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found, counts = read(tmp_path, tar({"2201/2201.00001.gz": gzip.compress(buffer.getvalue())}))
    assert [d.text for d in found] == ["\\section{One}"]
    assert not Path("/etc/evil.tex").exists()
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as archive:
        member = tarfile.TarInfo("2201/2201.00001.gz")
        member.type, member.linkname = tarfile.SYMTYPE, str(outside)
        archive.addfile(member)
    assert read(tmp_path, outer.getvalue()) == ([], {"bad_not_a_file": 1})
    assert not counts


def test_bombs_and_broken_members_cost_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arxiv, "MAX_UNPACKED", 1 << 20)
    monkeypatch.setattr(arxiv, "MAX_PACKED", 1 << 20)
    monkeypatch.setattr(arxiv, "MAX_MEMBERS", 100)
    good = gzip.compress(PAPER.encode())
    many = gzip.compress(tar({f"{n}.tex": b"x" for n in range(101)}))
    bulk = {
        "2201/2201.00001.gz": gzip.compress(bytes(64 << 20)),
        "2201/2201.00002.gz": good[:-12],
        "2201/2201.00003.gz": b"no gzip",
        "2201/2201.00004.gz": bytes(2 << 20),
        "2201/2201.00005.gz": many,
        "2201/2201.00006.gz": gzip.compress((PAPER + "\\def\\a{\\a\\a}").replace("text", "\\def\\a{\\a\\a}\\a").encode()),
        "2201/2201.00007.gz": gzip.compress(tar({"a.tex": PAPER.encode()})[:600]),
        "2201/2201.00008.gz": good,
    }
    found, counts = read(tmp_path, tar(bulk))
    assert [d.url[-5:] for d in found] == ["00008"]
    wanted = {"bad_too_large": 3, "bad_compression": 2, "bad_macros_without_end": 1, "bad_tar": 1}
    assert counts == wanted


def test_a_cut_bulk_file_gives_what_it_has(tmp_path: Path) -> None:
    whole = tar({f"2201/2201.0000{n}.gz": gzip.compress(PAPER.encode()) for n in range(3)})
    found, counts = read(tmp_path, whole[: 1024 + 512 + 20])
    assert len(found) == 1
    assert counts["bad_truncated"] == 1
    for data in (b"", b"no tar at all" * 100):
        found, counts = read(tmp_path, data)
        assert not found
        assert counts["bad_truncated"] == 1


def test_a_header_that_asks_for_memory_ends_the_file(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    assert read(tmp_path, member.tobuf() + bytes(2048)) == ([], {"bad_truncated": 1})
    inner = gzip.compress(member.tobuf() + bytes(2048))
    with pytest.raises(Rejected, match="tar"):
        paper_files(inner)
