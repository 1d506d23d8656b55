"""ROUGE-1, -2 and -L of XL-Sum's multilingual tokens (Hasan et al., ACL Findings 2021) by `rouge-score`.

Lower case; control characters dropped; every punctuation character becomes a space; then words by white
space, those of more than three characters stemmed by Snowball where it knows the language; for zh jieba's
words (accurate mode), not stemmed. XL-Sum's own zh path also counts the spaces that punctuation left as
words, which gives unrelated sentences points; they are dropped here unless `xlsum_compat` asks for them.
Japanese and Thai are not segmented.

`rougeL_char` stands beside for zh and ja: ROUGE-L over single characters, white space left out, so that no
segmenter's opinion is in it.
"""

from __future__ import annotations

import logging
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from .text import check_lengths, is_punctuation, primary_language

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
CHARACTER_LANGUAGES = frozenset({"zh", "ja"})
_STEMMED_FROM = 4  # characters; shorter tokens stay as they are
_SNOWBALL = {
    "ar": "arabic", "da": "danish", "de": "german", "en": "english", "es": "spanish", "fi": "finnish",
    "fr": "french", "hu": "hungarian", "it": "italian", "nb": "norwegian", "nl": "dutch", "no": "norwegian",
    "pt": "portuguese", "ro": "romanian", "ru": "russian", "sv": "swedish",
}  # fmt: skip


def clean(text: str) -> str:
    """Return the text in lower case, without control characters, a space for each punctuation character.

    Runs of white space become one space. Control characters are the categories C* (format characters such as
    U+200F too) except tab and line ends, which are white space, and U+FFFD, which broken text is decoded to.
    """
    out = []
    for character in text.lower():
        if character in "\t\n\r":
            out.append(" ")
        elif character != "\ufffd" and not unicodedata.category(character).startswith("C"):
            out.append(" " if is_punctuation(character) else character)
    return " ".join("".join(out).split())


@cache
def _segmenter() -> Callable[[str], list[str]]:
    """Return jieba's accurate mode, loaded quietly; it caches its dictionary in the temporary folder."""
    with warnings.catch_warnings():
        # Old escape sequences and pkg_resources: nothing that we or a user could mend.
        warnings.simplefilter("ignore")
        import jieba

        jieba.setLogLevel(logging.WARNING)
        segmenter = jieba.Tokenizer()
        segmenter.initialize()
    cut: Callable[[str], list[str]] = segmenter.lcut
    return cut


@cache
def _stemmer(language: str) -> Callable[[str], str]:
    name = _SNOWBALL.get(language)
    if name is None:
        return lambda token: token
    from nltk.stem.snowball import SnowballStemmer

    def stem(token: str) -> str:
        if len(token) < _STEMMED_FROM:
            return token
        # A new stemmer each time: nltk's Arabic one keeps flags of the last word, and order would matter.
        stemmed: str = SnowballStemmer(name).stem(token)
        return stemmed

    return lru_cache(maxsize=1 << 16)(stem)


def rouge_tokens(text: str, language: str, *, xlsum_compat: bool = False) -> list[str]:
    """Return the words that ROUGE counts."""
    language, text = primary_language(language), clean(text)
    if language == "zh":
        words = _segmenter()(text)
        return [word for word in words if xlsum_compat or word.strip()]
    stem = _stemmer(language)
    return [stemmed for stemmed in map(stem, text.split()) if stemmed]


def character_tokens(text: str) -> list[str]:
    """Return the cleaned text's characters without white space."""
    return [character for character in clean(text) if character != " "]


class _Tokenizer:
    """What `rouge-score` asks of a tokenizer; remembers texts, because references and predictions repeat."""

    def __init__(self, tokens: Callable[[str], list[str]]) -> None:
        self.tokenize = lru_cache(maxsize=1024)(tokens)


def _scorer(types: Sequence[str], tokens: Callable[[str], list[str]]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(types), tokenizer=_Tokenizer(tokens))


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    xlsum_compat: bool = False,
) -> dict[str, tuple[float, ...]]:
    """Return the F-measures of every example, 0 to 100, per ROUGE type, each the best over its references.

    Keys: `rouge1`, `rouge2`, `rougeL`, for zh and ja also `rougeL_char`. Raises `ValueError` when the lengths
    differ and `DataError` when there are no examples.
    """
    check_lengths(predictions, references)
    words = _scorer(ROUGE_TYPES, lambda text: rouge_tokens(text, language, xlsum_compat=xlsum_compat))
    out: dict[str, list[float]] = {name: [] for name in ROUGE_TYPES}
    characters = None
    if primary_language(language) in CHARACTER_LANGUAGES:
        characters = _scorer(["rougeL"], character_tokens)
        out["rougeL_char"] = []
    for prediction, group in zip(predictions, references, strict=True):
        for name, score in words.score_multi(group, prediction).items():
            out[name].append(100.0 * float(score.fmeasure))
        if characters is not None:
            best = characters.score_multi(group, prediction)["rougeL"]
            out["rougeL_char"].append(100.0 * float(best.fmeasure))
    return {name: tuple(values) for name, values in out.items()}


def rouge_signature(name: str, language: str, *, xlsum_compat: bool = False) -> str:
    """Return how the score named `name` was computed, in one string that is printed with it."""
    language = primary_language(language)
    stem = "none"
    if name.endswith("_char"):
        tokens = "characters"
    elif language == "zh":
        tokens = f"jieba-{version('jieba')}" + ("+spaces" if xlsum_compat else "")
    else:
        tokens = "whitespace"
        stem = f"snowball-nltk-{version('nltk')}" if language in _SNOWBALL else "none"
    scorer = f"rouge-score-{version('rouge-score')}"
    return f"rules:xlsum|lang:{language}|tok:{tokens}|stem:{stem}|refs:best|{scorer}|version:1"
