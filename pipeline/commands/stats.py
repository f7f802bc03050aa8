"""stats: the folder of a run in, the figures of its report out, as tables on the terminal or as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import key, require
from pipeline.figures import Run, Section, figures, shown
from pipeline.terminal import print_json, print_table

WORDS = ("text", "quote")  # kinds of columns whose values begin at the left


@dataclass
class Settings:
    """Keys of the command."""

    out: str = key("out", "the folder of the run")
    rows: int = key(30, "rows that a table shows, at most; 0: all; JSON has all")
    json: bool = key(False, "--json: {sections: [{name, title, figures: [{name, title, columns, rows, note, chart}]}]}")

    def __post_init__(self) -> None:
        require(self.rows >= 0, f"rows={self.rows}: choose 0 or more")


def run(settings: Settings) -> None:
    """Prints the figures of the stages that have begun."""
    out = Path(settings.out)
    sections = figures(out, Run(out).read())
    require(bool(sections), f"out={out}: no stage has left records there; name the folder of a run")
    if settings.json:
        print_json({"out": str(out.absolute()), "sections": [asdict(section) for section in sections]})
        return
    for section in sections:
        _print(section, settings.rows)


def _print(section: Section, most: int) -> None:
    print(f"{section.title}\n{'=' * len(section.title)}\n")
    for figure in section.figures:
        kinds = [column.kind for column in figure.columns]
        print_table(
            figure.title,
            [column.name for column in figure.columns],
            ([shown(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in figure.rows),
            most=most,
            note=figure.note,
            right=[number for number, kind in enumerate(kinds) if kind not in WORDS],
        )
        print()
