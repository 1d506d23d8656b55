"""Token sequences kept on disk: the same as made anew, and never those of something else."""

import dataclasses
import sys

import pytest

from grasp_lora.data import build_task, cache, encode, encode_kept, encode_prompts, encode_prompts_kept
from grasp_lora.data.examples import examples_from_records
from grasp_lora.errors import DataError
from pico import pico_rows, pico_tokenizer

TASK = build_task("qa", "en", "{context} {question}=")
EXAMPLES = examples_from_records(pico_rows(5, "test"), "qa")


def test_kept_sequences_are_those_that_are_made_anew(tmp_path, monkeypatch):
    tokenizer, limit = pico_tokenizer(), 24
    whole, prompts = encode(EXAMPLES, TASK, tokenizer, limit), encode_prompts(EXAMPLES, TASK, tokenizer, limit)
    assert whole.report.cut
    for _ in range(2):
        assert encode_kept(str(tmp_path), EXAMPLES, TASK, tokenizer, limit) == whole
        assert encode_prompts_kept(str(tmp_path), EXAMPLES, TASK, tokenizer, limit) == prompts
        # The second time they are read: a tokenizer that must not be used knows them too.
        monkeypatch.setattr(
            sys.modules["grasp_lora.data.encode"], "_tokenize", lambda *_: pytest.fail("tokenized again")
        )
    assert len(list(tmp_path.iterdir())) == 2


def test_whatever_the_tokens_depend_on_is_another_file(tmp_path):
    tokenizer = pico_tokenizer()
    other = dataclasses.replace(EXAMPLES[0], document=EXAMPLES[0].document + "x")
    asked = [
        (EXAMPLES, TASK, tokenizer, 60),
        (EXAMPLES, TASK, tokenizer, 61),
        (EXAMPLES, build_task("qa", "en", "{context} {question}:"), tokenizer, 60),
        (EXAMPLES, build_task("qa", "en", "{context} {question}=", "-"), tokenizer, 60),
        (EXAMPLES[:4], TASK, tokenizer, 60),
        ([other, *EXAMPLES[1:]], TASK, tokenizer, 60),
        (EXAMPLES, TASK, pico_tokenizer(bos=False), 60),
    ]
    for given in asked:
        assert encode_kept(str(tmp_path), *given) == encode(*given)
    assert len(list(tmp_path.iterdir())) == len(asked)


def test_a_damaged_file_is_made_again(tmp_path):
    tokenizer = pico_tokenizer()
    whole = encode_kept(str(tmp_path), EXAMPLES, TASK, tokenizer, 60)
    (path,) = tmp_path.iterdir()
    for content in (b"", b"PK\x03\x04 cut", path.read_bytes()[:-200]):
        path.write_bytes(content)
        assert encode_kept(str(tmp_path), EXAMPLES, TASK, tokenizer, 60) == whole
    assert cache._read(path, EXAMPLES) == whole


def test_nothing_is_kept_where_nobody_asks_or_the_tokenizer_has_no_one_text(tmp_path):
    class Plain:
        def __init__(self, core):
            self._core = core

        def __call__(self, *given, **more):
            return self._core(*given, **more)

        def __getattr__(self, name):
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self._core, name)

    expected = encode(EXAMPLES, TASK, pico_tokenizer(), 60)
    assert encode_kept(None, EXAMPLES, TASK, pico_tokenizer(), 60) == expected
    assert encode_kept(str(tmp_path), EXAMPLES, TASK, Plain(pico_tokenizer()), 60) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"run\.tokens: .*file cannot be written"):
        encode_kept(str(tmp_path / "file"), EXAMPLES, TASK, pico_tokenizer(), 60)
