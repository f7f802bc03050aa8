"""Documents to Parquet in the corpus schema, and duplicates over several files."""

import gzip
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ccnet.schema import DOCUMENT, SOURCE_DOCUMENT
from pipeline.sources import duplicates
from pipeline.sources.documents import Document, digest, write_documents

TEXTS = st.text(st.characters(codec=None), max_size=30)


def check(documents, folder, counts=None):
    """Writes them; returns the rows and the statistics, whose sums are right."""
    target = Path(folder) / "a.parquet"
    statistics = write_documents((("file", d) for d in documents), "books", target, [], [], counts or Counter())
    table = pq.read_table(target)
    assert table.schema.equals(SOURCE_DOCUMENT) and table.schema.names[:-1] == DOCUMENT.names
    for measure in ("documents", "chars", "lines"):
        assert statistics[measure]["in"] == statistics[measure]["kept"] + sum(statistics[measure]["dropped"].values())
    return table.to_pylist(), statistics


@settings(max_examples=50, deadline=None)
@given(st.lists(st.builds(Document, TEXTS, TEXTS, TEXTS, TEXTS, st.none(), st.sampled_from([None, None, "why"])), max_size=6))
@example([Document("http://[x", "", "\ud800", "a\ud800\nb\n", "en", None, (("header", "x\n"),))])
@example([Document("", "", "", "")])
def test_documents_of_any_text(documents):
    with tempfile.TemporaryDirectory() as folder:
        rows, statistics = check(documents, folder)
    kept = [d for d in documents if d.dropped is None]
    assert [row["raw_content"] for row in rows] == [d.text.encode(errors="replace").decode() for d in kept]
    for row, document in zip(rows, kept, strict=True):
        assert row["length"] == len(document.text) and row["nlines"] == document.text.count("\n") + 1
        assert row["line_ids"] == list(range(row["nlines"])) and row["digest"] == digest(row["raw_content"].encode())
        assert row["original_length"] == len(row["raw_content"].encode()) and row["cc_segment"] == "file"
        assert (row["language"], row["language_score"]) == ((document.language, 1.0) if document.language else ("und", 0.0))
    assert statistics["documents"]["in"] == len(documents)


def test_what_never_had_a_text_is_counted(tmp_path):
    rows, statistics = check([Document("u", "", "", "t")], tmp_path, Counter(dropped_pdf_only=3, bad_row=2))
    assert len(rows) == 1 and statistics["bad"] == {"row": 2}
    assert statistics["documents"] == {"in": 4, "kept": 1, "dropped": {"pdf_only": 3}}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=8), min_size=1, max_size=4))
def test_exact_duplicates_are_those_of_a_set(files):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen: set[str] = set()
        wanted = []
        for number, texts in enumerate(files):
            documents = (("file", Document("u", "", "", text)) for text in texts)
            write_documents(documents, "github", folder / f"{number}.parquet", [], [], Counter())
            duplicates.write_keys(folder / f"{number}.parquet", folder / f"{number}.keys")
            for row, text in enumerate(texts):
                if text in seen:
                    wanted.append((str(number), row))
                seen.add(text)
        names = [str(number) for number in range(len(files))]
        duplicates.exact_duplicates(names, [folder / f"{name}.keys" for name in names], folder / "list")
        found = [(row["segment"], row["row"]) for row in pq.read_table(folder / "list").to_pylist()]
        assert found == wanted
        left = []
        for name in names:
            counts = duplicates.without_rows(folder / f"{name}.parquet", folder / "list", name, folder / "kept")
            kept = pq.read_table(folder / "kept").column("raw_content").to_pylist()
            assert counts["documents"] + len(kept) == len(files[int(name)])
            left += kept
        assert len(left) == len(set(left)) == len(seen)


def test_translations_stay_and_a_copy_with_gaps_goes(shared_data, tmp_path):
    """Real books: three languages of one, and the English one without each 25th paragraph."""
    books = sorted((shared_data / "text" / "books").glob("progit-*"))
    texts = [gzip.decompress(path.read_bytes()).decode() for path in books]
    english = texts[[path.name for path in books].index("progit-en.asc.gz")]
    texts.append("\n\n".join(part for number, part in enumerate(english.split("\n\n")) if number % 25))
    documents = (("file", Document(str(number), "", "", text)) for number, text in enumerate(texts))
    file, signatures, bands, found = (tmp_path / name for name in ("documents", "signatures", "bands", "found"))
    write_documents(documents, "books", file, [], [], Counter())
    signed = duplicates.sign(file, signatures, bands, overlap=0.9)
    duplicates.near_duplicates(tmp_path, ["0"], [file], [signatures], [bands], [signed], 0.9, found)
    [pair] = pq.read_table(found).to_pylist()
    assert (pair["url"], pair["kept_url"]) == ("3", str(texts.index(english)))
    first, copy = (
        {tuple(words[n : n + 5]) for n in range(len(words) - 4)}
        for words in (english.lower().split(), texts[-1].lower().split())
    )
    exact = len(first & copy) / len(first | copy)
    assert exact > duplicates.jaccard(0.9) and abs(pair["similarity"] - exact) < 0.08
