"""The demo world: examples are deterministic, answerable and never shared by two splits; the shipped backbone loads."""

import importlib.util
import json
import re
from pathlib import Path
from string import Formatter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaForCausalLM

from grasp_lora.data.world import LANGUAGES, arabic, chinese, demo_splits, english, generate, pretraining_text
from grasp_lora.data.world.facts import SCENES, Fact, Story, draw_story
from grasp_lora.data.world.generator import stories
from grasp_lora.data.world.pretraining import DEFAULT_MIX
from grasp_lora.errors import DataError

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "src" / "grasp_lora" / "assets" / "demo"
WORDINGS = {"en": english, "ar": arabic, "zh": chinese}
SPLITS = ("train", "dev", "micro_dev", "test")


def _slots(template):
    """Slots a template mentions; the forms with an article (`aj`, `dj`) count as the slot."""
    return {name[-1] for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_says_what_it_must(language):
    words = WORDINGS[language]
    for scene, slots in SCENES.items():
        assert all(_slots(text) == set(slots) for text in words.SAY[scene])
        assert all(_slots(text) == set(slots) for text in words.HEAD[scene])
        assert set(words.ASK[scene]) == set(slots)
        for asked, questions in words.ASK[scene].items():
            assert all(asked not in _slots(text) and _slots(text) < set(slots) and _slots(text) for text in questions)
            assert len(set(questions)) == len(questions) > 2
    assert {scene: len(texts) for scene, texts in words.SAY.items()} == {s: len(t) for s, t in english.SAY.items()}


@settings(max_examples=30, deadline=None)
@given(language=st.sampled_from(LANGUAGES), split=st.sampled_from(SPLITS), seed=st.integers(0, 2**31))
def test_qa_has_one_exact_answer_that_the_question_does_not_give_away(language, split, seed):
    examples = generate("qa", language, 8, seed, split)
    assert examples == generate("qa", language, 8, seed, split)
    assert len({e["id"] for e in examples}) == 8
    for example in examples:
        assert set(example) == {"id", "context", "question", "answers"}
        (answer,) = example["answers"]
        assert answer
        assert answer in example["context"]
        assert answer not in example["question"]


@settings(max_examples=30, deadline=None)
@given(language=st.sampled_from(LANGUAGES), split=st.sampled_from(SPLITS), seed=st.integers(0, 2**31))
def test_headlines_are_abstractive(language, split, seed):
    examples = generate("summarization", language, 8, seed, split)
    assert examples == generate("summarization", language, 8, seed, split)
    for example in examples:
        assert set(example) == {"id", "text", "summary"}
        assert example["summary"] not in example["text"]
        assert len(example["summary"]) < len(example["text"])


def test_a_longer_draw_starts_with_the_shorter_one():
    assert generate("qa", "ar", 30, 5, "train")[:12] == generate("qa", "ar", 12, 5, "train")


def test_another_seed_language_or_split_gives_other_passages():
    base = {e["context"] for e in generate("qa", "en", 50, 1, "train")}
    assert base.isdisjoint(e["context"] for e in generate("qa", "en", 50, 2, "train"))
    assert len(base) == 50


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_no_story_can_be_in_two_splits(seed):
    story = draw_story(np.random.default_rng(seed), 0.7)
    shuffled = Story(story.facts[::-1])
    owners = [name for name in (*SPLITS, "pretraining") if shuffled.key() % 20 in _shares()[name]]
    assert len(owners) == 1
    assert story.key() == shuffled.key()


def _shares():
    from grasp_lora.data.world.generator import _SHARES

    return _SHARES


def test_splits_share_no_passage_in_any_seed_or_task():
    texts = {}
    for split in SPLITS:
        found = {e["context"] for seed in (1, 2) for e in generate("qa", "zh", 150, seed, split)}
        found |= {e["text"] for e in generate("summarization", "zh", 150, 1, split)}
        texts[split] = found
    texts["pretraining"] = {d.split("\n")[0] for d in pretraining_text("zh", 500, 1)}
    total = sum(len(found) for found in texts.values())
    assert len(set().union(*texts.values())) == total


def test_a_supply_never_repeats_a_story():
    supply = stories("dev", 0.5, np.random.default_rng(0))
    keys = [next(supply).key() for _ in range(300)]
    assert len(set(keys)) == 300


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_each_word_of_a_story_names_one_fact_only(seed):
    story = draw_story(np.random.default_rng(seed), 1.0)
    words = [term.en for fact in story.facts for term in fact.slots.values()]
    assert len(set(words)) == len(words)
    assert len({fact.scene for fact in story.facts}) == 1
    assert all(isinstance(fact, Fact) for fact in story.facts)


@pytest.mark.parametrize("task", ["qa", "summarization"])
def test_demo_splits_have_the_promised_sizes(task):
    splits = demo_splits(task, "ar", 42)
    sizes = {name: len(examples) for name, examples in splits.items()}
    assert sizes == {"source_train": 3000, "source_dev": 200, "train": 50, "dev": 50, "micro_dev": 16, "test": 200}
    field = "context" if task == "qa" else "text"
    passages = [e[field] for examples in splits.values() for e in examples]
    assert len(set(passages)) == len(passages)
    assert len({e["id"] for examples in splits.values() for e in examples}) == len(passages)


@pytest.mark.parametrize("language", LANGUAGES)
def test_pretraining_text_never_uses_a_task_format(language):
    documents = pretraining_text(language, 400, 3)
    assert documents == pretraining_text(language, 400, 3)
    cues = ("Answer:", "Summary:", "الإجابة:", "الملخّص:", "答案:", "摘要:", "Question:", "السؤال:", "问题:")
    assert not [d for d in documents if any(cue in d for cue in cues)]
    for mark in ("\n? ", "\n@ ", "\n+ ", "\n~ ", "\n#"):
        assert any(mark in d for d in documents), mark
    seen = [_pattern(q) for scene in WORDINGS[language].ASK.values() for asked in scene.values() for q in asked[:2]]
    asked = {line[2:] for d in documents for line in d.splitlines() if line.startswith("? ")}
    assert len(asked) > 10
    assert all(any(re.fullmatch(pattern, question) for pattern in seen) for question in asked)


def _pattern(template):
    return "".join(re.escape(text) + (".+" if name else "") for text, name, _, _ in Formatter().parse(template))


def test_pretraining_mix_is_honoured_and_checked():
    assert all("\n" not in d for d in pretraining_text("en", 50, 1, {"plain": 1.0}))
    assert all("\n? " in d for d in pretraining_text("ar", 50, 1, {"question": 1.0}))
    with pytest.raises(DataError, match="add up to 1"):
        pretraining_text("en", 5, 1, {"plain": 0.5})
    assert all(abs(sum(mix.values()) - 1) < 1e-9 for mix in DEFAULT_MIX.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("qq", "ar", 1, 1, "test"), ["task", "'qq'", "qa"]),
        (("qa", "arr", 1, 1, "test"), ["language", "'arr'", "Did you mean 'ar'?"]),
        (("qa", "ar", 1, 1, "tset"), ["split", "'tset'", "Did you mean 'test'?"]),
        (("qa", "ar", -1, 1, "test"), ["negative", "-1"]),
    ],
)
def test_a_bad_request_names_what_is_wrong(arguments, words):
    with pytest.raises(DataError) as caught:
        generate(*arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS)


