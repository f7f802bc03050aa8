r"""The LaTeX files of a paper in; its text from the first section on, still LaTeX, out.

What goes, and in which order: comments, then `\input` and its kin are resolved, then the authors' own macros are expanded,
then everything before the first section and the bibliography are cut (LLaMA, arXiv 2302.13971, section 2.1, after
Lewkowycz et al., arXiv 2206.14858). The rules of comments, spaces and arguments are TeX's (The TeXbook, chapters 8 and 20).
Verbatim text and addresses stay as they are. Nothing is run: a macro that programs TeX is no abbreviation and keeps its
name.
"""

import posixpath
import re
from collections.abc import Mapping
from typing import NamedTuple

MAX_TEXT = 8 << 20  # characters of a paper with its files; the longest have some 5 million
MAX_FILES = 1000  # that a paper includes
MAX_ROUNDS = 8  # of files that include files
GROWTH = 16  # expansion may write so many times the paper's characters, and a million more
MAX_ARGUMENT = 100_000  # characters of an argument
MAX_ADDRESS = 4000  # characters of an address, and of a line's verbatim text
MAX_UNCLOSED = 100  # pieces of verbatim text without an end; what follows has none then
SETTLED, PATTERNS = 50, 20  # control sequences without a definition, until the known ones are looked for; so often at most
WINDOW = 256  # characters that an expansion reads of what follows it, at first

VERBATIM = "verbatim|Verbatim|BVerbatim|LVerbatim|alltt|lstlisting|minted|filecontents"
STRUCTURE = frozenset(  # commands that have a meaning here, whatever an author makes of them
    re.findall(
        r"\w+",
        """part chapter section subsection subsubsection paragraph subparagraph title author date abstract maketitle
        begin end document input include subfile bibliography bibliographystyle printbibliography cite footnote item
        caption label ref eqref url href documentclass documentstyle usepackage verb par""",
    )
)
PROGRAM = re.compile(  # what makes a macro more than an abbreviation
    r"@|##|\\(?:if[A-Za-z]*|else|fi|or|loop|repeat|csname|endcsname|expandafter|noexpand|futurelet|afterassignment|aftergroup"
    r"|catcode|[gex]?def|let|newcommand|renewcommand|providecommand|newenvironment|newcounter|setcounter|addtocounter|everypar"
    r"|the|number|uppercase|lowercase|jobname|read|write|immediate|special|openin|openout|advance|global|long|nextchar)(?![A-Za-z])"
)

PREFIXES = ("long", "global", "outer", "protected")  # of definitions

