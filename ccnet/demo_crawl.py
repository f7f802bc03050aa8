"""A crawl written on the spot: the documentation strings of this Python installation, and pages in other languages.

In: the sources of the standard library and of the installed packages (read, never imported), and ccnet/demo_pages.
Out: WET segments as Common Crawl writes them since CC-MAIN-2020-24. `plan` says which files a segment is made of,
`write_segment` writes it. One module is one page: its title is the first line of the module's docstring, its lines are
the docstrings of the module, its classes and its functions under their qualified names, with the repetitions that
really are in them. The bytes depend on nothing but the files.
"""

import ast
import base64
import gc
import gzip
import hashlib
import re
import sysconfig
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STDLIB, SITE_PACKAGES = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
PYTHON_FOLDER = re.compile(r"python3\.\d+")
DEMO_PAGES = Path(__file__).parent / "demo_pages"
PACKAGE_CAP = 12_000_000  # bytes of source of one package, 2 to 3 MB of documentation
NOT_READ = {"test", "tests", *PACKAGE_FOLDERS}  # tests document little
DATE = "2024-01-01T00:00:00Z"

# Sites of the pages written for this project, with the ISO 639-3 code that Common Crawl's header gives.
SITES = {
    "ar": ("ara", "https://nahr.example/maqalat"),
    "de": ("deu", "https://wetter-und-brot.example/artikel"),
    "es": ("spa", "https://cuaderno-abierto.example/notas"),
    "fr": ("fra", "https://carnet-du-fleuve.example/articles"),
    "it": ("ita", "https://quaderno-aperto.example/articoli"),
    "ja": ("jpn", "https://mainichi-kagaku.example/kiji"),
    "nl": ("nld", "https://dijk-en-brood.example/artikelen"),
    "pl": ("pol", "https://zeszyt.example/artykuly"),
    "pt": ("por", "https://caderno-do-rio.example/artigos"),
    "ru": ("rus", "https://reka-i-hleb.example/stati"),
    "zh": ("zho", "https://heliu.example/wenzhang"),
}


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Page(NamedTuple):
    """What a conversion record says."""

    url: str
    language: str
    title: str
    lines: list[str]


def plan(
    segments: int = 8,
    share: float = 1.0,
    *,
    stdlib: Path = STDLIB,
    site_packages: Path = SITE_PACKAGES,
) -> list[list[str]]:
    """The files of each segment, found by names and sizes alone: nothing is parsed.

    Of the modules a `share` in (0, 1] is taken, and of a package with more source than PACKAGE_CAP only so much, both
    by a hash of the module's name; all of DEMO_PAGES is taken. The default is the installation that runs this code.
    """
    files = sorted(DEMO_PAGES.glob("*.txt"))
    files += _choose([path for path in stdlib.rglob("*.py") if _is_read(path.relative_to(stdlib))], share)
    for package in sorted(site_packages.iterdir()):
        modules = [package] if package.suffix == ".py" else package.rglob("*.py")
        files += _choose([path for path in modules if _is_read(path.relative_to(site_packages))], share)
    return [[str(file) for file in files[segment::segments]] for segment in range(segments)]


def _is_read(path: Path) -> bool:
    return NOT_READ.isdisjoint(path.parts) and not path.parts[0].startswith("__editable__")


def _choose(modules: list[Path], share: float) -> list[Path]:
    sizes = {path: path.stat().st_size for path in sorted(modules) if path.is_file()}
    share *= min(1.0, PACKAGE_CAP / max(1, sum(sizes.values())))
    return [path for path in sizes if _fraction(module_name(path)[1]) < share]


def _fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def module_name(path: Path) -> tuple[str, str]:
    """The package that a module belongs to ("stdlib" for the standard library) and its dotted name."""
    parts = path.with_suffix("").parts
    root = max(i for i, part in enumerate(parts) if part in PACKAGE_FOLDERS or PYTHON_FOLDER.fullmatch(part))
    inside = parts[root + 1 :]
    package = inside[0] if parts[root] in PACKAGE_FOLDERS else "stdlib"
    return package, ".".join(inside[:-1] if len(inside) > 1 and inside[-1] == "__init__" else inside)


