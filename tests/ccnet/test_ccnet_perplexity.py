import io
import subprocess
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from itertools import accumulate
from pathlib import Path

import kenlm
import numpy as np
import pytest
import sentencepiece
from crawls import prose
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_pb2

from ccnet.normalize import lm_text
from ccnet.perplexity import LanguageModel, find_models
from ccnet.wet import read_pages


@pytest.fixture(scope="module")
def even_model(tmp_path_factory):
    """Models in which every piece has probability 1/10, an unknown one 1/1000, and the end of a sentence 1/100."""
    folder = tmp_path_factory.mktemp("lm")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lm_text(line) for line in prose("en", 0, 50)),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    sp_model = folder / "en.sp.model"
    sp_model.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    words = [pieces.id_to_piece(number) for number in range(3, len(pieces))]
    lines = ["-3\t<unk>\t0", "0\t<s>\t0", "-2\t</s>\t0", *(f"-1\t{word}\t0" for word in words)]
    counts = ["\\data\\", f"ngram 1={len(lines)}", "ngram 2=1", ""]
    arpa = "\n".join([*counts, "\\1-grams:", *lines, "", "\\2-grams:", "-2\t<s> </s>", "", "\\end\\", ""])
    (folder / "arpa").write_text(arpa, encoding="utf-8")
    tool = Path(sys.prefix) / "bin" / "build_binary"
    subprocess.run([tool, "probing", folder / "arpa", folder / "en.arpa.bin"], check=True, capture_output=True)
    return LanguageModel(sp_model, folder / "en.arpa.bin"), pieces, folder


def test_is_ten_to_the_mean_negative_log_of_pieces_and_end(even_model):
    model, pieces, _ = even_model
    for text in ("The house was seen by the river near the old garden.", "house", "kitchen\nriver\n\nletter"):
        count = len(pieces.encode(lm_text(text), out_type=str))
        assert model.perplexity(text) == pytest.approx(10 ** ((count + 2) / (count + 1)), rel=1e-6)
    assert model.perplexity("") == pytest.approx(100.0)


def test_a_document_is_one_normalised_sentence(even_model):
    model, *_ = even_model
    assert model.perplexity("The HOUSE\nwas 1989") == model.perplexity("the housewas 0000")


def test_an_unknown_character_is_an_unknown_piece(even_model):
    model, pieces, _ = even_model
    assert pieces.encode("漢", out_type=str) == ["▁", "漢"]
    assert model.perplexity("漢") == pytest.approx(10 ** ((1 + 3 + 2) / 3), rel=1e-6)


def test_against_scores_added_piece_by_piece(shared_data):
    models = find_models(shared_data / "lm")
    assert list(models) == ["de", "en"]
    for language in models:
        sp_model, arpa_bin = models[language]
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
        scorer = kenlm.Model(str(arpa_bin))
        model = LanguageModel(sp_model, arpa_bin)
        for seed in range(5):
            text = "\n".join(prose(language, seed, 10))
            words = pieces.encode(lm_text(text), out_type=str)
            total, state = 0.0, kenlm.State()
            scorer.BeginSentenceWrite(state)
            for word in [*words, "</s>"]:
                after = kenlm.State()
                total += scorer.BaseScore(state, word, after)
                state = after
            assert model.perplexity(text) == pytest.approx(10 ** (-total / (len(words) + 1)), rel=1e-5)


