"""Near-duplicates against exact Jaccard indices of sets of 5-grams, computed in plain Python."""

import hashlib
import math
import random
import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ccnet.near_duplicates
from ccnet.near_duplicates import (
    PAIRS,
    PERMUTATIONS,
    banding,
    link_partition,
    pair_documents,
    sign_documents,
    signatures,
)
from ccnet.normalize import paragraph_keys
from ccnet.wet import read_pages

UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
EMPTY_KEY = int.from_bytes(hashlib.sha1(b"").digest()[:8], "little")


def shingles(text: str) -> set[tuple[int, ...]]:
    """Sets of 5-grams of words; the keys of lines, which have their own tests, stand for words."""
    found = [word for part in text.split() for word in re.findall(f"[{UNSPACED}]|[^{UNSPACED}]+", part)]
    keys = paragraph_keys(pa.array(found, pa.string()))[0].tolist()
    words = [key for key in keys if key != EMPTY_KEY]
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, min(len(words), 1)))}


def jaccard(left: str, right: str) -> float:
    a, b = shingles(left), shingles(right)
    return len(a & b) / len(a | b) if a and b else 0.0


def pairs_of(
    segments: list[list[str]], folder: Path, threshold: float = 0.8, partitions: int = 4
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows of the pairs' file, and what was counted."""
    folder.mkdir(exist_ok=True)
    sources, signed, bands, counts = [], [], [], []
    for n, texts in enumerate(segments):
        names = [folder / f"{n}.{kind}" for kind in ("parquet", "signatures", "bands")]
        urls = [f"http://{n}/{row}" for row in range(len(texts))]
        pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "raw_content": pa.array(texts, pa.string())}), names[0])
        counts.append(sign_documents(*names, threshold=threshold, partitions=partitions))
        for kind, name in zip((sources, signed, bands), names, strict=True):
            kind.append(name)
    documents = np.array([c["documents"] for c in counts], np.int64)
    assert documents.tolist() == [len(texts) for texts in segments]
    partition_bands = np.array([c["partition_bands"] for c in counts], np.int64)
    with_words = sum(c["documents"] - c["without_words"] for c in counts)
    assert partition_bands.sum() == banding(threshold)[0] * with_words
    links = [folder / f"{p}.links" for p in range(partitions)]
    for p, target in enumerate(links):
        link_partition(bands, signed, documents, partition_bands, p, target, threshold=threshold)
    names = [f"s{n}" for n in range(len(segments))]
    total = pair_documents(links, signed, sources, names, documents, folder / "pairs.parquet")
    table = pq.read_table(folder / "pairs.parquet")
    assert table.schema == PAIRS
    rows = table.to_pylist()
    places = [(row["segment"], row["row"]) for row in rows]
    assert total["dropped"] == len(rows) and places == sorted(set(places))
    for row in rows:
        assert (row["kept_segment"], row["kept_row"]) < (row["segment"], row["row"])
        assert (row["kept_segment"], row["kept_row"]) not in places
        assert row["url"] == f"http://{row['segment'][1:]}/{row['row']}"
        assert row["kept_url"] == f"http://{row['kept_segment'][1:]}/{row['kept_row']}"
    return rows, total


def text_of(rows: list[dict[str, Any]], segments: list[list[str]]) -> list[tuple[str, str]]:
    return [(segments[int(r["segment"][1:])][r["row"]], segments[int(r["kept_segment"][1:])][r["kept_row"]]) for r in rows]


def prose(seed: int, words: int) -> list[str]:
    letter = random.Random(seed).choice  # no digits, which are all alike
    return ["".join(letter(ascii_lowercase) for _ in range(4)) for _ in range(words)]


