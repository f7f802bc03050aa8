"""Rules on texts against the same rules in plain Python."""

import random
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ccnet.quality import C4, apply, read_words, rules
from ccnet.stats import Tally

POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
SENTENCE = re.compile(r"[.?!]['\")\]”’.?!]*(?=\s|\Z)")


def c4(text, bad_words=()):
    """(kept lines, reason of the document) as TensorFlow Datasets' c4_utils.clean_page goes about it."""
    kept, sentences = [], 0
    for line in text.split("\n"):
        if max(map(len, line.split()), default=0) > 1000:
            continue
        stripped = line.strip()
        if not stripped.endswith((".", "?", "!", '"')) or stripped.endswith("..."):
            continue
        if len(line.split()) < 5:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            return None, "c4_lorem_ipsum"
        if "javascript" in lower:
            continue
        if "{" in line:
            return None, "c4_brace"
        if any(words in lower for words in POLICY):
            continue
        sentences += len(SENTENCE.findall(line))
        kept.append(line)
    if sentences < 3:
        return None, "c4_few_sentences"
    if any(re.search(rf"(?:[^\w]|\A){re.escape(word)}(?:[^\w]|\Z)", text, re.IGNORECASE) for word in bad_words):
        return None, "c4_bad_word"
    return kept, None


def batch(texts):
    """Documents with the columns that `apply` needs."""
    lines = [text.count("\n") + 1 for text in texts]
    columns = {
        "raw_content": pa.array(texts, pa.string()),
        "line_ids": pa.array([[2 * n for n in range(number)] for number in lines], pa.list_(pa.int32())),
        "length": pa.array([len(text) for text in texts], pa.int32()),
        "nlines": pa.array(lines, pa.int32()),
        "source_domain": pa.array([f"{n}.org" for n in range(len(texts))], pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def check(texts, bad_words=()):
    tally, dropped = Tally(), []
    documents = batch(texts)
    found = apply([C4(tuple(bad_words))], documents, tally, drop=lambda some, reason: dropped.append((reason, len(some))))
    wanted = [(number, *c4(text, bad_words)) for number, text in enumerate(texts)]
    assert found.column("raw_content").to_pylist() == ["\n".join(kept) for _, kept, reason in wanted if not reason]
    assert found.column("source_domain").to_pylist() == [f"{n}.org" for n, _, reason in wanted if not reason]
    for text, ids, length, number in zip(
        *(found.column(name).to_pylist() for name in ("raw_content", "line_ids", "length", "nlines")), strict=True
    ):
        assert (length, number) == (len(text), len(ids)) and number == text.count("\n") + 1
    reasons = [reason for *_, reason in wanted if reason]
    assert sorted(dropped) == sorted((reason, reasons.count(reason)) for reason in set(reasons))
    counts = tally.statistics()
    for measure, column in (("chars", "length"), ("lines", "nlines")):  # nothing is lost
        before, after = (int(np.sum(table.column(column).to_numpy())) for table in (documents, found))
        assert sum(counts[measure]["dropped"].values()) == before - after
    assert sum(counts["documents"]["dropped"].values()) == len(texts) - len(found)
    return found


PIECES = ["word", "Two", " ", "  ", "\u00a0", "\u3000", ".", "...", "!", "?", '"', "'", ")", "\u201d", "{", "\n", "JavaScript",
          "lorem", " ipsum", "Privacy", " policy", "use cookies", "x" * 1001, "Wörter", "。", "a b c d e. f? g!",
          "bad word"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=25).map("".join), max_size=5))
@example([])
@example([""])
@example(["\n\n"])
@example(["one two three four five. six? seven!"] * 2)
def test_c4_against_plain_python(texts):
    check(texts, ["bad word", "wörter"])


def test_c4_on_a_slice_and_on_nothing():
    texts = pa.array(["no", "one { two three four five. six? seven!", "one two three four five. six? seven!"])[1:]
    assert C4()(texts).documents.tolist() == [C4.reasons.index("c4_brace") + 1, 0]
    assert len(C4()(pa.array([], pa.string())).documents) == 0


def test_c4_on_real_text(shared_data):
    text = (shared_data / "text" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    documents = [part for part in re.split(r"\n = ", text) if part]
    found = check(documents, ["battle of"])
    assert 10 < len(found) < len(documents)


@pytest.mark.parametrize("word", ["c++", "a.b", "né", "(x)", r"\d", "two words", "[", "|"])
def test_bad_words_mean_themselves(word):
    good = "one two three four five. six? seven!"
    check([f"{good} {word} x", f"{good} x{word}x", f"{good} {word.upper()}", good, f"{word}. {good}"], [word])


def test_bad_words_are_read_from_a_file(tmp_path):
    (tmp_path / "words").write_text(" a b \n\nc\n", encoding="utf-8")
    assert rules(["c4"], tmp_path / "words") == [C4(("a b", "c"))] and rules([]) == []
    (tmp_path / "words").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no word"):
        read_words(tmp_path / "words")
    (tmp_path / "words").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_words(tmp_path / "words")


def test_only_the_chosen_documents_are_judged():
    texts = ["short", "one two three four five. six? seven!\nx", "{"] * 3
    chosen = np.array([False, True, True] * 3)
    tally = Tally()
    found = apply(rules(["c4", "c4"]), batch(texts), tally, chosen=chosen)
    assert found.column("raw_content").to_pylist() == ["short", "one two three four five. six? seven!"] * 3
    assert tally.statistics()["documents"]["dropped"]["c4_few_sentences"] == 3


def test_the_order_of_batches_does_not_matter():
    random.seed(1)
    texts = ["".join(random.choices(PIECES, k=40)) for _ in range(200)]
    whole = apply([C4()], batch(texts), Tally()).column("raw_content").to_pylist()
    ones = [apply([C4()], batch([text]), Tally()).column("raw_content").to_pylist() for text in texts]
    assert [text for one in ones for text in one] == whole
