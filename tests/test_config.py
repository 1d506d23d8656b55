import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from grasp_lora.config import Config, Section, build_config, load_config, parse_yaml, to_dict, to_yaml
from grasp_lora.errors import ConfigError


def sections(model=Config, prefix=""):
    """Yield (dotted name, section class) of every section, the whole configuration first."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{prefix}.{name}".lstrip("."))


SECTIONS = list(sections())


def error(tree=None, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, tree)
    return str(caught.value)


def test_defaults_survive_a_partial_section():
    default = Config()
    changed = load_config(None, ["train_source.lr=0.5", "train_target.lr=0.5"])
    assert changed.train_source.epochs == default.train_source.epochs
    assert changed.train_target.epochs == default.train_target.epochs
    assert default.train_source.epochs != default.train_target.epochs
    assert (changed.train_source.lr, changed.finalize) == (0.5, default.finalize)


def test_saved_text_reads_back_equal(tmp_path):
    config = build_config(
        {
            "seed": 7,
            "task": {
                "language": "no",
                "prompt": "Context: {context}\nQ: {question} \u0645\u0644\u062e\u0635 \u6458\u8981: 'x' #\n",
            },
            "lora": {"target_modules": ["q_proj", "k_proj"]},
            "search": {"lr": 1e-4, "max_grad_norm": 0.1 + 0.2},
            "merge": {"weights": [1, 0.5]},
            "data": {"fields": {"article": "body"}},
        }
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config
    assert build_config(to_dict(config)) == config
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(min_value=1e-300, max_value=1e300),
    st.text(st.characters(codec="utf-8", exclude_characters="\x85")),
    st.integers(-(2**63), 2**63),
)
def test_any_value_survives_saving(number, text, seed):
    config = build_config({"seed": seed, "search": {"lr": number}, "task": {"prompt": text}})
    assert build_config(parse_yaml(to_yaml(config), "saved")) == config


def test_a_next_line_character_survives_saving():
    config = build_config({"task": {"prompt": "{context}\x85{question}"}})
    assert build_config(parse_yaml(to_yaml(config), "saved")) == config


@pytest.mark.parametrize(("prefix", "section"), SECTIONS, ids=[prefix or "top" for prefix, _ in SECTIONS])
def test_every_section_is_frozen_refuses_unknown_keys_and_names_the_known(prefix, section):
    assert issubclass(section, Section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(section(), next(iter(section.model_fields)), None)
    known = next(iter(section.model_fields))
    wrong = f"{prefix}.{known}x".lstrip(".")
    message = error(overrides=[f"{wrong}=1"])
    assert f"unknown setting '{wrong}'." in message
    assert f"Did you mean '{known}'?" in message
    assert f"Known here: {', '.join(section.model_fields)}." in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("controller.p_max=65", ["controller.p_max", "between 0 and 1", "did you mean 0.65?", "got 65"]),
        ("controller.p_min=-0.1", ["controller.p_min", "between 0 and 1", "got -0.1"]),
        ("controller.max_step=2", ["controller.max_step", "did you mean 0.02?"]),
        ("controller.interval=0", ["controller.interval", "greater than or equal to 1", "got 0"]),
        ("controller.candidates=0", ["controller.candidates", "greater than or equal to 1", "got 0"]),
        ("search.lr=0", ["search.lr", "greater than 0", "got 0"]),
        ("search.lr=.nan", ["search.lr", "finite", "got nan"]),
        ("search.lr=.inf", ["search.lr", "finite", "got inf"]),
        ("search.lr=fast", ["search.lr", "valid number", "got 'fast'"]),
        ("search.epochs=1.5", ["search.epochs", "valid integer", "got 1.5"]),
        ("search.dropout=1", ["search.dropout", "less than 1", "got 1"]),
        ("merge.rule=average", ["merge.rule", "sum_factors", "sum_deltas", "got 'average'"]),
        ("prune.importance=magnitud", ["prune.importance", "magnitude", "got 'magnitud'"]),
        ("search=3", ["search", "got 3"]),
        ("merge.weights=[1, 2, 3]", ["merge.weights", "one number per adapter (2)", "got 3"]),
    ],
)
def test_a_bad_value_names_field_rule_value_and_next_step(override, words):
    message = error(overrides=[override])
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "--set" in message


def test_bounds_that_contradict_each_other():
    message = error({"controller": {"p_min": 0.7, "p_max": 0.6, "p_init": 0.65}})
    assert "p_min must not exceed p_max, got p_min=0.7 and p_max=0.6" in message
    assert "p_init must lie in [p_min, p_max]" in error({"controller": {"p_min": 0.1, "p_max": 0.6, "p_init": 0.65}})


def test_all_mistakes_are_told_at_once():
    message = error(overrides=["search.lr=-1", "controler.p_min=0.1", "seed=x"])
    assert len(message.splitlines()) == 3
    assert "Did you mean 'controller'?" in message


@pytest.mark.parametrize("ratio", [0, 0.0, 0.65, 1, 1.0])
def test_ratios_at_and_inside_the_bounds(ratio):
    assert build_config({"controller": {"max_step": ratio}}).controller.max_step == ratio


@pytest.mark.parametrize(
    ("text", "value"),
    [("no", "no"), ("yes", "yes"), ("on", "on"), ("true", True), ("1e-4", 1e-4), ("1e4", 1e4),
     ("010", 10), ("0o10", 8), ("null", None), ("~", None), ("", None), ("[1, a]", [1, "a"]),
     ("12:30", "12:30"), ("'1'", "1")],
)  # fmt: skip
def test_values_are_yaml_1_2(text, value):
    found = parse_yaml(text, "test")
    assert found == value
    assert type(found) is type(value)


def test_file_and_overrides_in_order(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1\ntask: {language: no}\nsearch: {lr: 1e-3}\n", encoding="utf-8")
    config = load_config(
        path,
        ["seed=2", "search.epochs=4", "seed=3"],
        base={"seed": 0, "search": {"epochs": 9, "patience": 7}},
    )
    assert (config.seed, config.task.language) == (3, "no")
    assert (config.search.lr, config.search.epochs, config.search.patience) == (1e-3, 4, 7)


@pytest.mark.parametrize("content", [b"", b"# only a remark\n"])
def test_an_empty_file_is_the_default(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    assert load_config(tmp_path / "c.yaml") == load_config() == Config()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"\xff\xfe\x00a", "UTF-8"),
        (b"seed: 1\nseed: 2\n", "line 2: not valid YAML"),
        (b"a: [1\nb: 2\n", "not valid YAML"),
        (b"- 1\n- 2\n", "mapping of sections, got"),
        (b"just words", "mapping of sections, got str"),
        (b"seed: !!python/object:os.system {}\n", "not valid YAML"),
        (b"seed: 1\x00\n", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert "c.yaml" in str(caught.value)


def test_a_folder_is_not_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("seed", "--set takes section.key=value, got 'seed'"),
        ("=3", "--set takes section.key=value"),
        ("search.lr=[1", "--set search.lr"),
        ("seed.x=1", "seed"),
        ("a..b=1", "a"),
    ],
)
def test_an_override_that_cannot_be_used(item, words):
    assert words in error(overrides=[item])


def test_an_override_below_a_value_names_the_value():
    assert "'lr' is a value, not a section" in error(overrides=["search.lr=1", "search.lr.x=2"])


def test_an_override_may_hold_equals_signs_and_blanks():
    prompt = "{context} = {question} ="
    assert load_config(None, [f"task.prompt='{prompt}'"]).task.prompt == prompt
    assert load_config(None, [" seed = 4"]).seed == 4


def test_every_default_is_valid_and_every_section_has_a_docstring():
    assert build_config(to_dict(Config())) == Config()
    assert all(section.__doc__ for _, section in SECTIONS)


def test_the_final_run_ranks_as_the_search_unless_told_otherwise():
    config = build_config({"prune": {"importance": "sensitivity"}})
    assert config.final_importance == "sensitivity"
    assert build_config({"finalize": {"importance": "activation"}}).final_importance == "activation"
    with pytest.raises(ConfigError, match="finalize.importance has no effect with finalize.adapter=reuse"):
        build_config({"finalize": {"importance": "activation", "adapter": "reuse"}})
