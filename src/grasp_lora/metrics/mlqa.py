"""Exact match and token F1 by MLQA's rules (Lewis et al., ACL 2020), written anew from their description.

A text is lower-cased, its punctuation deleted (nothing in its place), its articles replaced by a space, and
split:

- en: the words a, an, the are articles; tokens by white space.
- ar: every `ال` counts as an article, inside words too, because that is what the official pattern matches;
  the variant `prefix` (lm-evaluation-harness since 0.4.13) takes it only from the front of a word.
- zh: no articles; each character U+4E00 to U+9FA5 is a token, the text between is split on white space.
- every other language: no articles, tokens by white space (Japanese and Thai are not segmented).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from .text import check_lengths, is_punctuation, primary_language

ArabicArticles = Literal["official", "prefix"]

_ENGLISH = re.compile(r"\b(?:an?|the)\b")
_ARABIC = {"official": re.compile("ال"), "prefix": re.compile(r"(?<!\S)ال")}
_HAN = re.compile("([\u4e00-\u9fa5])")


def mlqa_tokens(text: str, language: str, *, arabic_articles: ArabicArticles = "official") -> list[str]:
    """Return the tokens that exact match and F1 compare."""
    text = "".join(character for character in text.lower() if not is_punctuation(character))
    match primary_language(language):
        case "en":
            text = _ENGLISH.sub(" ", text)
        case "ar":
            text = _ARABIC[arabic_articles].sub(" ", text)
        case "zh":
            text = _HAN.sub(r" \1 ", text)
    return text.split()


def exact_match(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Return 1 when the two token lists are equal (both empty included), else 0."""
    return float(list(prediction) == list(answer))


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Return the F1 of the two token multisets, 0 without a common token, also when both are empty."""
    overlap = (Counter(prediction) & Counter(answer)).total()
    if not overlap:
        return 0.0
    precision, recall = overlap / len(prediction), overlap / len(answer)
    return 2 * precision * recall / (precision + recall)


def mlqa_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str,
    *,
    arabic_articles: ArabicArticles = "official",
) -> dict[str, tuple[float, ...]]:
    """Return `em` and `f1` of every example, 0 to 100, each the best over the example's answers.

    Raises `ValueError` when the lengths differ and `DataError` when there are no examples.
    """
    check_lengths(predictions, references)
    em, f1 = [], []
    for prediction, answers in zip(predictions, references, strict=True):
        found = mlqa_tokens(prediction, language, arabic_articles=arabic_articles)
        wanted = [mlqa_tokens(answer, language, arabic_articles=arabic_articles) for answer in answers]
        em.append(100.0 * max(exact_match(found, answer) for answer in wanted))
        f1.append(100.0 * max(token_f1(found, answer) for answer in wanted))
    return {"em": tuple(em), "f1": tuple(f1)}


def mlqa_signature(language: str, arabic_articles: ArabicArticles = "official") -> str:
    """Return what was counted, in one string that is printed with the score."""
    language = primary_language(language)
    articles = {"en": "a-an-the", "ar": f"al-{arabic_articles}"}.get(language, "none")
    tokens = "han-characters" if language == "zh" else "whitespace"
    return f"rules:mlqa|lang:{language}|articles:{articles}|tok:{tokens}|refs:best|version:1"
