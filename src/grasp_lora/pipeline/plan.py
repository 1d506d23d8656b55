"""What a run would do, before it does it: stages, optimizer steps, forward passes and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..adapters.discover import module_shapes, resolve_target_modules
from ..baselines import SEQUENTIAL
from ..config import Config, Importance, TrainingConfig
from ..controller import Controller
from ..data import Encoded, epoch_order
from ..training.way import planned_way
from .checks import Checked, preflight
from .costs import Load, Prediction, answering_loads, forward_load, training_load
from .footprint import Judged, Trained, answering_bytes, judging_pass, largest, peak_bytes, training_pass
from .models import resolve_device
from .search import rounds_at_once, search_axes


@dataclass(frozen=True)
class StagePlan:
    """One stage: optimizer steps, sequences that go forward and backward, sequences forward only, token passes.

    `token_passes` counts 2 per token forward and 4 per token forward and backward; `loads` are the passes as they run,
    padding included, from which seconds are predicted.
    """

    name: str
    steps: int
    trained: int
    forward: int
    token_passes: int
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The stages of a run and its estimated peak memory in bytes (weights, adapters, the largest pass).

    On a GPU passes shrink to what its memory has free: with the smallest ones the peak is `least_memory`. `prediction`
    says how long it would take, where it was asked for (`predicted_plan`).
    """

    stages: tuple[StagePlan, ...]
    parameters: int
    trainable: int
    memory: int
    least_memory: int
    warnings: tuple[str, ...]
    prediction: Prediction | None = None


@dataclass(frozen=True)
class _World:
    """What the estimates are made from."""

    config: Config
    checked: Checked

    def items(self, role: str, split: str) -> Sequence[Encoded]:
        found = self.checked.encoded.get(f"{role}.{split}")
        return found.items if found else ()


@dataclass(frozen=True)
class _Staged:
    """The plan of a stage, and what decides on its memory: training, items that are judged, prompts with answers."""

    plan: StagePlan
    trains: Trained | None = None
    judges: tuple[Judged, ...] = ()
    answers: Sequence[Encoded] = ()


def make_plan(config: Config) -> Plan:
    """Return the plan of `run`; reads data, tokenizer and the model's shape, but no weights.

    Raises the `GraspError` that the run itself would raise before it loads any weights.
    """
    checked = preflight(config)
    world = _World(config, checked)
    parameters = sum(p.numel() for p in checked.model.parameters())
    trainable = _trainable(world)
    stages = tuple(_stages(world))
    most, least = (_memory(world, stages, parameters, trainable, shrunk=shrunk) for shrunk in (False, True))
    plans = tuple(stage.plan for stage in stages)
    return Plan(plans, parameters, trainable, most, least, checked.warnings)


def _trainable(world: _World) -> int:
    given = [f for adapter in world.checked.adapters.values() for f in adapter.modules.values()]
    count = sum(f.A.numel() + f.B.numel() for f in given)
    adapters, lora = world.config.adapters, world.config.lora
    missing = [adapters.source, adapters.target].count(None)
    if not missing:
        return count
    shapes = module_shapes(world.checked.model)
    return count + missing * sum(lora.r * sum(shapes[module]) for module in _trained_modules(world))


def _trained_modules(world: _World) -> Sequence[str]:
    """Return the modules of an adapter that is trained here."""
    return resolve_target_modules(world.checked.model, world.config.lora.target_modules)


def _names(world: _World) -> list[str]:
    """Return the adapters' names, in the order in which they are merged."""
    return ["source", "target", *(f"other{i + 1}" for i in range(len(world.config.adapters.others)))]


def _modules(world: _World) -> set[str]:
    """Return every module that an adapter touches."""
    adapters = world.config.adapters
    own = _trained_modules(world) if None in (adapters.source, adapters.target) else ()
    return {*own, *(module for adapter in world.checked.adapters.values() for module in adapter.modules)}


def _tokens(items: Sequence[Encoded]) -> int:
    return sum(len(item.input_ids) for item in items)


