"""Every compared method on a pico model, against its library or its formula; and its costs against counted tokens."""

import json
import warnings

import numpy as np
import optuna
import peft
import pytest
import torch
from world import load_plain

from grasp_lora.adapters.inject import Injection
from grasp_lora.adapters.merge import constant
from grasp_lora.adapters.point import MergePoint
from grasp_lora.baselines import METHODS, MethodContext, alone, find_method, optuna_search, register
from grasp_lora.baselines.grasp import with_preset
from grasp_lora.baselines.grid import RATIOS
from grasp_lora.baselines.lorahub import L1, STEPS, weighted
from grasp_lora.baselines.optuna_search import HIGH, LOW, STARTUP, TRIALS
from grasp_lora.baselines.peft_merges import COMBINATIONS, combine
from grasp_lora.baselines.probes import COARSE_RATIOS, probe
from grasp_lora.errors import AdapterError, ConfigError, DataError, MissingExtraError
from grasp_lora.pipeline.comparison.worker import _spent
from grasp_lora.pipeline.finalize import finalize
from grasp_lora.pipeline.opening import working
from grasp_lora.pipeline.rivals import context, rival_content, rival_factors, system_factors
from grasp_lora.pipeline.stageio import StageIO
from grasp_lora.pipeline.stages import all_adapters
from grasp_lora.probing.joined import joins
from grasp_lora.rng import derive_seed
from grasp_lora.training.setup import Setup
from pico import undrawn

PROMPTS = torch.arange(3, 43).reshape(2, 20)


class SimulatedCrash(BaseException):
    """Nothing in the package catches it, as nothing catches a power cut."""


@pytest.fixture
def opened(world):
    """`opened(**changes)`: a run folder at work with two adapters written by plain PEFT, and these adapters."""
    closing = []

    def open_run(resume=False, **changes):
        settings = {"adapters__source": world.root / "en", "adapters__target": world.root / "ar"}
        if not (world.root / "en").exists():
            world.adapter("en")
            world.adapter("ar")
        holder = working(world.config(**settings, **changes), resume=resume)
        run = holder.__enter__()
        closing.append(holder)
        return run, all_adapters(run)

    open_run.close = lambda: closing.pop().__exit__(None, None, None)
    yield open_run
    while closing:
        open_run.close()


def made(run, name, adapters):
    method = find_method(name)
    return method.make(context(run, method, adapters))


def logits(run, factors):
    model = run.setup.base.model
    with torch.no_grad(), Injection(model, factors) as injection, injection.active(factors):
        return model(PROMPTS).logits


# --- the interface ----------------------------------------------------------------------------------------------


def test_every_method_says_what_it_is():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title
        assert method.formula
        assert method.source.startswith(("https://", "docs/"))
        assert set(method.labels) <= {"train", "dev", "micro_dev"}
        assert ("dev" in method.labels) == method.runs  # dev picks the epoch of a run and nothing else but the choice
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_names_are_unique_and_unknown_ones_are_told():
    with pytest.raises(ValueError, match="registered twice"):
        register(METHODS["ties"])
    with pytest.raises(ConfigError, match=r"unknown method 'tie'.* Did you mean 'ties'\?"):
        find_method("tie")


@pytest.mark.parametrize("name", METHODS)
def test_no_method_is_given_more_than_it_says(name, opened):
    run, adapters = opened()
    given = context(run, find_method(name), adapters)
    assert set(given.setup.target) == set(find_method(name).labels)
    assert not given.setup.source
    uses = find_method(name).uses
    assert [a.name for a in given.adapters] == {
        "none": [], "source": ["source"], "target": ["target"], "all": ["source", "target"],
    }[uses]  # fmt: skip
    assert set(rival_content(name, adapters)) == {a.name for a in given.adapters}


def test_a_context_with_test_data_is_refused(opened):
    run, adapters = opened()
    with pytest.raises(ValueError, match="must not see a test split"):
        MethodContext(run.setup, adapters, context(run, find_method("grid"), adapters).bench)


def test_importances_that_need_a_first_pass_get_micro_dev(opened):
    run, adapters = opened(prune__importance="activation")
    assert set(context(run, find_method("grid"), adapters).setup.target) == {"train", "dev", "micro_dev"}
    assert set(context(run, find_method("merged"), adapters).setup.target) == {"train", "dev"}


