"""Books: Gutenberg's marks of all generations, odd files, overlap."""

import gzip
from itertools import islice, product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import read

from pipeline.sources import books, duplicates

BODY = "CHAPTER I\n\nIt was a dark and stormy night.\n\n*** a line of stars ***\n\nTHE END"
HEADER = (
    "The Project Gutenberg EBook of A Book, by A. Author\n\nTitle: A Book\nLanguage: French\n"
    "Release Date: May 1, 2004 [EBook #12345]\n\n"
)
NOTES = "Produced by Some One and the\nDistributed Proofreaders\n\n\n"
SMALL_PRINT = "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here?\n"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("*** START OF THE PROJECT GUTENBERG EBOOK A BOOK ***", "*** END OF THE PROJECT GUTENBERG EBOOK A BOOK ***\nlicence"),
        (
            f"*** START OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\n\n{NOTES}",
            "End of the Project Gutenberg EBook of A Book\n\n*** END OF THIS PROJECT GUTENBERG EBOOK A BOOK ***\nlicence",
        ),
        (
            "***START OF THE PROJECT GUTENBERG EBOOK A BOOK***\n\n\nE-text prepared by X\n\n",
            "***END OF THE PROJECT GUTENBERG EBOOK A BOOK***",
        ),
        (f"{SMALL_PRINT}*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of Project Gutenberg's A Book"),
        (
            f"{SMALL_PRINT}*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.10/04*END*",
            "End of The Project Gutenberg Etext",
        ),
        (
            "*** START OF THE PROJECT GUTENBERG EBOOK, A LONG TITLE THAT\nGOES ON ***",
            "*** END OF THE PROJECT GUTENBERG EBOOK, A LONG TITLE THAT",
        ),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_gutenbergs_boilerplate_goes(start, end, line_end):
    text = f"{HEADER}{start}\n\n\n{BODY}\n\n\n{end}"
    document = books.book("pg.txt", text.replace("\n", line_end))
    assert document.text == BODY
    assert (document.title, document.language, document.url) == ("A Book", "fr", "https://www.gutenberg.org/ebooks/12345")
    assert [reason for reason, _ in document.removed] == ["header", "licence"] and document.dropped is None


def test_other_books_stay_as_they_are():
    text = "A book about Project Gutenberg.\n\nIt was started in 1971.\nThe end of Project Gutenberg is not near."
    assert books.book("a.txt", text)[:4] == ("a.txt", "", "", text) and books.book("a.txt", text).removed == ()
    assert books.book("a.txt", " \n").dropped == "empty"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("\ufeffGrüße".encode(), "Grüße"),
        ("Grüße – “x”".encode("cp1252"), "Grüße – “x”"),
        (
            b"Character set encoding: ISO-8859-2\n" + "źdźbło".encode("iso-8859-2"),
            "Character set encoding: ISO-8859-2\nźdźbło",
        ),
        (b"Character set encoding: rot13\n\nna\xefve", "Character set encoding: rot13\n\nnaïve"),
        (b"\x81\x8d", "\x81\x8d"),
    ],
)
def test_encodings(data, text):
    assert books.decoded(data) == text


def test_a_folder_of_books(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.TXT.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "1.txt").write_text("one")
    (tmp_path / "cover.jpg").write_bytes(b"\xff")
    (tmp_path / "passwd.txt").symlink_to("/etc/passwd")
    found = books.files(str(tmp_path))
    assert [read("books", path)[0][0].text for path in found] == ["one", "two"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no text file"):
        books.files(str(tmp_path / "empty"))
    monkeypatch.setattr(books, "MAX_BOOK", 1 << 20)
    bad = {
        "bomb.gz": (gzip.compress(b"x" * (100 << 20), 1), "too_large"),
        "cut.gz": (gzip.compress(b"abc")[:-9], "compression"),
        "large.txt": (b"x" * (2 << 20), "too_large"),
        "binary.txt": (b"a\0b", "no_text"),
    }
    for name, (data, reason) in bad.items():
        (tmp_path / name).write_bytes(data)
        assert read("books", tmp_path / name) == ([], {f"bad_{reason}": 1})


def grams(text):
    words = text.lower().split()
    return {tuple(words[n : n + 5]) for n in range(len(words) - 4)}


def test_the_estimate_of_overlap_is_near_the_exact_one(tmp_path):
    """Books that share from 60 % to 100 % of their text with the first, on both sides of the limit of 90 %."""
    words = list(map("".join, islice(product("abcdefghij", repeat=5), 20000)))  # letters, as all digits are alike
    shares = (1.0, 0.97, 0.95, 0.93, 0.87, 0.85, 0.8, 0.6)
    texts = [" ".join(words)]
    for other, share in zip("klmnopqr", shares, strict=True):
        kept = int(share * len(words))
        texts.append(" ".join(words[:kept] + [f"{other}{word}" for word in words[kept:]]))
    table = {"digest": ["sha1:" + "A" * 32] * len(texts), "raw_content": texts, "url": [str(n) for n in range(len(texts))]}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    files = [tmp_path / "signatures"], [tmp_path / "bands"]
    signed = duplicates.sign(tmp_path / "0.parquet", *(file[0] for file in files), overlap=0.9)
    duplicates.near_duplicates(tmp_path, ["0"], [tmp_path / "0.parquet"], *files, [signed], 0.9, tmp_path / "pairs")
    found = {row["row"]: row["similarity"] for row in pq.read_table(tmp_path / "pairs").to_pylist()}
    first = grams(texts[0])
    for row, share in enumerate(shares, 1):
        other = grams(texts[row])
        exact = len(first & other) / min(len(first), len(other))
        assert abs(exact - share) < 0.005
        if row in found:  # an index s of two alike in size is an overlap of 2 s / (1 + s)
            assert abs(2 * found[row] / (1 + found[row]) - exact) < 0.05
        assert (row in found) == (exact > 0.9)