def test_assets_are_small_and_say_where_they_come_from():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) <= 4_000_000
    record = json.loads((ASSETS / "provenance.json").read_text(encoding="utf-8"))
    assert {"script", "arguments", "steps_done", "held_out", "hardware", "versions"} <= set(record)
    assert set(record["held_out"]) == set(LANGUAGES)


def test_backbone_loads_and_reads_the_world_better_than_chance(tokenizer):
    model = LlamaForCausalLM.from_pretrained(ASSETS, dtype=torch.float32).eval()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 1_000_000 < model.num_parameters() < 2_000_000
    assert model.config.vocab_size == len(tokenizer)
    for language in LANGUAGES:
        loss = np.mean([_loss(model, tokenizer, d) for d in pretraining_text(language, 10, 7)])
        assert loss < 2.0  # an untrained model is at ln 2048 = 7.6


def _loss(model, tokenizer, text):
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_tokenizer_adds_nothing_and_gives_every_text_back(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for language in LANGUAGES:
        for text in pretraining_text(language, 20, 11):
            ids = tokenizer(text)["input_ids"]
            assert min(ids) > 2
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_passages_are_short_and_answers_have_their_own_tokens(tokenizer, language):
    examples = generate("qa", language, 100, 21, "test")
    lengths = [len(tokenizer(e["context"])["input_ids"]) for e in examples]
    assert 35 < np.mean(lengths) < 90
    assert max(lengths) < 110
    if language != "zh":
        return
    for example in examples:  # no space and no merge hides a Chinese answer's tokens in its passage
        passage, answer = (
            " ".join(map(str, tokenizer(t)["input_ids"])) for t in (example["context"], example["answers"][0])
        )
        assert f" {answer} " in f" {passage} "


def test_training_script_makes_a_loadable_backbone_and_repeats_itself(tmp_path):
    spec = importlib.util.spec_from_file_location("train_demo_backbone", ROOT / "scripts" / "train_demo_backbone.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny = "--device cpu --steps 2 --batch-size 8 --documents 200 --layers 1 --hidden 32 --vocabulary 600 --workers 1"
    for name in ("one", "two"):
        script.main([*tiny.split(), "--out", str(tmp_path / name)])
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert LlamaForCausalLM.from_pretrained(tmp_path / "one").dtype == torch.bfloat16
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path / "three"), "--documents", "10"])