def reference(sp_model: Path, arpa_bin: Path):
    """The same numbers by the two libraries, from where they say that a piece begins; and the pieces of each line."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sp_model))
    scorer = kenlm.Model(str(arpa_bin))

    def perplexities(text: str) -> tuple[float, list[float], list[int]]:
        normal = lm_text(text)
        sentence = sentencepiece_pb2.SentencePieceText()
        sentence.ParseFromString(processor.encode(normal, out_type="serialized_proto"))
        spelled = " ".join(processor.encode(normal, out_type=str))
        starts = [0]
        lines = text.split("\n")
        first = next((n for n, line in enumerate(lines) if line.strip()), 0)
        last = next((n for n in reversed(range(len(lines))) if lines[n].strip()), 0)
        for n, line in enumerate(lines):
            line = line.lstrip() if n == first else line
            line = line.rstrip() if n == last else line
            # Letters on both sides keep what strip() would take.
            starts.append(len(lm_text(f"x{line}x").encode()) - 2 if first <= n <= last else 0)
        starts = list(accumulate(starts))
        scores = defaultdict(list)
        probabilities = [score for score, _, _ in scorer.full_scores(spelled)]
        line = None
        for piece, score in zip(sentence.pieces, probabilities, strict=False):
            line = bisect_right(starts, piece.begin, hi=len(lines)) - 1
            scores[line].append(score)
        if line is not None:
            scores[line].append(probabilities[-1])
        total = scorer.score(spelled, bos=True, eos=True)
        by_line = [10 ** (-sum(scores[n]) / len(scores[n])) if n in scores else np.nan for n in range(len(lines))]
        return 10.0 ** (-total / len(probabilities)), by_line, [len(scores[n]) for n in range(len(lines))]

    return perplexities


def check(model: LanguageModel, expected, text: str) -> None:
    document, by_line = model.perplexities(text)
    wanted, wanted_by_line, pieces = expected(text)
    assert document == wanted == model.perplexity(text)
    assert by_line.dtype == np.float32 and len(by_line) == text.count("\n") + 1
    np.testing.assert_allclose(by_line, wanted_by_line, rtol=1e-6)
    if sum(pieces):  # the document's is the mean of the lines', with their pieces as weights
        mean = np.nansum(np.log(by_line.astype(float)) * pieces) / sum(pieces)
        assert mean == pytest.approx(np.log(document), rel=1e-5 + sum(pieces) * 2**-24)  # a float32 sum


def binary(arpa: Path, target: Path, *kind: str) -> Path:
    tool = Path(sys.prefix) / "bin" / "build_binary"
    subprocess.run([tool, *kind[1:], kind[0], arpa, target], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module", params=["kernels", "bpe", "quantised", "arpa"])
def any_model(request, tmp_path_factory):
    """A trigram model and the pieces of a small language; but for "kernels" they are such as go through the libraries."""
    folder = tmp_path_factory.mktemp(request.param)
    lines = [lm_text(line) for line in prose("en", 0, 300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        model_type="bpe" if request.param == "bpe" else "unigram",
        minloglevel=2,
    )
    sp_model, text, arpa = folder / "sp.model", folder / "text", folder / "arpa"
    sp_model.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    text.write_text("\n".join(" ".join(pieces.encode(line, out_type=str)) for line in lines), encoding="utf-8")
    command = [Path(sys.prefix) / "bin" / "lmplz", "-o", "3", "-S", "50M", "-T", folder, "--discount_fallback"]
    subprocess.run([*command, "--text", text, "--arpa", arpa], check=True, capture_output=True)
    if request.param != "arpa":
        arpa = binary(arpa, folder / "arpa.bin", *(["trie", "-q", "8"] if request.param == "quantised" else ["probing"]))
    return LanguageModel(sp_model, arpa), reference(sp_model, arpa)


odd = st.sampled_from(
    ["\n", "\n\n", " ", "  ", "\0", "the house", "Über", "ΑΣ", "Σ\n", "漢字", "\u1b44\u302e", "한국", "…", "—", "🦙", "1984"]
)
texts = st.lists(st.one_of(odd, st.text(st.characters(exclude_categories=["Cs"]), max_size=6)), max_size=20).map("".join)


@given(texts)
@settings(max_examples=200, deadline=None)
def test_documents_and_lines_against_the_libraries(any_model, text):
    check(*any_model, text)


def test_edges(any_model):
    model, expected = any_model
    for text in ("", "\n", " \n\n ", "a", "a\n", "\na", "\n\n the house \n\n\n", "漢", "x" * 100_000, "\0\na\n\0"):
        check(model, expected, text)
    document, by_line = model.perplexities("\n \n")
    assert document > 1 and np.isnan(by_line).all()
    check(model, expected, "\n".join(prose("en", 3, 2000)))


def test_real_pages_against_the_libraries(shared_data):
    pages = [
        page
        for batch in read_pages(str(sorted((shared_data / "crawl" / "segments").glob("*.gz"))[0]), Counter())
        for page in batch.column("raw_content").to_pylist()
    ]
    for sp_model, arpa_bin in find_models(shared_data / "lm").values():
        model, expected = LanguageModel(sp_model, arpa_bin), reference(sp_model, arpa_bin)
        for page in pages[:60]:
            check(model, expected, page)


def test_prose_is_likelier_than_its_words_in_disorder(shared_data):
    model = LanguageModel(*find_models(shared_data / "lm")["en"])
    text = "This is one of the first things that you should do when you want to learn a new language."
    assert model.perplexity(text) < 0.5 * model.perplexity(" ".join(sorted(text.split())))


def test_files_that_are_no_models(tmp_path, even_model):
    *_, folder = even_model
    sp_model, arpa_bin = folder / "en.sp.model", folder / "en.arpa.bin"
    binary = arpa_bin.read_bytes()
    for name, content in (
        ("empty", b""),
        ("noise", b"hello" * 1000),
        ("cut", binary[:200]),
        ("half", binary[: len(binary) // 2]),
    ):
        (tmp_path / name).write_bytes(content)
        for arguments in ((tmp_path / name, arpa_bin), (sp_model, tmp_path / name)):
            with pytest.raises(ValueError, match=f"{name}: not a") as error:
                LanguageModel(*arguments)
            assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        LanguageModel(sp_model, tmp_path / "missing")


def test_find_models(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        find_models(tmp_path / "missing")
    with pytest.raises(ValueError, match="no language models"):
        find_models(tmp_path)
    for name in ("zh-yue.sp.model", "zh-yue.arpa.bin", "en.sp.model", "en.arpa.bin", "README", "notes.model"):
        (tmp_path / name).touch()
    assert find_models(tmp_path) == {
        language: (tmp_path / f"{language}.sp.model", tmp_path / f"{language}.arpa.bin") for language in ("en", "zh-yue")
    }
    (tmp_path / "de.arpa.bin").touch()
    with pytest.raises(ValueError, match=r"de\.sp\.model is missing"):
        find_models(tmp_path)