# --- PEFT's merges ----------------------------------------------------------------------------------------------


def peft_model(world, density=None, **merge):
    """PEFT's own merge of the two adapters on the whole model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(load_plain(world.model), str(world.root / "en"), adapter_name="en")
        model.load_adapter(str(world.root / "ar"), adapter_name="ar")
        settings = {} if density is None else {"density": density}
        model.add_weighted_adapter(["en", "ar"], [1.0, 1.0], "both", **merge, **settings)
    model.set_adapter("both")
    return model.eval()


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if "dare" not in c.name], ids=lambda c: c.name)
def test_merges_are_those_of_peft(combination, opened, world):
    run, adapters = opened()
    with undrawn(3):
        bank = made(run, combination.name, adapters).bank
    with torch.no_grad():
        reference = peft_model(world, combination.density, combination_type=combination.name)
        expected = reference(PROMPTS).logits
    seen = logits(run, system_factors(bank))
    assert (seen - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_linear_is_the_merge_rule_without_pruning(opened, world):
    run, adapters = opened(merge__rule="sum_factors")
    bank = run.setup.bank(adapters)
    with torch.no_grad():
        expected = peft_model(world, combination_type="linear")(PROMPTS).logits
    seen = logits(run, bank.merged(bank.dense()))
    assert (seen - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_drops_at_random_and_rescales(name, opened):
    _, adapters = opened()
    (combination,) = [c for c in COMBINATIONS if c.name == name]
    with undrawn(3):
        merged = combine(adapters, combination, (1.0, 1.0), 42)
    assert merged.sha256 == combine(adapters, combination, (1.0, 1.0), 42).sha256
    assert merged.sha256 != combine(adapters, combination, (1.0, 1.0), 43).sha256
    kept = []
    for module, factor in merged.modules.items():
        for part in ("A", "B"):
            one, two = (constant(1.0, a.modules[module].scaling) * getattr(a.modules[module], part) for a in adapters)
            # Each entry of each adapter is dropped or doubled; what is left adds up, or is averaged where signs agree.
            both = 2 * (one + two) if name == "dare_linear" else one + two
            allowed = torch.stack([torch.zeros_like(one), 2 * one, 2 * two, both])
            distance = (allowed - getattr(factor, part)).abs().min(dim=0).values
            assert distance.max() < 1e-5
            kept.append((getattr(factor, part) != 0).float().mean().item())
    assert 0.4 < np.mean(kept) < 0.9


def test_a_tuned_merge_starts_from_the_merge(opened):
    run, adapters = opened(finalize__lr=1e-12, finalize__epochs=1)
    plain, tuned = made(run, "svd", adapters).bank, made(run, "svd_tuned", adapters).bank
    torch.testing.assert_close(logits(run, system_factors(tuned)), logits(run, system_factors(plain)))


def test_merging_factors_needs_equal_ranks(opened, world):
    world.adapter("wide", r=3)
    run, adapters = opened()
    with working(world.config(merge__rule="sum_deltas", adapters__source=world.root / "wide",
                              adapters__target=world.root / "ar", run__dir=world.root / "other")) as other:  # fmt: skip
        adapters = all_adapters(other)
        for name in ("ties", "lorahub"):
            with pytest.raises(AdapterError, match=f"{name} adds the factors .* equal ranks, .* Leave it out"):
                made(other, name, adapters)
        assert made(other, "cat", adapters).bank.slots[0].shape[0] == 5


# --- LoRAHub ----------------------------------------------------------------------------------------------------


def test_lorahub_is_nevergrad_on_its_objective(opened):
    run, adapters = opened()
    with undrawn(5):
        result = made(run, "lorahub", adapters)
    import nevergrad

    space = nevergrad.p.Array(init=[0.0] * 2, lower=[-1.5] * 2, upper=[1.5] * 2)
    space.random_state = np.random.RandomState(derive_seed(42, "lorahub") % 2**32)
    optimizer = nevergrad.optimizers.NGOpt(parametrization=space, budget=40)
    bank = run.setup.bank(adapters)
    with Injection(run.setup.base.model, bank.modules) as injection, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = run.setup.evaluator(run.setup.attach(injection, bank), "micro_dev")
        for _ in range(STEPS):
            asked = optimizer.ask()
            loss = judge.flat_losses(weighted(bank, [float(w) for w in asked.value])[None]).mean()
            optimizer.tell(asked, float(loss) + L1 * np.abs(asked.value).mean())
    expected = [float(w) for w in optimizer.provide_recommendation().value]
    assert result.details == {"weights": expected, "steps": STEPS}
    assert result.forward_tokens == STEPS * sum(len(i.input_ids) for i in run.setup.items("micro_dev"))


def test_lorahub_weights_both_factors(opened):
    run, adapters = opened()
    bank = run.setup.bank(adapters)
    merged = bank.merged(weighted(bank, [0.5, -1.0]))
    for module, (a, b) in merged.items():
        one, two = (adapter.modules[module] for adapter in adapters)
        expected = one.scaling * (0.5 * one.B - two.B) @ (0.5 * one.A - two.A)
        torch.testing.assert_close(b @ a, expected)


# --- runs -------------------------------------------------------------------------------------------------------


def direct(run, adapters, ratio, **changes):
    """The final run by itself, outside of a run folder."""
    setup = Setup(run.config.model_copy(update=changes), run.setup.base, run.setup.target, run.setup.source)
    return finalize(setup, adapters, ratio, StageIO("direct"))


def test_merged_and_adaptive_are_final_runs(opened):
    run, adapters = opened(compare__ratio=0.3)
    merged = made(run, "merged", adapters)
    assert torch.equal(merged.bank.values, direct(run, adapters, 0.0).bank.values)
    adaptive = made(run, "adaptive", adapters)
    config = run.config
    expected = direct(
        run, adapters, 0.3, prune=config.prune.model_copy(update={"importance": "activation"}),
        finalize=config.finalize.model_copy(update={"mask": "dynamic"}),
    )  # fmt: skip
    assert torch.equal(adaptive.bank.values, expected.bank.values)
    assert adaptive.ratio == 0.3
    assert adaptive.bank.density() == expected.density
    assert len(expected.flips) == expected.outcome.steps


def test_sequential_goes_on_from_the_source_adapter(opened):
    run, adapters = opened(train_target__lr=1e-12, train_target__epochs=1)
    seen = logits(run, rival_factors(run, "sequential", adapters))
    expected = logits(run, system_factors(alone(run.setup, adapters[0])))
    torch.testing.assert_close(seen, expected)


def test_the_grid_takes_the_best_dev_loss(opened):
    run, adapters = opened()
    result = made(run, "grid", adapters)
    losses = {f"{p:.1f}": min(direct(run, adapters, p).outcome.dev_losses) for p in RATIOS}
    assert result.details["dev_losses"] == losses
    assert result.ratio == float(min(losses, key=losses.get))
    assert torch.equal(result.bank.values, direct(run, adapters, result.ratio).bank.values)
    assert list(result.alternatives) == [f"p={p:.1f}" for p in RATIOS]
    assert torch.equal(result.alternatives["p=0.8"]().values, direct(run, adapters, 0.8).bank.values)


def test_comparing_runs_needs_dev_data(opened):
    run, adapters = opened(data__target__dev=None)
    with pytest.raises(DataError, match=r"data\.target\.dev"):
        made(run, "grid", adapters)


# --- Optuna -----------------------------------------------------------------------------------------------------

SAMPLERS = {
    "optuna_tpe": lambda seed: optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed),
    "optuna_gp": lambda seed: optuna.samplers.GPSampler(n_startup_trials=STARTUP, seed=seed),
}


@pytest.fixture
def _quiet_optuna():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.mark.usefixtures("_quiet_optuna")
@pytest.mark.parametrize("name", SAMPLERS)
def test_optuna_is_its_own_study_over_final_runs(name, opened):
    run, adapters = opened()
    result = made(run, name, adapters)
    trials = result.details["trials"]
    study = optuna.create_study(direction="minimize")
    for number, trial in enumerate(trials):
        study.sampler = SAMPLERS[name](derive_seed(42, "optuna", number) % 2**32)
        asked = study.ask()
        assert asked.suggest_float("ratio", LOW, HIGH) == trial["ratio"]
        study.tell(asked, trial["dev_loss"])
    assert len(trials) == TRIALS
    assert result.ratio == study.best_params["ratio"]
    losses = [min(direct(run, adapters, trial["ratio"]).outcome.dev_losses) for trial in trials[:2]]
    assert [trial["dev_loss"] for trial in trials[:2]] == losses


def test_halving_ends_runs_early_and_costs_less(opened):
    run, adapters = opened(finalize__epochs=5)
    result = made(run, "optuna_halving", adapters)
    trials = result.details["trials"]
    states = {trial["state"] for trial in trials}
    assert states == {"complete", "pruned"}
    assert all(trial["epochs"] == 5 for trial in trials if trial["state"] == "complete")
    assert all(trial["epochs"] in (2, 4) and trial["dev_loss"] is not None for trial in trials
               if trial["state"] == "pruned")  # fmt: skip
    best = min((t for t in trials if t["state"] == "complete"), key=lambda t: t["dev_loss"])
    assert result.ratio == best["ratio"]
    tokens = sum(len(item.input_ids) for item in run.setup.items("train"))
    assert _spent(run, 0)["trained_tokens"] == tokens * sum(trial["epochs"] for trial in trials)


def test_a_killed_study_goes_on_as_if_it_had_not_been(opened, monkeypatch):
    monkeypatch.setattr(optuna_search, "TRIALS", 4)
    changes, trial = {"finalize__epochs": 3, "run__checkpoint_every": 1}, 2
    run, adapters = opened(**changes)
    expected = made(run, "optuna_halving", adapters)
    opened.close()

    run, adapters = opened(**changes, run__dir=run.folder.path.parent / "killed")
    log = StageIO._log

    def crash(self, kind, values):
        log(self, kind, values)
        if self.name == f"trial_{trial}" and values.get("step") == 3:
            raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(StageIO, "_log", crash)
        with pytest.raises(SimulatedCrash):
            made(run, "optuna_halving", adapters)
    result = made(run, "optuna_halving", adapters)
    assert result.details == expected.details
    assert torch.equal(result.bank.values, expected.bank.values)


def test_a_study_killed_between_a_run_and_its_report_goes_on(opened, monkeypatch):
    monkeypatch.setattr(optuna_search, "TRIALS", 5)
    run, adapters = opened(finalize__epochs=3)
    tell, told = optuna.study.Study.tell, []

    def crash(self, *args, **kwargs):
        told.append(args)
        if len(told) == 4:
            raise SimulatedCrash
        return tell(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.study.Study, "tell", crash)
        with pytest.raises(SimulatedCrash):
            made(run, "optuna_halving", adapters)
    result = made(run, "optuna_halving", adapters)
    assert len(result.details["trials"]) == 5
    done = json.loads((run.folder.path / "stages" / "trial_3" / "result.json").read_text())
    assert result.details["trials"][3]["epochs"] == done["outcome"]["epochs"]


@pytest.mark.parametrize(("name", "package"), [("lorahub", "nevergrad"), ("optuna_tpe", "optuna")])
def test_a_missing_library_says_how_to_get_it(name, package, opened, monkeypatch):
    run, adapters = opened()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*grasp-lora\[baselines\]"):
        made(run, name, adapters)


# --- probes -----------------------------------------------------------------------------------------------------


def test_probed_losses_are_those_of_pruned_and_scaled_merges(opened):
    run, adapters = opened(merge__strength=0.9)
    candidates = [MergePoint(0.0, 1.0), MergePoint(0.45, 1.0), MergePoint(0.3, 0.5), MergePoint(0.9, 2.0)]
    losses, tokens = probe(context(run, find_method("both_by_probe"), adapters), candidates)
    micro = sum(len(item.input_ids) for item in run.setup.items("micro_dev"))
    assert tokens == len(candidates) * micro
    for row, candidate in zip(losses, candidates, strict=True):
        still = run.config.finalize.model_copy(update={"lr": 1e-30, "epochs": 1})
        setup = run.setup
        bank = direct(run, adapters, candidate, finalize=still).bank
        with Injection(setup.base.model, bank.modules) as injection:
            expected = setup.evaluator(setup.attach(injection, bank), "micro_dev").losses()
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_the_best_candidate_gets_the_final_run(opened):
    run, adapters = opened()
    result = made(run, "both_by_probe", adapters)
    probed = result.details["probed"]
    assert len(probed) == 100
    best = min(probed, key=lambda row: row[2])
    assert [result.ratio, result.details["strength"]] == best[:2]
    expected = direct(run, adapters, MergePoint(*best[:2]))
    assert torch.equal(result.bank.values, expected.bank.values)
    low, high = result.interval
    assert low <= result.ratio <= high
    assert {low, high} <= {*COARSE_RATIOS} or low < high


def test_strength_alone_prunes_nothing_and_has_no_interval(opened):
    run, adapters = opened()
    result = made(run, "strength_by_probe", adapters)
    assert (result.ratio, result.interval, result.bank.density()) == (0.0, None, 1.0)
    assert len(result.details["probed"]) == 20


# --- GRASP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["released", "default"])
def test_grasp_is_the_search_and_a_final_run(preset, opened):
    run, adapters = opened()
    result = made(run, f"grasp_{preset}", adapters)
    done = run.folder.stage("search").done()
    assert (result.ratio, list(result.interval or [])) == (done["p_star"], done["interval"] or [])
    assert result.details["evaluations"] == done["evaluations"]
    point = MergePoint.from_dict(result.details["point"])
    assert point.ratio == result.ratio
    assert torch.equal(result.bank.values, direct(run, adapters, point).bank.values)


def test_a_reused_adapter_is_that_of_the_search_and_costs_nothing_more(opened):
    run, adapters = opened(finalize__epochs=3)
    result = made(run, "grasp_reuse", adapters)
    search = run.folder.stage("search").done()
    assert result.ratio == search["p_star"]
    assert run.folder.stage("finalize").done()["reused"]
    assert _spent(run, 0)["trained_tokens"] == search["outcome"]["trained_tokens"]


def test_another_preset_has_its_own_defaults(world):
    config = world.config(controller__p_max=0.9, controller__anchor=0.5, controller__candidates=5)
    assert with_preset(config, "default") == config
    released = with_preset(config, "released").controller
    assert (released.p_max, released.anchor, released.preset) == (None, None, "released")
    assert (released.candidates, released.interval) == (5, config.controller.interval)


# --- accounting -------------------------------------------------------------------------------------------------


class Counter:
    """Counts tokens, padding left out, at the embedding: those with gradients were trained on."""

    def __init__(self, run):
        joins(run.setup.base.model, 1)  # the engine's own trial of the model, which is no cost of a method
        self.trained = self.forward = 0
        self._pad = run.setup.base.pad_id
        self._handle = run.setup.base.model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _module, args):
        tokens = int((args[0] != self._pad).sum())
        if torch.is_grad_enabled():
            self.trained += tokens
        else:
            self.forward += tokens

    def close(self):
        self._handle.remove()


COUNTED = [
    "zero_shot", "target", "sequential", "merged", "adaptive", "ties", "cat_tuned", "lorahub", "grid", "optuna_halving",
    "ratio_by_probe", "both_by_probe", "grasp_released", "grasp_default", "grasp_reuse",
]  # fmt: skip
PRUNING = ["grid", "ratio_by_probe", "grasp_released", "grasp_default"]  # take first statistics from micro-dev


@pytest.mark.parametrize(
    ("name", "importance"), [(n, "magnitude") for n in COUNTED] + [(n, "activation") for n in PRUNING]
)
def test_costs_are_the_tokens_that_passed(name, importance, opened):
    run, adapters = opened(prune__importance=importance, finalize__epochs=3)
    counter = Counter(run)
    try:
        result = made(run, name, adapters)
    finally:
        counter.close()
    spent = _spent(run, result.forward_tokens)
    assert (spent["trained_tokens"], spent["forward_tokens"]) == (counter.trained, counter.forward)
    assert spent["token_passes"] == 4 * counter.trained + 2 * counter.forward
    assert (spent["optimizer_steps"] > 0) == find_method(name).runs