_SPECIAL = re.compile(
    rf"""\\(?:(?P<verb>verb|lstinline)\*?(?P<mark>[^A-Za-z\s*\[{{]) | (?P<address>url|path|nolinkurl|href)\s*\{{
    | begin\s*\{{(?P<environment>(?:{VERBATIM}|comment)\*?)\}}
    | (?P<false>iffalse)(?![A-Za-z]) | (?P<end>end\s*\{{document\}}) | [\\%])
    | (?P<comment>%)""",
    re.VERBOSE | re.DOTALL,
)
_CONDITION = re.compile(r"\\(?:(?P<open>if[A-Za-z@]*)|(?P<close>fi)|(?P<otherwise>else))(?![A-Za-z@])|\\.", re.DOTALL)
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BRACKETS = re.compile(r"\\.|[{}\]]", re.DOTALL)
_CONTROL = re.compile(r"\\(?:([A-Za-z@]+)|.)", re.DOTALL)
_NAME = re.compile(r"\s*(?:\{\s*\\([A-Za-z@]+|[^A-Za-z@])\s*\}|\\([A-Za-z@]+|[^A-Za-z@]))", re.DOTALL)
_COUNT = re.compile(r"\s*\[\s*([0-9])\s*\]")
_SPACES = re.compile(r"[ \t]*+(?:\n[ \t]*+(?!\n))?")  # TeX's: up to one line end; an empty line is a paragraph
_PARAMETER = re.compile(r"#([1-9])")
_CONTROL_AT_END = re.compile(r"\\[A-Za-z@]+\Z")
_HELD = re.compile("\0([0-9]+)\0")
_INCLUDE = re.compile(
    r"\\(?:(?P<import>(?:sub)?import(?:from)?)\*?\s*\{(?P<folder>[^{}]{0,1000})\}\s*\{(?P<imported>[^{}]{0,1000})\}"
    r"|(?:input|include|subfile)(?:\s*\{(?P<name>[^{}]{0,1000})\}|\s+(?P<bare>[^\s{}\\]{1,1000}))"
    r"|(?:usepackage|RequirePackage)\s*(?:\[[^\]]{0,1000}\])?\s*\{(?P<packages>[^{}]{0,1000})\})"
)
_CLASS = re.compile(r"\\document(?:class|style)(?![A-Za-z])")
_START = re.compile(r"\\begin\s*\{document\}")
_SECTION = re.compile(r"\\(?:part|chapter|section)\*?\s*[\[{]")
_FRONT = re.compile(r"\\end\s*\{abstract\}|\\maketitle(?![A-Za-z])|\\begin\s*\{document\}")
_TITLE = re.compile(r"\\title\s*(?:\[[^\]]{0,1000}\]\s*)?\{")
_REFERENCES = re.compile(r"\\begin\s*\{(thebibliography|references)\}.*?(?:\\end\s*\{\1\}|\Z)", re.DOTALL)
_BIBLIOGRAPHY = re.compile(
    r"\\(?:bibliography(?:style)?|nocite|addbibresource)\s*\{[^{}]{0,10000}\}"
    r"|\\printbibliography(?![A-Za-z])(?:\[[^\]]{0,1000}\])?"
)
_TRAILING = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


class Rejected(Exception):
    """There is no text to be had from a paper; the message is the reason under which it is counted."""


class Paper(NamedTuple):
    """A paper's title on one line (empty where it has none), and its LaTeX from the first section on."""

    title: str
    text: str


class Macro(NamedTuple):
    r"""An abbreviation. `delimiters[k]` is the text between the parameters k and k + 1, `delimiters[0]` that before the first
    and the last that behind the last (all empty but for TeX's `\def`); `default` is the first argument's, where that is
    optional. `meant`: the body is a command with the meaning that it had when `\let` took it, so it is not expanded."""

    delimiters: tuple[str, ...]
    default: str | None
    body: str
    meant: bool = False


def paper(files: Mapping[str, str], named_main: str | None = None) -> Paper:
    """The paper that `files`, {path: LaTeX}, make up.

    `named_main`: its main file, where the authors named it; else it is found (`main_file`). Raises `Rejected`: `empty`,
    `no_main_file`, `too_large` (over 8 MiB, or over 1,000 files included), `macros_without_end`. Time and memory grow with
    the files' size, whatever their macros do.
    """
    if sum(map(len, files.values())) > MAX_TEXT:
        raise Rejected("too_large")
    held: list[str] = []
    stripped = {path: without_comments(text.replace("\0", ""), held) for path, text in files.items()}
    if not any(text.strip() for text in stripped.values()):
        raise Rejected("empty")
    main = named_main if named_main in stripped else main_file(stripped)
    text = expanded(_included(main, stripped))
    title = _title(text)
    text = _BIBLIOGRAPHY.sub("", _REFERENCES.sub("", body(text)))
    text = _EMPTY_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()
    if not text:
        raise Rejected("empty")
    return Paper(_release(title, held), _release(text, held))


