"""Addresses of people in texts: replaced by ones that are reserved, so that sentences stay sentences.

E-mail addresses become one of RFC 2606's domains, IP addresses those of the documentation ranges (RFC 5737, RFC 3849), phone
numbers one of those kept for fiction (555-0100, ATIS-0300115). The patterns are RE2's: their time is linear in the text.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

_LETTER = r"A-Za-zÀ-ɏ"  # Latin ones: in Chinese text an address stands beside others without a space
_LABEL = rf"[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_GROUP = r"[0-9A-Fa-f]{1,4}"
PATTERNS = {
    "email": ((rf"[{_LETTER}0-9][{_LETTER}0-9._%+-]{{0,63}}@(?:{_LABEL}\.){{1,8}}[{_LETTER}]{{2,24}}", "email@example.com"),),
    "ip": (
        (rf"\b(?:{_BYTE}\.){{3}}{_BYTE}\b", "192.0.2.1"),
        (
            rf"\b(?:(?:{_GROUP}:){{7}}{_GROUP}\b|(?:{_GROUP}:){{2,6}}(?::{_GROUP}){{1,5}}\b|(?:{_GROUP}:){{2,7}}:)",
            "2001:db8::1",
        ),
    ),
    "phone": (
        (r"\+[0-9]{1,3}(?:[ .-]?\([0-9]{1,4}\))?(?:[ .-]?[0-9]{2,4}){2,5}\b", "555-0100"),
        (r"(?:\([0-9]{3}\) ?|\b[0-9]{3}[ .-])[0-9]{3}[ .-][0-9]{4}\b", "555-0100"),
    ),
}


def mask_documents(documents: pa.Table, kinds: Sequence[str]) -> tuple[pa.Table, dict[str, int]]:
    """`mask` for the column `raw_content` of documents, of which `length` is set as well."""
    if not kinds or not len(documents):
        return documents, {}
    text, counts = mask(documents.column("raw_content").combine_chunks(), kinds)
    for name, column in (("raw_content", text), ("length", pc.utf8_length(text))):
        number = documents.schema.get_field_index(name)
        field = documents.schema.field(number)
        documents = documents.set_column(number, field, column.cast(field.type))
    return documents, counts


def mask(text: pa.StringArray, kinds: Sequence[str]) -> tuple[pa.StringArray, dict[str, int]]:
    """The texts with addresses of these kinds (`email`, `ip`, `phone`) replaced, and how many there were: {kind: n}.

    Version numbers of four parts are taken for IP addresses.
    """
    counts = dict.fromkeys(kinds, 0)
    for kind in kinds:
        for pattern, replacement in PATTERNS[kind]:
            counts[kind] += pc.sum(pc.count_substring_regex(text, pattern)).as_py() or 0
            text = pc.replace_substring_regex(text, pattern, replacement)
    return text, counts