def write_segment(files: Sequence[str], target: Path) -> dict[str, Any]:
    """Writes one WET segment, a gzip member a record, and returns its counts.

    `files` (Python modules and pages of DEMO_PAGES), `pages`, `bytes` (of the bodies), `without_text` (modules without
    docstrings), and `bad` by reason: `unreadable`, and `unparsable` for modules that this Python does not understand.
    """
    counts = Counter(files=len(files), pages=0, bytes=0, without_text=0)
    bad: Counter[str] = Counter()
    with target.open("wb") as segment:
        segment.write(_member(_warcinfo([Path(file).stem for file in files])))
        for file in map(Path, files):
            try:
                pages = list(read_pages(file) if file.suffix == ".txt" else read_module(file))
            except OSError:
                bad["unreadable"] += 1
                continue
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                bad["unparsable"] += 1
                continue
            counts["without_text"] += not pages
            for page in pages:
                body = "\n".join([page.title, *page.lines]).encode(errors="replace")
                segment.write(_member(_conversion(page, body)))
                counts.update(pages=1, bytes=len(body))
    return {**counts, "bad": dict(bad)}


def read_pages(file: Path) -> Iterator[Page]:
    """The pages of a language's file: form feeds on lines of their own separate them, the first line is the title.

    Raises UnicodeDecodeError, a ValueError, if the file is not UTF-8.
    """
    language, site = SITES[file.stem]
    for number, text in enumerate(file.read_text(encoding="utf-8").split("\n\f\n"), 1):
        title, *lines = text.strip().split("\n")
        yield Page(f"{site}/{number}.html", language, title, lines)


def read_module(file: Path) -> Iterator[Page]:
    """The page of a module, or none if nothing in it has a docstring (between triple quotes).

    Raises what `ast.parse` raises: SyntaxError (wrong encodings too), ValueError, RecursionError, MemoryError.
    """
    source = file.read_bytes()
    if b'"""' not in source and b"'''" not in source:
        return
    package, module = module_name(file)
    parts = list(_docstrings(_parse(source), module))
    if not parts:
        return
    heading, docstring = parts[0]
    title = docstring.split("\n")[0] if heading == module else module
    lines = [line for heading, docstring in parts for line in (heading, *docstring.split("\n"))]
    site = (
        "docs.python.example/stdlib" if package == "stdlib" else f"{package.strip('_').replace('_', '-').lower()}.example/api"
    )
    yield Page(f"https://{site}/{module}.html", "eng", title, lines)


def _parse(text: bytes) -> ast.Module:
    collecting = gc.isenabled()
    gc.disable()  # a tree is made of many objects and no cycles: a fifth of the time goes into looking for some
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            return ast.parse(text)
    finally:
        if collecting:
            gc.enable()


def _docstrings(node: Documented, name: str) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if docstring and docstring.strip():
        yield name, docstring.strip()
    if isinstance(node, ast.Module | ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(part, f"{name}.{part.name}")


def _warcinfo(names: Sequence[str]) -> bytes:
    body = b"Software-Info: llama-pretrain demo crawl\r\nisPartOf: demo\r\nformat: WARC File Format 1.0\r\n"
    return _record(
        {
            "WARC-Type": "warcinfo",
            "WARC-Date": DATE,
            "WARC-Record-ID": _record_id(f"warcinfo {names}"),
            "Content-Type": "application/warc-fields",
            "Content-Length": str(len(body)),
            "WARC-Block-Digest": _digest(body),
        },
        body,
    )


def _conversion(page: Page, body: bytes) -> bytes:
    return _record(
        {
            "WARC-Type": "conversion",
            "WARC-Target-URI": page.url,
            "WARC-Date": DATE,
            "WARC-Record-ID": _record_id(page.url),
            "WARC-Refers-To": _record_id(f"response {page.url}"),
            "WARC-Block-Digest": _digest(body),
            "WARC-Identified-Content-Language": page.language,
            "Content-Type": "text/plain",
            "Content-Length": str(len(body)),
        },
        body,
    )


def _record(headers: dict[str, str], body: bytes) -> bytes:
    """A record as WARC 1.0 section 4 lays it out: CRLF after each header line, two after the body."""
    lines = ["WARC/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body + b"\r\n\r\n"


def _member(record: bytes) -> bytes:
    return gzip.compress(record, compresslevel=6, mtime=0)


def _record_id(name: str) -> str:
    return f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}>"


def _digest(body: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(body).digest()).decode()
