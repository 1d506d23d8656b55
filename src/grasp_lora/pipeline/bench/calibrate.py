"""Lines of the cost model, measured in seconds: the model's own layers with random weights, two and four of them.

Nothing is downloaded and no weights are loaded. A small model is measured whole; of a large one, what each further
layer costs is taken from the difference between two depths. The passes are those of the run: its training loop, its
evaluator, its generation, with the switches of `speed` as they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from ...config import Config
from ...errors import ModelError
from ..costs import CostModel, Kind, Line
from ..models import location, random_weights, resolve_device, skeleton
from .clock import Timing, measure_rate
from .pieces import (
    Bench,
    generation_seconds,
    opened,
    overhead_seconds,
    probing_seconds,
    selection_seconds,
    step_seconds,
)
from .workloads import Workload, setup_of

SMALL = 50_000_000  # parameters up to which a model is measured whole
# Layers of the two models that stand for a large one. The last layer may run at answer positions only and the first
# needs no gradient of its input, so that only further ones in between are like most.
DEPTHS = (2, 4)
MARGIN = 0.25
_REPEATS, _ROUNDS, _STEPS = 3, 9, 8
_FEW, _MOST = 4, 16  # examples
_PATIENCE, _EXAMPLE = 0.5, 0.1  # seconds that the larger of two passes, and one example forward, may take
_ANSWER, _SHORTEST = 8, 16  # tokens of an answer, and of the shortest example
# Random weights are not what the run's own learning rate is for: losses must stay finite while passes are timed.
_SMALL_STEPS = {"lr": 1e-9, "lr_decay": 1.0, "weight_decay": 0.0}
_SIDE = 1024  # of the square product that says how long examples may be

Pair = tuple[float, float]
Lines = dict[Kind, Line]


@dataclass(frozen=True)
class Typical:
    """The run's own sizes: tokens of an example, and answers in a batch."""

    tokens: int
    answers: int


def calibrate(config: Config, typical: Typical) -> CostModel:
    """Measure passes on this machine and return the cost model.

    Raises `ModelError` where a model cannot be made or cut, `TrainingError` where its passes fail.
    """
    settings: Any = AutoConfig.from_pretrained(
        location(config.model), revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    )
    depth, parameters = _depth(settings), sum(parameter.numel() for parameter in skeleton(config.model).parameters())
    if parameters <= SMALL or depth <= DEPTHS[1]:
        lines, how = _measured(config, typical, settings), "all layers"
    else:
        few, more = (_measured(config, typical, _cut(settings, layers)) for layers in DEPTHS)
        lines = {kind: _deepened(few[kind], more[kind], depth) for kind in few}
        how = f"{DEPTHS[0]} and {DEPTHS[1]} of its {depth} layers"
    device = resolve_device(config.model.device)
    return CostModel(lines, f"measured now on this machine's {device.type}, {how} with random weights", MARGIN)


def _depth(settings: Any) -> int:
    text = settings.get_text_config()
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        raise ModelError(f"the configuration of {type(settings).__name__} does not say how many layers it has.")
    return int(text.num_hidden_layers)


def _cut(settings: Any, layers: int) -> Any:
    """Return the configuration with so many layers."""
    cut = copy.deepcopy(settings)
    text = cut.get_text_config()
    text.num_hidden_layers = layers
    if isinstance(getattr(text, "layer_types", None), list):
        text.layer_types = text.layer_types[:layers]
    return cut


def _deepened(few: Line, more: Line, depth: int) -> Line:
    """Return a line for `depth` layers from those for DEPTHS of them; a layer costs no less than nothing."""
    layers = (depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])

    def grown(first: Pair, second: Pair) -> Pair:
        low, high = sorted(a + layers * max(b - a, 0.0) for a, b in zip(first, second, strict=True))
        return low, high

    return Line(grown(few.fixed, more.fixed), grown(few.per_token, more.per_token))


