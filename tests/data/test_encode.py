"""Token sequences: what is in them, and that a cut takes the end of the document and nothing else."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pico import pico_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from grasp_lora.data import CutReport, Example, build_task, encode, encode_prompts, padding_id
from grasp_lora.errors import DataError, ModelError

TOKENIZER = pico_tokenizer()
TASK = build_task("qa", "ar", prompt="سؤال:{question}\nنص:{context}\nجواب:")
NEWS = build_task("summarization", "en")
LETTERS = "abcdefghijklmnopqrst"


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Words of one token as a whole and of one per letter while incomplete: length is not monotone."""
    tails = [LETTERS[start:] for start in range(len(LETTERS) - 1)]
    tokens = [*LETTERS, "|", " ", "</s>", *tails]
    merges = [(letter, LETTERS[start + 1 :]) for start, letter in enumerate(LETTERS[:-1])][::-1]
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def test_sequence_of_bos_prompt_answer_eos() -> None:
    example = Example("x", "نص", "لماذا؟", ("ب", "ج"))
    (item,) = encode([example], TASK, TOKENIZER, 500).items
    prompt, answer = TASK.prompt(example).encode(), " ب".encode()
    assert item.id == "x"
    assert item.prompt_length == 1 + len(prompt)
    assert len(item.input_ids) == 1 + len(prompt) + len(answer) + 1
    assert item.input_ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(item.input_ids[1 : item.prompt_length]) == TASK.prompt(example)
    assert TOKENIZER.decode(item.input_ids[item.prompt_length : -1]) == " ب"
    assert item.input_ids[-1] == TOKENIZER.eos_token_id
    (given_prompt,) = encode_prompts([example], TASK, TOKENIZER, 500).items
    assert given_prompt.input_ids == item.input_ids[: item.prompt_length]
    assert given_prompt.prompt_length == len(given_prompt.input_ids)


def test_model_without_bos() -> None:
    example = Example("x", "d", None, ("s",))
    (item,) = encode([example], NEWS, pico_tokenizer(bos=False), 500).items
    assert item.prompt_length == len(NEWS.prompt(example))


def test_no_examples() -> None:
    assert encode([], NEWS, TOKENIZER, 10).report == CutReport(0, 0, 0, 0)


MERGING = merging_tokenizer()


def test_the_merging_tokenizer_is_not_monotone() -> None:
    lengths = [len(MERGING(LETTERS[:n])["input_ids"]) for n in range(1, 21)]
    assert lengths == [*range(1, 20), 1]


texts = st.text(st.characters(codec="utf-8", exclude_characters="<"), min_size=1, max_size=40)


@given(document=texts, question=texts, answer=texts, limit=st.integers(1, 260))
def test_cut_is_exact_and_only_in_the_document(document: str, question: str, answer: str, limit: int) -> None:
    example = Example("x", document, question, (answer,))
    head, tail = TASK.parts(example)
    fixed = 2 + len((head + tail + TASK.answer(answer)).encode())
    if fixed > limit:
        with pytest.raises(DataError, match=r"example 'x'.*task\.max_length"):
            encode([example], TASK, TOKENIZER, limit)
        return
    encoded = encode([example], TASK, TOKENIZER, limit)
    (item,) = encoded.items
    # One token per byte: the longest prefix that fits is a matter of bytes.
    kept = max(n for n in range(len(document) + 1) if fixed + len(document[:n].encode()) <= limit)
    expected = (head + document[:kept] + tail).encode()
    assert item.prompt_length == 1 + len(expected)
    assert TOKENIZER.decode(item.input_ids[1 : item.prompt_length]).encode() == expected
    assert TOKENIZER.decode(item.input_ids[item.prompt_length :]) == TASK.answer(answer) + "</s>"
    assert encoded.report.cut == int(kept < len(document))
    assert encoded.report.longest == fixed + len(document.encode())
    assert encoded.report.answer_lost == int(answer in document and answer not in document[:kept])


@given(
    pieces=st.lists(st.sampled_from([LETTERS, LETTERS[:4], LETTERS[5:], "a", " ", "||"]), min_size=1, max_size=12),
    budget=st.integers(2, 60),
)
@hypothesis.example(pieces=[LETTERS, LETTERS[:10]], budget=3)  # bisection alone stops at the first letter
def test_cut_is_the_longest_where_more_text_can_take_fewer_tokens(pieces: list[str], budget: int) -> None:
    tokenizer = MERGING
    task = build_task("summarization", "xx", prompt="|{article}|", answer_prefix="")
    document = "".join(pieces)
    (item,) = encode([Example("x", document, None, ("a",))], task, tokenizer, budget + 2).items

    def tokens(length: int) -> list[int]:
        return tokenizer(f"|{document[:length]}|", add_special_tokens=False)["input_ids"]

    longest = max(n for n in range(len(document) + 1) if len(tokens(n)) <= budget)
    assert list(item.input_ids[: item.prompt_length]) == tokens(longest)


def test_report_counts_and_sentence() -> None:
    task = build_task("qa", "en", prompt="{context}{question}")
    examples = [
        Example("lost", "a" * 20 + "X", "?", ("X",)),
        Example("kept", "X" + "a" * 20, "?", ("X",)),
        Example("second", "Y" + "a" * 20 + "X", "?", ("X", "Y")),
        Example("never", "a" * 30, "?", ("X",)),
        Example("short", "X", "?", ("X",)),
    ]
    report = encode(examples, task, TOKENIZER, 15).report
    assert report == CutReport(examples=5, cut=4, answer_lost=1, longest=35)
    assert report.sentence("target.train", 15) == (
        "target.train: 4 of 5 documents were cut to 15 tokens (the longest has 35), 1 of them lost the answer span."
    )
    assert encode(examples, task, TOKENIZER, 35).report.sentence("target.train", 35) is None


def test_prompts_are_cut_for_generation_too() -> None:
    example = Example("x", "abcdef", "Q", ("f",))
    task = build_task("qa", "en", prompt="{context}|{question}:")
    encoded = encode_prompts([example], task, TOKENIZER, 7)
    assert TOKENIZER.decode(encoded.items[0].input_ids) == "<s>abc|Q:"
    assert encoded.report == CutReport(1, 1, 1, 10)


def test_tokenizer_without_end_token() -> None:
    with pytest.raises(ModelError, match="no end token"):
        encode([Example("x", "d", None, ("s",))], NEWS, pico_tokenizer(eos=False), 500)


def test_padding_falls_back_to_the_end_token() -> None:
    assert padding_id(TOKENIZER) == TOKENIZER.pad_token_id
    assert padding_id(pico_tokenizer(pad=False)) == TOKENIZER.eos_token_id
    with pytest.raises(ModelError, match="no end token"):
        padding_id(pico_tokenizer(pad=False, eos=False))