def without_comments(text: str, held: list[str]) -> str:
    r"""`text` without what TeX does not see: comments (with the line end and the spaces that follow), the environment
    `comment`, what stands between `\iffalse` and its `\fi`, and what follows `\end{document}`.

    Verbatim text and addresses, in which % is a character, are added to `held` and replaced by their number between NULs.
    """
    parts, at, unclosed = [], 0, 0
    while found := _SPECIAL.search(text, at):
        parts.append(text[at : found.start()])
        at = found.end()
        if found["comment"]:
            line_end = text.find("\n", at)
            at = len(text) if line_end < 0 else line_end + 1
            start_of_line = text.rfind("\n", 0, found.start()) + 1
            if text[start_of_line : found.start()].strip(" \t"):
                while at < len(text) and text[at] in " \t":
                    at += 1
                if at < len(text) and text[at] == "\n":  # an empty line is still one
                    parts.append("\n")
            else:  # nothing but the comment: the line goes
                parts[-1] = parts[-1].rstrip(" \t")
        elif found["end"]:
            return "".join(parts) + found[0]
        elif found["false"]:
            at = _behind_condition(text, at)
        else:
            special = found["verb"] or found["address"] or found["environment"]
            end = _end_of_special(text, found) if special and unclosed < MAX_UNCLOSED else None
            if end is None:  # an escaped character, or what is never closed
                unclosed += special is not None
                parts.append(found[0])
            elif (found["environment"] or "").startswith("comment"):
                at = end
            else:
                parts.append(f"\0{len(held)}\0")
                held.append(text[found.start() : end])
                at = end
    parts.append(text[at:])
    return "".join(parts)


def _end_of_special(text: str, found: re.Match[str]) -> int | None:
    """Where verbatim text or an address ends; None where it is not closed."""
    at = found.end()
    if found["verb"]:
        end = text.find(found["mark"], at, at + MAX_ADDRESS)
        return end + 1 if end >= 0 and "\n" not in text[at:end] else None
    if found["address"]:
        closed = _closing(text, at, end=at + MAX_ADDRESS)
        return closed + 1 if closed is not None else None
    closing = f"\\end{{{found['environment']}}}"
    end = text.find(closing, at)
    return end + len(closing) if end >= 0 else None


def _behind_condition(text: str, at: int) -> int:
    r"""Behind the `\else` or `\fi` of a condition that is false and whose text begins `at`."""
    depth = 1
    for found in _CONDITION.finditer(text, at):
        depth += (found["open"] is not None) - (found["close"] is not None)
        if depth == 0 or (depth == 1 and found["otherwise"]):
            return found.end()
    return len(text)


def main_file(texts: Mapping[str, str]) -> str:
    r"""The file that the paper begins with: the only one, or one with a `\documentclass` (or LaTeX 2.09's `\documentstyle`)
    that no other file includes; of several that with `\begin{document}`, then the longest, then the first by name.

    Raises `Rejected`: `no_main_file`.
    """
    sources = {path: text for path, text in texts.items() if not path.endswith((".sty", ".cls", ".bbl", ".bst", ".clo"))}
    if len(sources) == 1:
        return next(iter(sources))
    inclusions = ((found, path) for path, text in sources.items() for found in _INCLUDE.finditer(text))
    included = {other for found, path in inclusions for other in _named(found, path, texts)}
    classes = [path for path, text in sources.items() if _CLASS.search(text)]
    found = [path for path in classes if path not in included] or classes
    if not found:
        raise Rejected("no_main_file")
    return min(found, key=lambda path: (not _START.search(sources[path]), -len(sources[path]), path))


def _included(main: str, texts: Mapping[str, str]) -> str:
    """The main file with those that it includes in their places; what is not among `texts` is left out."""
    text = texts[main]
    places = 0
    for _ in range(MAX_ROUNDS):
        parts, at, size = [], 0, len(text)
        for found in _INCLUDE.finditer(text):
            names = _named(found, main, texts)
            if not names and found["packages"] is not None:
                continue
            inner = [_outside_class(texts[name]) for name in names if name != main]
            parts += [text[at : found.start()], *inner]
            at = found.end()
            places += 1
            size += sum(map(len, inner))
            if size > MAX_TEXT or places > MAX_FILES:
                raise Rejected("too_large")
        if not parts:
            return text
        text = "".join([*parts, text[at:]])
    return _INCLUDE.sub("", text)  # files that include themselves


def _outside_class(text: str) -> str:
    r"""A file as it is included: of one that could stand alone (`\subfile`), the document's body."""
    start = _START.search(text)
    return text[start.end() :].replace("\\end{document}", "") if start and _CLASS.search(text) else text