def _measured(config: Config, typical: Typical, settings: Any) -> Lines:
    """Return the lines of a model of a transformers configuration."""
    model = random_weights(settings, config.model, "calibration")
    size = _size(typical, model, 2 + len(config.adapters.others))
    with opened(size, setup_of(size, config, model)) as bench:
        return {
            "train": _training(bench),
            "forward": _probing(bench),
            "decode": _decoding(bench, config),
            "round": _fixed(overhead_seconds(bench, _ROUNDS)["round without probing"]),
            "select": _fixed(selection_seconds(bench, _REPEATS)),
        }


def _size(typical: Typical, model: PreTrainedModel, adapters: int) -> Workload:
    """Return the examples to measure on: of the run's typical length, or as long as our patience allows."""
    settings: Any = model.config
    rate = measure_rate(_SIDE, model.dtype, model.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tokens = max(_SHORTEST, min(typical.tokens, int(rate * _EXAMPLE / (2.0 * parameters))))
    shape = {"vocab_size": int(settings.get_text_config().vocab_size)}
    return Workload(
        "calibration", shape, tokens - _ANSWER, tokens - _ANSWER, _ANSWER, _SIDE, adapters=adapters,
        train=2 * _MOST, micro_dev=_FEW, generated=typical.answers, prompt=_SHORTEST, new_tokens=2,
    )  # fmt: skip


def _training(bench: Bench) -> Line:
    items, tokens = bench.setup.items("train"), len(bench.setup.items("train")[0].input_ids)
    alone = {"batch_size": 1, "accumulation": 1, "patience": None}
    settings = bench.setup.config.search.model_copy(update=alone | _SMALL_STEPS)
    one = step_seconds(bench, settings, items[:_FEW])
    rows = _rows(one.median)
    many = step_seconds(bench, settings.model_copy(update={"batch_size": rows}), items[: 2 * rows])
    return _line((tokens, one), (rows * tokens, many))


def _probing(bench: Bench) -> Line:
    items, tokens = bench.setup.items("train"), len(bench.setup.items("train")[0].input_ids)
    one = probing_seconds(bench, _REPEATS, 0, items=items[:1])
    rows = _rows(one.median)
    candidates = min(3, rows - 1)
    some = items[: max(1, rows // (1 + candidates))]
    many = probing_seconds(bench, _REPEATS, candidates, items=some, batch_size=len(some))
    return _line((tokens, one), ((1 + candidates) * len(some) * tokens, many))


def _decoding(bench: Bench, config: Config) -> Line:
    """Return the line of one step of a batch of answers, all of it per row."""
    static, size = config.speed.static_cache, bench.workload
    few = generation_seconds(bench, _REPEATS, static=static).timing
    longer = replace(bench, workload=replace(size, new_tokens=size.new_tokens + _STEPS))
    more = generation_seconds(longer, _REPEATS, static=static).timing
    step = max(more.median - few.median, 0.0) / _STEPS / size.generated
    spread = [end / timing.median for timing in (few, more) for end in _ends(timing)]
    return Line((0.0, 0.0), (step * min(spread), step * max(spread)))


def _fixed(timing: Timing) -> Line:
    """Return a line without tokens, at the mean: fits of the policy come every few rounds only."""
    return Line((timing.mean, timing.mean))


def _ends(timing: Timing) -> Pair:
    return min(timing.repeats), max(timing.repeats)


def _line(small: tuple[int, Timing], large: tuple[int, Timing]) -> Line:
    """Return the line through the medians of two passes of so many tokens, as wide as their repeats are."""
    (few, quick), (many, slow) = small, large
    per_token = max(slow.median - quick.median, 0.0) / (many - few)
    fixed = max(quick.median - per_token * few, 0.0)
    spread = [end / timing.median for timing in (quick, slow) for end in _ends(timing)]
    low, high = min(spread), max(spread)
    return Line((fixed * low, fixed * high), (per_token * low, per_token * high))


def _rows(one: float) -> int:
    """Return how many rows the larger pass has: as many as our patience allows."""
    return max(2, min(_MOST, int(_PATIENCE / one)))
