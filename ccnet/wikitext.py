"""MediaWiki's markup in, plain text out: paragraphs, list items and headings, a line each.

Templates, tables, references, pictures, formulas and links to other languages are dropped; of links and formatting the
text stays. One pass with a stack of what is open, so the time is linear in the page, whatever is in it: pages are
written by anybody, and a parser that goes back over what was never closed takes half a minute for 100 kB of `{|`.

Follows https://www.mediawiki.org/wiki/Help:Formatting and Help:Links; templates are not expanded.
"""

import html
import re
from collections import Counter
from collections.abc import Collection

# fmt: off
# Elements that are no prose, with all that is in them: taken as it stands, or (the second ones) as markup.
RAW_TAGS = frozenset({
    "ce", "chem", "gallery", "graph", "hiero", "imagemap", "inputbox", "mapframe", "maplink", "math", "nowiki", "pre",
    "score", "source", "syntaxhighlight", "templatedata", "timeline",
})
DROPPED_TAGS = frozenset({"indicator", "ref", "references", "table"})
# Elements whose text stays, in the line or in lines of its own.
INLINE_TAGS = frozenset({
    "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "includeonly", "ins",
    "kbd", "mark", "noinclude", "onlyinclude", "q", "rp", "rt", "ruby", "s", "samp", "section", "small", "span",
    "strike", "strong", "sub", "sup", "templatestyles", "time", "tt", "u", "var", "wbr",
})
LINE_TAGS = frozenset({
    "blockquote", "br", "center", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "poem", "ul",
})
# fmt: on
MEDIA_NAMESPACES = frozenset({"category", "file", "image", "media"})  # a wiki knows its own names for them as well

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_HEADING = re.compile(r"(={1,6})(.+)\1")
_FIRST_HEADING = re.compile(r"^==.*==[ \t]*$", re.MULTILINE)
_MARKUP = re.compile(
    r"(?P<open_braces>\{{2,})|(?P<close_braces>\}{2,})|(?P<open_link>\[\[)|(?P<close_link>\]\](?=(?:\]\]){0,3}(?!\])))"
    r"|(?P<open_table>^[ \t:*#]*\{\|)|(?P<close_table>^[ \t]*\|\}(?!\}))"
    r"|(?P<open_url>\[(?=(?:https?:|ftp:|mailto:)?//))|(?P<close_url>\])"
    r"|<(?P<end>/?)(?P<tag>[a-zA-Z][a-zA-Z0-9]{0,20})(?=[\s/>])[^<>]*?(?P<empty>/?)>"
    r"|-\{(?P<variant>[^{}\n]*)\}-",
    re.MULTILINE,
)
_OTHER_WIKI = re.compile(r":?[a-z]{2,3}(?:-[a-z-]+)?:\S")
_SWITCH_OR_QUOTES = re.compile(r"__[^\W\d_]+__|'{2,}")
_APOSTROPHE = re.compile(r"(?<!')'(?='{3}(?!'))")  # before bold text, as in l''''homme'''
_LIST_ITEM = re.compile(r"^[*#:;]+(?:\s+[:;]+(?=\s))?")  # the latter ones behind a picture that is gone
_LEFT_OVER = re.compile(r"^[|!]|^-{4}|\[\[|\]\]|\{\||\|\}|\}\}|\{\{|</?ref\b|\b(?:px|thumb)\|")
_SPACES = re.compile(r"\s+")
_GAP = r"(?: ?[,;:/，；：、]){0,8} ?"
_EMPTY_BRACKETS = re.compile(rf" ?[(（]{_GAP}[)）]")
_BRACKET_START = re.compile(rf"(?<=[(（]){_GAP}")
_BRACKET_END = re.compile(r"(?: ?[,;，；、]){0,8} ?(?=[)）])")
_SPACE_BEFORE = re.compile(r" (?=[,.;](?: |$))")
_TEXT_LEVEL = 7  # below all headings, which have levels 1 to 6
_BROKEN = "\x00"  # stands for an opening that is not closed; neither XML nor JSON text of a page has it


def opening(wikitext: str) -> str:
    """The wikitext before the first heading."""
    wikitext = _COMMENT.sub("", wikitext)
    found = _FIRST_HEADING.search(wikitext)
    return wikitext[: found.start()] if found else wikitext