def _named(found: re.Match[str], main: str, texts: Mapping[str, str]) -> list[str]:
    """The files that an inclusion names, of those that there are. Of packages only those that don't provide one, which are
    the author's macros; a journal's style is no abbreviation."""
    base = posixpath.dirname(main)
    if found["packages"] is not None:
        names = [posixpath.normpath(posixpath.join(base, name.strip() + ".sty")) for name in found["packages"].split(",")]
        return [name for name in names if name in texts and "\\ProvidesPackage" not in texts[name]]
    if found["import"]:
        name = posixpath.join(found["folder"].strip(), found["imported"].strip())
    else:
        name = (found["name"] or found["bare"] or "").strip().strip('"')
    path = posixpath.normpath(posixpath.join(base, name))
    return next(([p] for p in (path + ".tex", path) if p in texts), [])


def body(text: str) -> str:
    r"""From the first section on; where there is none, from the end of the abstract, the title or `\begin{document}`."""
    start = _START.search(text)
    at = start.end() if start else 0
    if section := _SECTION.search(text, at):
        at = section.start()
    else:
        at = max([found.end() for found in _FRONT.finditer(text, at)], default=at)
    return text[at:].replace("\\end{document}", "")


def _title(text: str) -> str:
    found = _TITLE.search(text)
    end = _closing(text, found.end()) if found else None
    return " ".join(text[found.end() : end].replace("\\\\", " ").split()) if found and end is not None else ""


def _release(text: str, held: list[str]) -> str:
    return _HELD.sub(lambda number: held[int(number[1])] if int(number[1]) < len(held) else "", text)


def expanded(text: str) -> str:
    r"""`text` with its own macros expanded and their definitions removed.

    Definitions: `\newcommand`, `\renewcommand`, `\providecommand`, `\DeclareRobustCommand` (with optional arguments),
    `\DeclareMathOperator`, `\def`, `\gdef`, `\edef`, `\xdef` (with delimited parameters) and `\let`. They hold from where
    they stand to the end, groups or not. Macros whose body programs TeX, and those that redefine a command of `STRUCTURE`,
    stay, with their definition. Raises `Rejected`: `macros_without_end`.
    """
    return _Expansion(text).run()


