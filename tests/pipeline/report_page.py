"""The report read by a parser of its own: the tables of its figures."""

from html.parser import HTMLParser


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.links: list[str] = []
        self._figure, self._cell = "", False

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.links += [values[name] for name in ("src", "href", "action", "data") if name in values]
        assert not any(name.startswith("on") for name in values), values
        if (values.get("id") or "").startswith("figure-"):
            self._figure = values["id"].removeprefix("figure-")
        if tag == "table":
            self.tables[self._figure] = []
        if tag == "tr":
            self.tables[self._figure].append([])
        if tag in ("td", "th"):
            self.tables[self._figure][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.tables[self._figure][-1][-1] += data


def read_page(text: str) -> _Tables:
    """`tables` ({figure: rows, the first one of headings}), `tags` and `links` of a page."""
    page = _Tables()
    page.feed(text)
    return page
