"""`run` compares the pruned merge with simple rivals on dev, says when one does better, and exports it on request."""

import json

import pytest
import torch
from world import World, with_peft

from grasp_lora.adapters.inject import Injection
from grasp_lora.pipeline.models import load_base
from grasp_lora.pipeline.opening import working
from grasp_lora.pipeline.rivals import rival_factors
from grasp_lora.pipeline.stages import all_adapters
from grasp_lora.pipeline.story import export_finished, run_pipeline
from grasp_lora.runs import QuietProgress

PROMPTS = torch.arange(3, 43).reshape(2, 20)
# A final run that cannot repair what heavy pruning did, so that rivals do better; and one that prunes nothing.
PRUNED = {"controller__p_min": 0.9, "controller__p_init": 0.92, "finalize__lr": 1e-6, "finalize__epochs": 1}


class Heard(QuietProgress):
    def __init__(self):
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def result_of(world, **changes):
    heard = Heard()
    result = run_pipeline(world.config(**{**PRUNED, **changes}), heard)
    return result, [text for text in heard.warnings if "beats the merge" in text]


def test_a_better_rival_is_told_and_the_merge_kept(world):
    result, (warning,) = result_of(world)
    kept = result.results["kept"]
    assert kept["kept"] == "grasp"
    assert kept["best"] == "target"  # sequential and merged are not in evaluate.rivals, so they were not trained
    assert set(kept["dev_losses"]) == {"grasp", "target"}
    assert kept["dev_losses"]["target"] < kept["dev_losses"]["grasp"]
    assert kept["reason"] in warning
    assert warning.endswith("To export it instead, set finalize.keep=best.")
    assert "| system | grasp |" in (result.adapter / "README.md").read_text()
    saved = json.loads((world.root / "run" / "results.json").read_text())
    assert saved["kept"] == kept


@pytest.mark.parametrize("rivals", [["target"], ["sequential", "merged"]])
def test_the_best_one_is_exported_when_asked_for(rivals, world):
    result, (warning,) = result_of(
        world, finalize__keep="best", evaluate__rivals=rivals, data__target__test=None, train_target__epochs=4
    )
    kept = result.results["kept"]
    # Without a test split nothing else would have trained the rivals that the user named.
    assert set(kept["dev_losses"]) == {"grasp", "target", *rivals}
    name = min(kept["dev_losses"], key=kept["dev_losses"].get)
    assert kept["kept"] == kept["best"] == name != "grasp"
    assert warning.endswith("It is exported.")
    config = world.config(**PRUNED, finalize__keep="best", evaluate__rivals=rivals, data__target__test=None,
                          train_target__epochs=4)  # fmt: skip
    with working(config, resume=True) as run:
        factors = rival_factors(run, name, all_adapters(run))
        assert export_finished(run)["adapter"] == "export/adapter"
    base = load_base(config.model)
    with torch.no_grad(), Injection(base.model, factors) as injection, injection.active(factors):
        expected = base.model(PROMPTS).logits
    with torch.no_grad():
        seen = with_peft(world.model, result.adapter)(PROMPTS).logits
    assert (seen - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_merge_is_kept_when_nothing_beats_it(world):
    result, warnings = result_of(world, finalize__lr=0.05, finalize__epochs=8, train_target__lr=1e-6,
                                 finalize__keep="best", controller__p_min=0.0, controller__p_init=0.1)  # fmt: skip
    assert result.results["kept"]["best"] == result.results["kept"]["kept"] == "grasp"
    assert "no simple rival" in result.results["kept"]["reason"]
    assert warnings == []


def test_without_dev_data_there_is_nothing_to_compare(tmp_path, pico_folder):
    world = World(tmp_path, pico_folder)
    result, warnings = result_of(world, data__target__dev=None, finalize__keep="best")
    assert result.results["kept"] == {
        "kept": "grasp", "reason": "there is no dev data to compare on", "dev_losses": {},
    }  # fmt: skip
    assert warnings == []


def test_the_dev_losses_are_those_that_training_saw(world):
    result, _ = result_of(world)
    done = result.results["finalize"]["outcome"]
    assert result.results["kept"]["dev_losses"]["grasp"] == pytest.approx(min(done["dev_losses"]), rel=1e-6)
    tokens = result.results["cost"]["keep"]["forward_tokens"]
    per_epoch = done["dev_tokens"] / len(done["dev_losses"])
    assert tokens == 2 * per_epoch