class _Expansion:
    """TeX's mouth: the text that is still to be read lies in frames, the innermost expansion on top."""

    def __init__(self, text: str) -> None:
        self._frames: list[tuple[str, int]] = []
        self._text, self._at = text, 0  # the frame on top
        self._budget = GROWTH * len(text) + 1_000_000
        self._macros: dict[str, Macro] = {}
        self._known: re.Pattern[str] | None = None
        self._seen = self._patterns = 0
        self._out: list[str] = []
        self._definitions = {
            **dict.fromkeys(("newcommand", "renewcommand", "providecommand", "DeclareRobustCommand"), self._new_command),
            **dict.fromkeys(("def", "gdef", "edef", "xdef"), self._define),
            "DeclareMathOperator": self._operator,
            "let": self._let,
        }

    def run(self) -> str:
        while True:
            found = self._pattern().search(self._text, self._at)
            if found is None:
                self._write(self._text[self._at :])
                if not self._frames:
                    return "".join(self._out)
                self._text, self._at = self._frames.pop()
                continue
            self._write(self._text[self._at : found.start()])
            self._at = found.end()
            name = found[1] or found[0][1:]
            if name in self._definitions:
                self._known, self._seen = None, 0
                if not self._definitions[name]():  # then it stays
                    self._write(self._text[found.start() : self._at])
            elif name in PREFIXES and self._before_definition():
                pass
            elif (macro := self._macros.get(name)) is None or not self._expand(name, macro):
                self._write(found[0])

    def _pattern(self) -> re.Pattern[str]:
        """What is looked for: every control sequence, or, where no definition came for a while, those that are known."""
        self._seen += 1
        if self._known is None and self._seen > SETTLED and self._patterns < PATTERNS:
            self._patterns += 1
            names = sorted({*self._macros, *self._definitions, *PREFIXES}, key=len, reverse=True)
            words = "|".join(re.escape(name) for name in names if name[0].isalpha() or name[0] == "@")
            others = "".join(f"|{re.escape(name)}" for name in names if not (name[0].isalpha() or name[0] == "@"))
            self._known = re.compile(rf"\\(?:({words})(?![A-Za-z@])|\\{others})")
        return self._known or _CONTROL

    def _write(self, text: str) -> None:
        if text:
            if self._out and text[0].isalpha() and _CONTROL_AT_END.search(self._out[-1][-64:]):
                self._out.append(" ")  # TeX read two tokens
            self._out.append(text)

    def _before_definition(self) -> bool:
        r"""Whether a definition follows a prefix such as `\long`."""
        found = _CONTROL.match(self._text, _SPACES.match(self._text, self._at).end())  # type: ignore[union-attr]
        return found is not None and (found[1] in self._definitions or found[1] in PREFIXES)

    def _expand(self, name: str, macro: Macro) -> bool:
        """Puts the body with its arguments on top of the input; False, and nothing is read, where they can't be found."""
        arguments = self._arguments(macro)
        if arguments is None:
            return False
        body = macro.body
        if "#" in body:
            parts = _PARAMETER.split(body)
            body = parts[0]
            for number, literal in zip(parts[1::2], parts[2::2], strict=True):
                argument = arguments[int(number) - 1] if int(number) <= len(arguments) else ""
                body = _joined(_joined(body, argument), literal)
                self._spend(len(argument))
        if name[-1].isalpha() and not arguments:
            if body.endswith("\\xspace"):  # a macro that knows whether a space follows
                body = body.removesuffix("\\xspace")
            else:
                self._at = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]
        self._spend(len(body) + len(name) + 1)
        if macro.meant:
            self._write(body)
            return True
        if self._at < len(self._text):
            self._frames.append((self._text, self._at))
        self._text, self._at = body, 0
        return True

    def _spend(self, characters: int) -> None:
        self._budget -= characters
        if self._budget < 0:
            raise Rejected("macros_without_end")

    def _arguments(self, macro: Macro) -> list[str] | None:
        """The arguments that follow, read; None, and nothing is read, where they are not there."""
        while True:
            start, arguments = self._at, []
            at: int | None = start
            if (first := macro.delimiters[0]) != "":
                at = _SPACES.match(self._text, start).end()  # type: ignore[union-attr]
                at = at + len(first) if self._text.startswith(first, at) else None
            for number, delimiter in enumerate(macro.delimiters[1:]):
                if at is None:
                    break
                if number == 0 and macro.default is not None:
                    argument, at = self._optional(at, macro.default)
                elif delimiter:
                    argument, at = self._delimited(_SPACES.match(self._text, at).end(), delimiter)  # type: ignore[union-attr]
                else:
                    argument, at = self._undelimited(at)
                arguments.append(argument)
            if at is not None:
                self._at = at
                return arguments
            left = len(self._text) - start
            if not self._frames or left > MAX_ARGUMENT:
                self._spend(min(left, MAX_ARGUMENT))  # it was looked through
                return None
            below, below_at = self._frames.pop()  # the arguments go on where the expansion ends
            line_end = below.find("\n", below_at + max(WINDOW, left))
            cut = line_end + 1 if line_end >= 0 else len(below)
            self._spend(left + cut - below_at)
            if cut < len(below):
                self._frames.append((below, cut))
            self._text, self._at = _joined(self._text[start:], below[below_at:cut]), 0

    def _undelimited(self, at: int) -> tuple[str, int | None]:
        at = _SPACES.match(self._text, at).end()  # type: ignore[union-attr]
        if at >= len(self._text) or self._text[at] in "}\n":
            return "", None
        if self._text[at] == "{":
            end = _closing(self._text, at + 1)
            return (self._text[at + 1 : end], end + 1) if end is not None else ("", None)
        found = _CONTROL.match(self._text, at) or _HELD.match(self._text, at)
        end = found.end() if found else at + 1
        return self._text[at:end], end

    def _optional(self, at: int, default: str) -> tuple[str, int | None]:
        opening = _SPACES.match(self._text, at).end()  # type: ignore[union-attr]
        if opening >= len(self._text):
            return default, at if not self._frames else None
        if self._text[opening] != "[":
            return default, at
        end = _closing(self._text, opening + 1, _BRACKETS)
        return (self._text[opening + 1 : end], end + 1) if end is not None else (default, None)

    def _delimited(self, at: int, delimiter: str) -> tuple[str, int | None]:
        tokens = re.compile(rf"(?P<end>{re.escape(delimiter)})|\\.|[{{}}]", re.DOTALL)
        depth = 0
        for found in tokens.finditer(self._text, at, at + MAX_ARGUMENT):
            if found["end"] and depth == 0:
                argument = self._text[at : found.start()]
                if argument.startswith("{") and _closing(argument, 1) == len(argument) - 1:
                    argument = argument[1:-1]
                return argument, found.end()
            depth += (found[0] == "{") - (found[0] == "}")
            if depth < 0:
                break
        return "", None

    def _register(self, name: str, macro: Macro) -> bool:
        """Whether the macro is an abbreviation, and known from here on."""
        if name in STRUCTURE or PROGRAM.search(macro.body):
            self._macros.pop(name, None)
            return False
        self._macros[name] = macro
        return True

    def _name(self, at: int) -> tuple[str, int] | None:
        found = _NAME.match(self._text, at)
        return ((found[1] or found[2]), found.end()) if found else None

    def _new_command(self) -> bool:
        at = self._at + self._text.startswith("*", self._at)
        if (named := self._name(at)) is None:
            return False
        name, at = named
        count = _COUNT.match(self._text, at)
        at = count.end() if count else at
        parameters = int(count[1]) if count else 0
        default = None
        opening = _SPACES.match(self._text, at).end()  # type: ignore[union-attr]
        if parameters and self._text.startswith("[", opening):
            end = _closing(self._text, opening + 1, _BRACKETS)
            if end is None:
                return False
            default, at = self._text[opening + 1 : end], end + 1
        body, end = self._undelimited(at)
        if end is None:
            return False
        self._at = end
        return self._register(name, Macro(("",) * (parameters + 1), default, body))

    def _define(self) -> bool:
        if (named := self._name(self._at)) is None:
            return False
        name, at = named
        opening = self._text.find("{", at, at + 1000)
        end = _closing(self._text, opening + 1) if opening >= 0 else None
        if end is None:
            return False
        delimiters = tuple(_PARAMETER.split(self._text[at:opening])[::2])
        self._at = end + 1
        spaces = len(delimiters) == 1 and not delimiters[0].strip()
        return self._register(name, Macro(("",) if spaces else delimiters, None, self._text[opening + 1 : end]))

    def _operator(self) -> bool:
        star = "*" if self._text.startswith("*", self._at) else ""
        if (named := self._name(self._at + len(star))) is None:
            return False
        name, at = named
        body, end = self._undelimited(at)
        if end is None:
            return False
        self._at = end
        return self._register(name, Macro(("",), None, f"\\operatorname{star}{{{body}}}"))

    def _let(self) -> bool:
        if (named := self._name(self._at)) is None:
            return False
        name, at = named
        equals = re.compile(r"\s*=? ?").match(self._text, at)
        assert equals is not None
        found = _CONTROL.match(self._text, equals.end())
        if found is None:
            return False
        self._at = found.end()
        other = found[1] or found[0][1:]
        if other in self._macros:
            return self._register(name, self._macros[other])
        if name == other:
            return True
        return self._register(name, Macro(("",), None, found[0], meant=True))


def _closing(text: str, at: int, pattern: re.Pattern[str] = _BRACES, end: int | None = None) -> int | None:
    """Where the group whose text begins `at` is closed: its brace, or its bracket at brace level 0. None where it is not."""
    depth = 0
    for found in pattern.finditer(text, at, at + MAX_ARGUMENT if end is None else end):
        token = found[0]
        if token == "{":
            depth += 1
        elif token == "}":
            if depth == 0:
                return found.start() if pattern is _BRACES else None
            depth -= 1
        elif token == "]" and depth == 0:
            return found.start()
    return None


def _joined(left: str, right: str) -> str:
    """Two pieces of TeX side by side; a space keeps a control word apart from a letter."""
    return f"{left} {right}" if right[:1].isalpha() and _CONTROL_AT_END.search(left[-64:]) else left + right