def _training(world: _World, name: str, role: str, training: TrainingConfig, *, dev: bool = True) -> _Staged:
    """Plan one training at most: early stopping can only shorten it."""
    items, judged = world.items(role, "train"), world.items(role, "dev") if dev else ()
    steps = training.epochs * math.ceil(len(items) / (training.batch_size * training.accumulation))
    passes = training.epochs * (4 * _tokens(items) + 2 * _tokens(judged))
    on_gpu = resolve_device(world.config.model.device).type == "cuda"
    padded = _padded(world, training, items, on_gpu=on_gpu)
    epoch = training_load(world.config.speed, training, items, world.config.seed, on_gpu=on_gpu, padded=padded)
    loads = (epoch.times(training.epochs), forward_load(judged, training.eval_batch_size).times(training.epochs))
    trains = Trained(training, items, padded) if steps else None
    judges = (Judged(judged, training.eval_batch_size),) if judged else ()
    forward = training.epochs * len(judged)
    return _Staged(StagePlan(name, steps, training.epochs * len(items), forward, passes, loads), trains, judges)


def _padded(world: _World, training: TrainingConfig, items: Sequence[Encoded], *, on_gpu: bool) -> bool:
    """Return whether the passes of a training are padded to one length, as far as the model's shape says."""
    config = world.config
    if config.model.gradient_checkpointing or config.model.attn_implementation not in (None, "sdpa"):
        return True  # which the model without weights does not show
    return planned_way(
        world.checked.model, _modules(world), items, speed=config.speed, training=training, on_gpu=on_gpu
    ).padded


