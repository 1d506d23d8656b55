"""Tasks: the words around a document, and where in them the document stands.

The built-in templates are those of the GRASP LoRA release (English, Arabic, Chinese).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError, nearest
from .examples import Example, TaskName

_TEMPLATES: dict[tuple[str, str], str] = {
    ("summarization", "en"): "Summarize the following English news article.\nArticle:{article}\nSummary:",
    ("summarization", "ar"): "لخّص الخبر العربي التالي.\nالمقال:{article}\nالملخّص:",
    ("summarization", "zh"): "请用中文概括下面的新闻报道。\n文章:{article}\n摘要:",
    (
        "qa",
        "en",
    ): "Answer the question based on the context.\nContext:{context}\nQuestion:{question}\nAnswer:",
    ("qa", "ar"): "أجب على السؤال بناءً على النص التالي.\nالنص:{context}\nالسؤال:{question}\nالإجابة:",
    ("qa", "zh"): "请根据下列内容回答问题。\n内容:{context}\n问题:{question}\n答案:",
}
_PLACEHOLDERS: dict[str, tuple[str, ...]] = {"qa": ("context", "question"), "summarization": ("article",)}
_WITHOUT_SPACES = ("zh", "ja")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class Task:
    """How an example becomes a prompt and an answer.

    `template` holds `{context}` and `{question}` (qa) or `{article}` (summarization), the document's
    placeholder exactly once; other braces are ordinary text. Raises `ConfigError` for a template that
    breaks this.
    """

    name: TaskName
    language: str
    template: str
    answer_prefix: str

    def __post_init__(self) -> None:
        wanted = _PLACEHOLDERS[self.name]
        found = _PLACEHOLDER.findall(self.template)
        for placeholder in dict.fromkeys(found):
            if placeholder not in wanted:
                raise ConfigError(
                    f"task.prompt: '{{{placeholder}}}' is no placeholder of task {self.name}."
                    f"{nearest(placeholder, wanted)} Use {_listed(wanted)}. "
                    f"The template is: {self.template!r}"
                )
        for placeholder in wanted:
            if found.count(placeholder) != 1:
                raise ConfigError(
                    f"task.prompt: the template must hold '{{{placeholder}}}' exactly once, found "
                    f"{found.count(placeholder)}. Use {_listed(wanted)}. The template is: {self.template!r}"
                )

    def parts(self, example: Example) -> tuple[str, str]:
        """Return the prompt's text in front of the document and behind it; only the document may be cut."""
        # Split before the question goes in: neither a question nor a document is ever read as a template.
        head, tail = self.template.split("{" + _PLACEHOLDERS[self.name][0] + "}")
        question = example.question or ""
        return head.replace("{question}", question), tail.replace("{question}", question)

    def prompt(self, example: Example) -> str:
        """Return the whole prompt of an example."""
        head, tail = self.parts(example)
        return head + example.document + tail

    def answer(self, text: str) -> str:
        """Return an answer as it follows the prompt."""
        return self.answer_prefix + text


def build_task(name: TaskName, language: str, prompt: str | None = None, answer_prefix: str | None = None) -> Task:
    """Return the task in a language, with the built-in template and prefix unless others are given.

    Raises `ConfigError` for a language without a built-in template, and for a template without its
    placeholders.
    """
    code = re.split("[-_]", language.lower())[0]
    template = prompt if prompt is not None else _TEMPLATES.get((name, code))
    if template is None:
        known = ", ".join(sorted({language for _, language in _TEMPLATES}))
        raise ConfigError(
            f"task.language: there is no built-in prompt for '{language}' (only for {known}). "
            f"Give your own with task.prompt (the target's) or task.source_prompt (the source's), "
            f"holding {_listed(_PLACEHOLDERS[name])}."
        )
    prefix = answer_prefix if answer_prefix is not None else ("" if code in _WITHOUT_SPACES else " ")
    return Task(name, language, template, prefix)


def _listed(placeholders: tuple[str, ...]) -> str:
    return " and ".join("{" + placeholder + "}" for placeholder in placeholders)