def plain_text(wikitext: str, media_namespaces: Collection[str] = MEDIA_NAMESPACES) -> str:
    """The text of a page, lines stripped and joined by "\\n", without empty lines.

    Lines in which markup is left, for it was never closed, are dropped, as are headings with nothing below them.

    Args:
        media_namespaces: the wiki's names, in lower case, of those whose links show pictures or put a page into a
            category; such links are dropped.
    """
    text = _without_markup(_COMMENT.sub("", wikitext).replace(_BROKEN, ""), media_namespaces)
    kept: list[str] = []
    below = 0  # the level of the line below
    for line in reversed(text.split("\n")):
        line, level = line.strip(), _TEXT_LEVEL
        if heading := _HEADING.fullmatch(line):
            line, level = heading[2], len(heading[1])
        if (line := _clean(line)) and (level == _TEXT_LEVEL or level < below):
            kept.append(line)
            below = level
    return "\n".join(reversed(kept))


def _without_markup(text: str, media: Collection[str]) -> str:
    parts: list[str] = []
    stack: list[tuple[str, int]] = []  # what is open: its kind, and where in `parts` it begins
    opened: Counter[str] = Counter()
    never_closed: set[str] = set()
    at = 0

    def open_(kind: str) -> None:
        stack.append((kind, len(parts)))
        opened[kind] += 1
        parts.append(_BROKEN)

    def close(kind: str) -> str | None:
        """Takes the innermost open `kind` off, with what was never closed in it; its text, or None if there is none."""
        if not opened[kind]:
            return None
        while True:
            last, start = stack.pop()
            opened[last] -= 1
            if last == kind:
                inner = "".join(parts[start + 1 :])
                del parts[start:]
                return inner

    while found := _MARKUP.search(text, at):
        parts.append(text[at : found.start()])
        at = found.end()
        kind = found.lastgroup
        if kind == "open_braces":
            for _ in range(len(found[0]) // 2):
                open_("braces")
        elif kind == "close_braces":
            for _ in range(len(found[0]) // 2):
                if close("braces") is None:
                    parts.append(_BROKEN)
        elif kind in ("open_link", "open_url", "open_table"):
            open_(kind.removeprefix("open_"))
        elif kind == "close_link":
            inner = close("link")
            parts.append(_BROKEN if inner is None else _link_text(inner, media))
        elif kind == "close_url":
            inner = close("url") if stack and stack[-1][0] == "url" else None
            parts.append("]" if inner is None else inner.partition(" ")[2])
        elif kind == "close_table":
            close("table")
        elif kind == "variant":  # of a script: the first
            first = found[0][2:-2].rpartition("|")[2].partition(";")[0]
            parts.append(first.rpartition(":")[2])
        else:
            name = found["tag"].lower()
            ends, empty = bool(found["end"]), bool(found["empty"])
            if name in RAW_TAGS and not ends and not empty and name not in never_closed:
                closing = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, at)
                if closing is None:
                    never_closed.add(name)
                    parts.append(_BROKEN)
                else:
                    parts.append(text[at : closing.start()] if name == "nowiki" else "")
                    at = closing.end()
            elif name in DROPPED_TAGS:
                if ends:
                    close(name)
                elif not empty:
                    open_(name)
            elif name in LINE_TAGS:
                parts.append("\n")
            elif name not in INLINE_TAGS and name not in RAW_TAGS:
                parts.append(found[0])  # no element of wikitext
    parts.append(text[at:])
    return "".join(parts)


def _link_text(inner: str, media: Collection[str]) -> str:
    target, bar, label = inner.partition("|")
    target = target.strip()
    space, colon, _ = target.partition(":")
    if colon and space.strip().replace("_", " ").lower() in media:
        return ""
    if bar:
        return label
    return "" if _OTHER_WIKI.match(target) else target.removeprefix(":")


def _clean(line: str) -> str:
    """One line without what dropped templates leave; empty where markup is left in it."""
    line = _APOSTROPHE.sub("&#39;", line)
    line = _LIST_ITEM.sub("", _SWITCH_OR_QUOTES.sub("", line).strip())
    if _BROKEN in line or _LEFT_OVER.search(line):
        return ""
    line = _EMPTY_BRACKETS.sub("", _SPACES.sub(" ", html.unescape(line)))
    return _SPACE_BEFORE.sub("", _BRACKET_END.sub("", _BRACKET_START.sub("", line))).strip()
