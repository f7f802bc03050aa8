"""Language identification: a document's text in, (language, score) of the most probable language out.

Source: CCNet (arXiv 1911.00359, section 3.3), which uses fastText's lid.176 on the text without its newlines.
"""

import sys
from pathlib import Path

import fasttext

LABEL = "__label__"
UNKNOWN = "und"  # BCP 47: undetermined


def default_model() -> Path:
    """The lid.176.ftz that set-up installs. Raises ValueError where it is missing."""
    path = Path(sys.prefix) / "share" / "llama-pretrain" / "lid.176.ftz"
    if not path.is_file():
        raise ValueError(f"{path}: no language model there: run `make setup`, or give language.model")
    return path


class LanguageIdentifier:
    """A fastText language model, any that has labels `__label__xx`.

    Raises ValueError, in one line, for a file that is no such model.
    """

    def __init__(self, model: Path) -> None:
        if not model.is_file():
            raise ValueError(f"{model}: no such language model")
        fasttext.FastText.eprint = lambda *_: None  # it greets on standard error
        try:
            self._model = fasttext.load_model(str(model))
            labels = self._model.get_labels()
        except Exception as error:  # fastText raises several types, bare ones among them
            raise ValueError(f"{model}: not a fastText model ({error})") from None
        if not labels or not labels[0].startswith(LABEL):
            raise ValueError(f"{model}: a fastText model without language labels")

    def predict(self, text: str) -> tuple[str, float]:
        """The language with the highest score, and the score (0 to 1). Newlines are deleted, as in CCNet.

        A text in which the model knows nothing at all is of language "und", with score 0.
        """
        labels, scores = self._model.predict(text.replace("\n", ""))
        if not labels:
            return UNKNOWN, 0.0
        return labels[0].removeprefix(LABEL), float(scores[0])
