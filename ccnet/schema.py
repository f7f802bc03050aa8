"""The Arrow schemas of a page as it is read, and of a document as it is written. Column names are CCNet's.

`PAGE` comes out of `ccnet.wet`; `SCORED` is a page after deduplication with its scores (`ccnet.filter`); `DOCUMENT` has
its bucket as well and is the corpus, `SOURCE_DOCUMENT` one of another source; `DROPPED` is a page or
document that is not in it, with the reason.
"""

import pyarrow as pa

PAGE = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("date_download", pa.string(), nullable=False),  # WARC-Date, ISO 8601
        pa.field("digest", pa.string(), nullable=False),  # "sha1:" and base32, of the record's body
        pa.field("cc_segment", pa.string(), nullable=False),  # the WET file: path from crawl-data/ on, or its name
        pa.field("title", pa.string(), nullable=False),  # first line of the body, stripped
        pa.field("raw_content", pa.string(), nullable=False),  # the other lines, stripped, joined by "\n"
        pa.field("original_nlines", pa.int32(), nullable=False),  # lines of raw_content, empty ones included
        # (and one more, as CCNet counts them, where the body does not end with a line end: Common Crawl's always do)
        pa.field("original_length", pa.int64(), nullable=False),  # Content-Length: bytes of the body
    ]
)

SCORED = pa.schema(
    [
        pa.field("url", pa.string(), nullable=False),
        pa.field("date_download", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),  # characters of raw_content
        pa.field("nlines", pa.int32(), nullable=False),  # lines of raw_content
        pa.field("source_domain", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("raw_content", pa.string(), nullable=False),  # the kept lines, joined by "\n"
        pa.field("cc_segment", pa.string(), nullable=False),
        pa.field("original_nlines", pa.int32(), nullable=False),
        pa.field("original_length", pa.int64(), nullable=False),
        pa.field("line_ids", pa.list_(pa.int32()), nullable=False),  # kept lines of the page, from 0, title excluded
        pa.field("language", pa.string(), nullable=False),
        pa.field("language_score", pa.float64(), nullable=False),
        pa.field("perplexity", pa.float64()),  # null where the language has no model
        pa.field("paragraph_perplexity", pa.list_(pa.float32())),  # of each line; null where the language has no model
    ]
)

DOCUMENT = pa.schema(  # CCNet's columns; the perplexities of paragraphs stay with what is mined
    [
        *(field for field in SCORED if field.name != "paragraph_perplexity"),
        pa.field("bucket", pa.string(), nullable=False),  # head, middle, tail or all
    ]
)

SOURCE_DOCUMENT = DOCUMENT.append(pa.field("source", pa.string(), nullable=False))  # of another source than the crawl


def document_schema(references: bool) -> pa.Schema:
    """`DOCUMENT`, where documents are scored by their likeness to cited pages (`ccnet.references`) with that score."""
    return DOCUMENT.append(pa.field("reference_score", pa.float32())) if references else DOCUMENT


DROPPED = pa.schema(  # what was not found out before the page or document was dropped is null
    [*(field.with_nullable(True) for field in SCORED), pa.field("reason", pa.string(), nullable=False)]
)
