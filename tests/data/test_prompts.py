"""Templates: the built-in words, the placeholders' rules, and text that looks like a template."""

from __future__ import annotations

import pytest

from grasp_lora.data import Example, build_task
from grasp_lora.errors import ConfigError

QA = Example("q", "CTX {question} {", "QUE {context} }", ("A",))
NEWS = Example("n", "NEWS {article}", None, ("S",))


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (
            "en",
            "Answer the question based on the context.\nContext:CTX {question} {\nQuestion:QUE {context} }\nAnswer:",
        ),
        (
            "ar",
            "أجب على السؤال بناءً على النص التالي.\nالنص:CTX {question} {\nالسؤال:QUE {context} }\nالإجابة:",
        ),
        ("zh", "请根据下列内容回答问题。\n内容:CTX {question} {\n问题:QUE {context} }\n答案:"),
    ],
)
def test_question_prompts(language: str, expected: str) -> None:
    assert build_task("qa", language).prompt(QA) == expected


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", "Summarize the following English news article.\nArticle:NEWS {article}\nSummary:"),
        ("ar", "لخّص الخبر العربي التالي.\nالمقال:NEWS {article}\nالملخّص:"),
        ("zh", "请用中文概括下面的新闻报道。\n文章:NEWS {article}\n摘要:"),
    ],
)
def test_summary_prompts(language: str, expected: str) -> None:
    assert build_task("summarization", language).prompt(NEWS) == expected


def test_answer_prefixes() -> None:
    spaced = {language: build_task("qa", language).answer("x") for language in ("en", "ar", "zh", "zh-Hant")}
    assert spaced == {"en": " x", "ar": " x", "zh": "x", "zh-Hant": "x"}
    assert build_task("qa", "ja", prompt="{context}{question}").answer("x") == "x"
    assert build_task("qa", "zh", answer_prefix="\n").answer("x") == "\nx"
    assert build_task("qa", "en", answer_prefix="").answer("x") == "x"


def test_own_template_with_other_braces_and_the_question_first() -> None:
    task = build_task("qa", "sw", prompt='{"q": "{question}", {} "c": "{context}"} =')
    assert task.parts(QA) == ('{"q": "QUE {context} }", {} "c": "', '"} =')


@pytest.mark.parametrize(
    ("name", "template", "said"),
    [
        ("qa", "{context}", "'{question}' exactly once, found 0"),
        ("qa", "{question}", "'{context}' exactly once, found 0"),
        ("qa", "{context}{question}{context}", "'{context}' exactly once, found 2"),
        ("qa", "{contxt} {question}", "Did you mean 'context'"),
        ("summarization", "{context}", "'{context}' is no placeholder of task summarization"),
        ("summarization", "", "'{article}' exactly once, found 0"),
    ],
)
def test_bad_templates(name: str, template: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_task(name, "en", prompt=template)  # type: ignore[arg-type]
    assert "task.prompt" in str(caught.value)
    assert said in str(caught.value)


def test_language_without_words() -> None:
    with pytest.raises(ConfigError, match=r"no built-in prompt for 'sw'.*task\.prompt.*\{context\} and \{question\}"):
        build_task("qa", "sw")
