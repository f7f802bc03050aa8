"""arXiv's bulk source files in (tar files of one gzipped member a paper), the papers' LaTeX from the first section on out.

Format: https://info.arxiv.org/help/bulk_data_s3.html. A member is a gzipped tar of the paper's files, or one gzipped file;
papers without LaTeX are `.pdf`. Nothing is unpacked to a disk: names and links in the archives mean nothing but names.
"""

import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, cast

import fsspec

from pipeline.sources.documents import Document
from pipeline.sources.latex import Rejected, paper

if TYPE_CHECKING:
    from pipeline.sources import Given

MAX_PACKED = 256 << 20  # bytes of a paper's member
MAX_UNPACKED = 256 << 20  # bytes of a paper's files, figures and all
MAX_TEXT_FILE = 16 << 20  # bytes of a file of LaTeX
MAX_MEMBERS = 10_000  # files of a paper
TEXT_FILES = (".tex", ".ltx", ".latex", ".sty", ".bbl", ".txt", ".inc", ".def")

_NEW = re.compile(r"(\d{2})(\d{2})\.\d{4,5}(?:v\d+)?")
_OLD = re.compile(r"([a-z]+(?:-[a-z]+)*)((\d{2})(\d{2})\d{3})(?:v\d+)?")
_LINE_END = re.compile(r"\r\n?")
_TOP = re.compile(r"^\s*(\S+)\s+toplevelfile\s*$", re.MULTILINE)


def documents(given: "Given", counts: Counter[str]) -> Iterator[Document]:
    """The papers of a bulk tar file, in its order.

    `counts` is added to: `dropped_pdf_only`, `dropped_empty` (withdrawn), `dropped_no_main_file`, `bad_too_large`,
    `bad_macros_without_end`, `bad_compression`, `bad_tar`, `bad_not_a_file` (a link or a device), `bad_truncated` (ends the
    file). Memory: a few times the largest paper that is taken, at most some 1 GiB.
    """
    with fsspec.open(given.path, "rb") as file:
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as bulk:
                for member in bulk:
                    if member.isdir():
                        continue
                    if (document := _document(bulk, member, counts)) is not None:
                        yield document
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError):  # tarfile lets the last ones through
            counts["bad_truncated"] += 1


def _document(bulk: tarfile.TarFile, member: tarfile.TarInfo, counts: Counter[str]) -> Document | None:
    if not member.isreg() or member.issparse():
        counts["bad_not_a_file"] += 1
        return None
    name = member.name.rpartition("/")[2]
    if name.endswith(".pdf"):
        counts["dropped_pdf_only"] += 1
        return None
    if member.size > MAX_PACKED:
        counts["bad_too_large"] += 1
        return None
    stream = bulk.extractfile(member)
    assert stream is not None
    packed = stream.read()
    if len(packed) < member.size:
        raise EOFError
    try:
        files = paper_files(packed)
        main = _named_main(files)
        title, text = paper({path: text for path, text in files.items() if not path.startswith("00README")}, main)
    except Rejected as rejected:
        reason = str(rejected)
        counts[f"{'dropped' if reason in ('empty', 'no_main_file') else 'bad'}_{reason}"] += 1
        return None
    identifier, date = _identity(name)
    return Document(url=f"https://arxiv.org/abs/{identifier}", date=date, title=title, text=text)


def paper_files(packed: bytes) -> dict[str, str]:
    """{path: text} of a paper's LaTeX files: those of a gzipped tar, or the one that was gzipped (`main.tex`).

    Undecodable bytes are read as Latin-1, line ends become LF. Raises `Rejected`: `compression`, `tar`, `too_large`.
    """
    try:
        inflate = zlib.decompressobj(wbits=31)
        unpacked = inflate.decompress(packed, MAX_UNPACKED + 1)
    except zlib.error:
        raise Rejected("compression") from None
    if len(unpacked) > MAX_UNPACKED:
        raise Rejected("too_large")
    if not inflate.eof:
        raise Rejected("compression")
    if unpacked[257:262] != b"ustar":
        return {"main.tex": _decoded(unpacked)}
    files: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS:
                    raise Rejected("too_large")
                name = member.name.removeprefix("./")
                is_text = name.lower().endswith(TEXT_FILES) or "." not in name.rpartition("/")[2] or name.startswith("00README")
                if not member.isreg() or member.issparse() or not is_text:
                    continue
                if member.size > MAX_TEXT_FILE:
                    raise Rejected("too_large")
                stream = archive.extractfile(member)
                assert stream is not None
                files[name] = _decoded(stream.read())
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError):
        raise Rejected("tar") from None
    return files


def _named_main(files: Mapping[str, str]) -> str | None:
    """The main file that the authors named in arXiv's 00README."""
    if "00README.json" in files:
        try:
            sources = json.loads(files["00README.json"])["sources"]
            return next((str(s["filename"]) for s in sources if s.get("usage") == "toplevel"), None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    found = _TOP.search(files.get("00README.XXX", ""))
    return found[1] if found else None


def _decoded(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return _LINE_END.sub("\n", text)


def _identity(name: str) -> tuple[str, str]:
    """(identifier, date) of a member's name: the month in which the paper was submitted is part of it."""
    stem = name.removesuffix(".gz").removesuffix(".tar")
    if found := _NEW.fullmatch(stem):
        return stem, f"20{found[1]}-{found[2]}-01T00:00:00Z"
    if found := _OLD.fullmatch(stem):
        century = "19" if found[3] >= "91" else "20"
        return f"{found[1]}/{found[2]}", f"{century}{found[3]}-{found[4]}-01T00:00:00Z"
    return stem, ""


class _Bounded:
    """A file whose single reads are bounded, as tarfile takes the size of its headers from the file itself."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Like a file's; raises ValueError for a size that no header and no paper has."""
        if size > MAX_PACKED:
            raise ValueError(f"a read of {size} bytes")
        return self._file.read(size)