def edited(words: list[str], changes: int, seed: int) -> list[str]:
    """The same words but for some of them, far from each other: each costs five shingles."""
    words = words.copy()
    for n, new in enumerate(prose(-seed - 1, changes)):
        words[(2 * n + 1) * len(words) // (2 * changes)] = new
    return words


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_banding_keeps_its_promise(threshold):
    bands, rows = banding(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.99
    if rows < PERMUTATIONS:
        assert 1 - (1 - threshold ** (rows + 1)) ** (PERMUTATIONS // (rows + 1)) < 0.99


def test_the_documented_curve():
    assert banding(0.8) == (32, 8)
    curve = {s: 1 - (1 - s**8) ** 32 for s in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)}
    shown = {s: f"{100 * p:.1f}" for s, p in curve.items()}
    assert shown == {0.3: "0.2", 0.5: "11.8", 0.6: "41.8", 0.7: "85.0", 0.8: "99.7", 0.9: "100.0"}


def test_signatures_estimate_the_jaccard_index():
    """1,200 pairs of a wide range of indices: no bias, and the standard error that is documented."""
    texts, exact = [], []
    for seed in range(1200):
        words = prose(seed, 300)
        texts += [" ".join(words), " ".join(edited(words, seed % 60, seed))]
        exact.append(jaccard(*texts[-2:]))
    found, has_words = signatures(pa.array(texts))
    assert has_words.all() and found.shape == (2400, PERMUTATIONS)
    errors = (found[::2] == found[1::2]).mean(axis=1) - exact
    normal = errors / np.maximum(np.sqrt(np.array(exact) * (1 - np.array(exact)) / PERMUTATIONS), 1e-3)
    assert abs(errors.mean()) < 0.003
    assert 0.85 < normal.std() < 1.15


def test_signatures_are_alike_over_all_positions():
    """No permutation prefers some shingles: equal entries of half-alike documents lie anywhere."""
    texts = [" ".join(words) for seed in range(400) for words in (prose(seed, 100), edited(prose(seed, 100), 6, seed))]
    found, _ = signatures(pa.array(texts))
    share = (found[::2] == found[1::2]).mean(axis=0)
    exact = np.mean([jaccard(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    assert abs(share - exact).max() < 5 * np.sqrt(0.25 / 400)


def corpus(seed: int) -> list[list[str]]:
    """Originals with copies of every degree, shuffled over segments."""
    choice = random.Random(seed)
    texts = []
    for n in range(60):
        words = prose(1000 * seed + n, choice.randrange(60, 500))
        texts.append(words)
        texts += [
            edited(words, choice.randrange(len(words) // 20), choice.randrange(10**9)) for _ in range(choice.randrange(4))
        ]
    choice.shuffle(texts)
    return [[" ".join(words) for words in texts[n::3]] for n in range(3)]


def test_recall_and_precision(tmp_path):
    for seed in range(3):
        segments = corpus(seed)
        rows, _ = pairs_of(segments, tmp_path / str(seed))
        cluster = {}
        for row in rows:
            cluster[row["segment"], row["row"]] = (row["kept_segment"], row["kept_row"])
        every = [((f"s{n}", row), text) for n, texts in enumerate(segments) for row, text in enumerate(texts)]
        sure = found = 0
        for (left, a), (right, b) in combinations(every, 2):
            if (a.split()[0], a.split()[-1]) == (b.split()[0], b.split()[-1]) and jaccard(a, b) >= 0.85:
                sure += 1
                found += cluster.get(left, left) == cluster.get(right, right)
        assert sure > 20 and found >= 0.99 * sure
        for row, (dropped, kept) in zip(rows, text_of(rows, segments), strict=True):
            exact = jaccard(dropped, kept)
            assert abs(row["similarity"] - exact) < 0.12  # over four standard errors
            assert exact > 0.65  # near the threshold, or connected by documents in between


@pytest.mark.parametrize("changes", [9, 7, 5, 3])  # of 304 words: indices of 0.74, 0.79, 0.85 and 0.90
def test_pairs_are_found_as_often_as_documented(tmp_path, changes):
    texts = [" ".join(words) for n in range(300) for words in (prose(n, 304), edited(prose(n, 304), changes, n))]
    exact = jaccard(*texts[:2])
    assert exact == pytest.approx((300 - 5 * changes) / (300 + 5 * changes), abs=0.01)
    wanted = sum(math.comb(256, k) * exact**k * (1 - exact) ** (256 - k) for k in range(205, 257))
    wanted *= 1 - (1 - exact**8) ** 32 if exact < 0.8 else 1  # nearly independent of the estimate
    rows, _ = pairs_of([texts], tmp_path)
    assert all(row["row"] == row["kept_row"] + 1 for row in rows)
    assert abs(len(rows) / 300 - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 300) + 0.01


def test_partitions_and_batches_make_no_difference(tmp_path, monkeypatch):
    segments = corpus(9)
    wanted, counts = pairs_of(segments, tmp_path / "1", partitions=1)
    assert len(wanted) > 20
    assert pairs_of(segments, tmp_path / "64", partitions=64) == (wanted, counts)
    monkeypatch.setattr(ccnet.near_duplicates, "BATCH", 7)
    assert pairs_of(segments, tmp_path / "7", partitions=2) == (wanted, counts)


def test_the_first_document_stays_and_chains_are_one_cluster(tmp_path):
    words = prose(1, 400)
    chain = [" ".join(words)]
    for n in range(1, 6):  # each differs from the one before in five words, and from the first in all of those
        words = ["y" * n if i % 80 == 13 * n else word for i, word in enumerate(words)]
        chain.append(" ".join(words))
    assert jaccard(chain[0], chain[-1]) < 0.6 and all(jaccard(a, b) > 0.87 for a, b in pairwise(chain))
    rows, counts = pairs_of([["other one", chain[3]], [chain[0], chain[5]], [chain[2], chain[1], chain[4]]], tmp_path)
    assert counts == {"dropped": 5, "clusters": 1}
    assert all((row["kept_segment"], row["kept_row"]) == ("s0", 1) for row in rows)


def test_all_duplicates(tmp_path):
    text = " ".join(prose(3, 50))
    rows, counts = pairs_of([[text] * 700, [text.upper(), f"  {text} \n"]], tmp_path)
    assert counts == {"dropped": 701, "clusters": 1}
    assert {row["similarity"] for row in rows} == {1.0} and {row["kept_row"] for row in rows} == {0}


@pytest.mark.parametrize("segments", [[[]], [[], ["one document of more than five words"], []], [[""], ["", "„“"]]])
def test_nothing_to_drop(tmp_path, segments):
    assert pairs_of(segments, tmp_path) == ([], {"dropped": 0, "clusters": 0})


def test_short_documents(tmp_path):
    texts = [
        "one two three four",
        "One two  three\nfour.",
        "one two three four",
        "one two",
        "two one",
        "one 7",
        "one 8",
        "one",
        "ONE",
    ]
    rows, _ = pairs_of([texts], tmp_path)
    assert [(row["row"], row["kept_row"]) for row in rows] == [(2, 0), (6, 5), (8, 7)]


def test_characters_are_words_where_there_are_no_spaces(tmp_path):
    choice = random.Random(5)
    for first, last in ((0x4E00, 0x9FFF), (0x0E01, 0x0E30), (0x30A1, 0x30FA), (0x20000, 0x2A000)):
        text = "".join(chr(choice.randrange(first, last)) for _ in range(300))
        near, far = text[:150] + "x" + text[150:], text[::-1]
        rows, _ = pairs_of([[text, far, near]], tmp_path / f"{first:x}")
        assert [(row["row"], row["kept_row"]) for row in rows] == [(2, 0)], hex(first)


def test_many_unlike_documents_in_one_bucket(tmp_path, monkeypatch):
    """Beyond the limit of comparisons, links are still right; only some may be missing."""
    monkeypatch.setattr(ccnet.near_duplicates, "banding", lambda threshold: (32, 1))
    stem = prose(7, 20)
    texts = [" ".join([*stem, *prose(n, 10)]) for n in range(1200)] * 2
    rows, _ = pairs_of([texts], tmp_path, partitions=1)
    assert len(rows) >= 1000 and all(row["row"] == row["kept_row"] + 1200 for row in rows)


@pytest.mark.slow
def test_real_pages(shared_data, tmp_path):
    """Pages as they were crawled, against the exact index of every pair that has a shingle in common."""
    files = sorted((shared_data / "crawl/segments").glob("*.gz"))
    segments = [
        [text for batch in read_pages(str(file), Counter()) for text in batch.column("raw_content").to_pylist()]
        for file in files
    ]
    holders = defaultdict(list)
    sizes = {}
    for n, texts in enumerate(segments):
        for row, text in enumerate(texts):
            found = {hash(shingle) for shingle in shingles(text)}
            sizes[f"s{n}", row] = len(found)
            for shingle in found:
                holders[shingle].append((f"s{n}", row))
    common = Counter(pair for places in holders.values() if len(places) < 300 for pair in combinations(places, 2))
    exact = {pair: count / (sizes[pair[0]] + sizes[pair[1]] - count) for pair, count in common.items()}
    rows, _ = pairs_of(segments, tmp_path)
    kept = {(row["segment"], row["row"]): (row["kept_segment"], row["kept_row"]) for row in rows}
    sure = [pair for pair, index in exact.items() if index >= 0.87]
    assert sure and all(kept.get(a, a) == kept.get(b, b) for a, b in sure)
    assert all(exact[there, here] > 0.7 for here, there in kept.items())


words = st.sampled_from(
    [
        "a",
        "B",
        "b",
        "ΑΣ",
        "ας",
        "ασ",
        "漢",
        "字",
        "ไ",
        "İ",
        "i̇",
        "12",
        "9",
        "„",
        "e\u0301",
        "\u00ad",
        "ﬁ",
        "한국",
        "x漢y",
        "\x07",
    ]
)
spaces = st.sampled_from([" ", "\n", "\t", "\u00a0", "\u3000", "", "\x1c", "\u2028"])
texts = st.lists(st.tuples(words, spaces), max_size=12).map(lambda pairs: "".join(a + b for a, b in pairs))


@given(st.lists(texts, max_size=8))
@settings(max_examples=300, deadline=None)
def test_equal_signatures_mean_equal_sets_of_shingles(documents):
    found, has_words = signatures(pa.array(documents, pa.string()))
    sets = [shingles(text) for text in documents]
    assert has_words.tolist() == [bool(s) for s in sets]
    for i, j in combinations(range(len(documents)), 2):
        assert (found[i] == found[j]).all() == (sets[i] == sets[j]), (documents[i], documents[j])


def test_a_slice_of_an_array():
    whole = pa.array(["a b c d e f", "x y", "", "a b c d e f"])
    found, has_words = signatures(whole[1:4])
    assert has_words.tolist() == [True, False, True]
    assert (found[2] == signatures(whole[:1])[0][0]).all()
