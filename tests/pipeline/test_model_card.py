"""The README of an exported adapter loads what it says it loads."""

from __future__ import annotations

from grasp_lora.pipeline.export import model_card


def test_card_names_the_base_as_given() -> None:
    card = model_card("org/base", {"task": "qa"}, "")
    assert 'AutoModelForCausalLM.from_pretrained("org/base")' in card
    assert "grasp_lora" not in card


def test_card_loads_the_embedded_backbone_by_its_folder() -> None:
    card = model_card("demo", {"task": "qa"}, "")
    assert "from grasp_lora import demo_backbone\nfrom peft import PeftModel" in card
    assert "from_pretrained(demo_backbone())" in card
    assert "base_model:" not in card  # a hub would link it to a model of that name
    assert "AutoPeftModelForCausalLM`, which looks for a base by its recorded name, does not find it" in card
