import io
import subprocess
import sys
from pathlib import Path

import kenlm
import pytest
import sentencepiece
from crawls import prose

from ccnet.normalize import lm_text
from ccnet.perplexity import LanguageModel, find_models


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


def test_prose_is_likelier_than_its_words_in_disorder(shared_data):
    model = LanguageModel(*find_models(shared_data / "lm")["en"])
    text = "This is one of the first things that you should do when you want to learn a new language."
    assert model.perplexity(text) < 0.5 * model.perplexity(" ".join(sorted(text.split())))


def test_files_that_are_no_models(tmp_path, even_model):
    *_, folder = even_model
    sp_model, arpa_bin = folder / "en.sp.model", folder / "en.arpa.bin"
    for name, content in (("empty", b""), ("noise", b"hello" * 1000), ("cut", arpa_bin.read_bytes()[:200])):
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