def _search(world: _World) -> _Staged:
    """Plan the controller run; it ends with the last round where `controller.rounds` says so.

    A run whose adapter is kept trains on to its last epoch, with dev judging at most all of them.
    """
    config = world.config
    keep = config.finalize.adapter == "reuse"
    staged = _training(world, "search", "target", config.search, dev=keep or config.search.patience is not None)
    base = staged.plan
    rounds = (base.steps // 2 if keep else base.steps) // config.controller.interval
    if not base.steps:
        rounds = rounds_at_once(config)
    elif keep:
        rounds = min(rounds, config.controller.rounds or rounds)
    elif config.controller.rounds is not None and config.controller.rounds <= rounds:
        rounds = config.controller.rounds
        base = _cut(world, base, rounds * config.controller.interval)
    axes = search_axes(config, _names(world), _modules(world))
    first = Controller(config.controller, config.seed, steps_total=base.steps, axes=axes).ask(0)
    evaluations = rounds * (1 + config.controller.candidates) + (1 + len(first.samples) if first else 0)
    probe = world.items("target", "micro_dev")
    forward = base.forward + evaluations * len(probe)
    statistics = _statistics(config, at_start=first is not None)
    tokens = (evaluations + statistics) * _tokens(probe)
    width, opening = config.search.eval_batch_size, 1 + len(first.samples) if first else 0
    loads = (
        *base.loads,
        forward_load(probe, width, 1 + config.controller.candidates).times(rounds),
        forward_load(probe, width, opening),
        forward_load(probe, width).times(statistics),
        Load("round", rounds + bool(opening)),
    )
    plan = replace(base, forward=forward, token_passes=base.token_passes + 2 * tokens, loads=loads)
    probed = Judged(probe, width, max(opening, 1 + config.controller.candidates))
    return _Staged(plan, staged.trains, (*staged.judges, probed))


def _statistics(config: Config, *, at_start: bool) -> int:
    """Return what the first ranking's pass over micro-dev costs, in forward passes; later ones cost nothing more."""
    if config.prune.importance == "sensitivity" and not at_start:
        return 0  # after some training its gradients are there already
    return _first_ranking(config.prune.importance)


def _first_ranking(importance: Importance) -> int:
    """Return what a ranking before any training costs, in forward passes over micro-dev (one with backward is two)."""
    return {"magnitude": 0, "activation": 1, "sensitivity": 2}[importance]


def _cut(world: _World, whole: StagePlan, steps: int) -> StagePlan:
    """Return the plan of a controller run that stops after `steps` updates, counted in the order of its examples."""
    config, items = world.config.search, world.items("target", "train")
    size = config.batch_size * config.accumulation
    updates = math.ceil(len(items) / size)
    used: list[Encoded] = []
    for epoch in range(math.ceil(steps / updates)):
        order = epoch_order(len(items), world.config.seed, epoch)
        used += [items[i] for i in order[: size * min(updates, steps - epoch * updates)]]
    dev = world.items("target", "dev") if config.patience is not None else ()
    judged = (steps - 1) // updates  # a run that stops with an epoch's last update does not judge that epoch
    passes = 4 * _tokens(used) + 2 * judged * _tokens(dev)
    share = steps / whole.steps  # of the training; dev is judged after whole epochs
    loads = (whole.loads[0].times(share), forward_load(dev, config.eval_batch_size).times(judged))
    return replace(
        whole, steps=steps, trained=len(used), forward=judged * len(dev), token_passes=passes, loads=loads
    )  # fmt: skip


def _final(world: _World) -> _Staged:
    """Plan the final run; its first mask may need a pass over micro-dev."""
    staged, probe = _training(world, "finalize", "target", world.config.finalize), world.items("target", "micro_dev")
    base, width = staged.plan, world.config.finalize.eval_batch_size
    passes = _first_ranking(world.config.final_importance)
    first = forward_load(probe, width).times(passes)
    dev = world.items("target", "dev") if world.config.finalize.keep_start else ()
    start = (*dev, *dev)  # as it came, and pruned
    before = forward_load(start, width)
    selections = base.steps if world.config.finalize.mask == "dynamic" else 0
    plan = replace(
        base, forward=base.forward + passes * len(probe) + len(start),
        token_passes=base.token_passes + 2 * passes * _tokens(probe) + 2 * _tokens(start),
        loads=(*base.loads, first, before, Load("select", selections)),
    )  # fmt: skip
    judged = Judged((*(probe if passes else ()), *dev), width)
    return _Staged(plan, staged.trains, (*staged.judges, judged))


def _stages(world: _World) -> list[_Staged]:
    config, stages = world.config, []
    if config.adapters.source is None:
        stages.append(_training(world, "source_adapter", "source", config.train_source))
    if config.adapters.target is None:
        stages.append(_training(world, "target_adapter", "target", config.train_target))
    if config.adapters.continue_source:
        stages.append(_training(world, SEQUENTIAL, "target", config.train_target))
    stages.append(_search(world))
    if config.finalize.adapter == "fresh":
        stages.append(_final(world))
    test = world.items("target", "test")[: config.evaluate.limit]
    dev = world.items("target", "dev")
    trained = [name for name in ("merged", "sequential") if name in config.evaluate.rivals]
    if not test and not (dev and config.finalize.keep == "best"):
        trained = []
    if config.adapters.continue_source:  # trained above, whether it is a rival or not
        trained = [*(name for name in trained if name != "sequential"), "sequential"]
    own = {"merged": config.finalize, "sequential": config.train_target}
    planned = {stage.plan.name for stage in stages}
    stages += [
        _training(world, f"rival_{name}", "target", own[name]) for name in trained if f"rival_{name}" not in planned
    ]
    if dev:  # what is exported is compared on dev: the result, the target adapter, and the rivals that are trained
        judged = 2 + len(trained)
        load = forward_load(dev, config.evaluate.batch_size).times(judged)
        plan = StagePlan("keep", 0, 0, judged * len(dev), 2 * judged * _tokens(dev), (load,))
        stages.append(_Staged(plan, judges=(Judged(dev, config.evaluate.batch_size),)))
    if not test:
        return stages
    systems = 1 + len(config.evaluate.rivals)
    # Loss of every example, and a prompt and at most max_new_tokens new tokens of those that are answered.
    asked = test[: config.evaluate.generation_limit]
    tokens = systems * (_tokens(test) + _tokens(asked) + len(asked) * config.task.max_new_tokens)
    width = config.evaluate.batch_size
    each = [forward_load(test, width), *answering_loads(asked, width, config.task.max_new_tokens)]
    loads = tuple(load.times(systems) for load in each)
    plan = StagePlan("evaluate", 0, 0, systems * (len(test) + len(asked)), 2 * tokens, loads)
    return [*stages, _Staged(plan, judges=(Judged(test, width),), answers=asked)]


def _memory(world: _World, stages: Sequence[_Staged], parameters: int, trainable: int, *, shrunk: bool) -> int:
    config, described = world.config, world.checked.model.config
    trained = [stage.trains for stage in stages if stage.trains is not None]
    judged = [one for stage in stages for one in stage.judges]
    return peak_bytes(
        config, described, parameters=parameters, trainable=trainable,
        training=largest(training_pass(config, one, shrunk=shrunk) for one in trained),
        forward=largest(judging_pass(config, described, parameters, one, shrunk=shrunk) for one in judged),
        answering=max(answering_bytes(config, described, stage.answers, shrunk=shrunk) for stage in stages),
    )  # fmt: skip
