"""Figures: what they hold is what was recorded, and both ways of drawing them show the same."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from grasp_lora.report import coordinates
from grasp_lora.report.figures import curves, interactive, losses, masks, rewards, scores, svg, trajectory
from grasp_lora.report.figures.spec import Band, Bars, Cells, Figure, Intervals, Line, Points, Rule
from grasp_lora.report.palette import DARK, GAINS, LIGHT, MARKS, TEXT_ON, contrast
from grasp_lora.report.records import read_run
from report.synthetic import densities, write_run

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert("x")</script> $\\frac{1}{2}$ & بيت 上海'


def every_layer():
    return Figure(
        "all", EVIL, EVIL, EVIL, "x", "y",
        [
            Line([0, 1], [0, 1], "ink", EVIL, step=True), Line([0, 1], [1, 0], "red", None, dashed=True, faint=True),
            Band([0, 1], [0, 0], [1, 1], "accent", "band"), Points([0, 1], [1, 0], ["green", "red"], ["first", EVIL]),
            Rule("y", 0.5, "green", "rule", 0.4, 0.6), Rule("x", 0.5, "green"),
            Bars([0, 1], [1, 2], 0.5, "teal", ["p", EVIL]),
        ],
    )  # fmt: skip


def rows_of_cells():
    cells = Cells(["q", EVIL], ["0", "1"], [[0.1, None], [0.5, 0.9]], 0.1, 0.9)
    return Figure("cells", "t", "c", "a", "layer", "", [cells])


def intervals():
    layer = Intervals(["a", EVIL], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], ["grey", "accent"], ["tip a", "tip b"])
    return Figure("rows", "t", "c", "a", "loss", "", [layer])


FIGURES = [every_layer(), rows_of_cells(), intervals()]


def titles(text):
    return [element.text for element in ElementTree.fromstring(_named(text)).iter(f"{SVG}title")]


def _named(text):
    return text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


# --- both drawings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
@pytest.mark.parametrize("width", [svg.WIDE, svg.HALF, svg.NARROW])
def test_still_pictures_are_whole_themed_and_harmless(figure, width):
    text = svg.draw(figure, width)
    root = ElementTree.fromstring(_named(text))
    assert root.get("viewBox").split()[2] == str(float(width)).removesuffix(".0")
    assert not list(root.iter(f"{SVG}script"))
    assert "#0a0" not in text  # no stand-in is left
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(LIGHT)
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert all(name.startswith(f"{figure.key}-{width}-") for name in identifiers)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(identifiers)
    assert text == svg.draw(figure, width)


@pytest.mark.parametrize(
    ("figure", "tips"),
    [
        (FIGURES[0], ["first", EVIL, "p", EVIL]),
        (FIGURES[1], ["q, 0: 0.100", f"{EVIL}, 0: 0.500", f"{EVIL}, 1: 0.900"]),
        (FIGURES[2], ["tip a", "tip b"]),
    ],
    ids=["all", "cells", "rows"],
)
def test_every_mark_says_what_it_is(figure, tips):
    assert sorted(titles(svg.draw(figure, svg.WIDE))) == sorted([figure.title, *tips])


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.key)
def test_what_can_be_zoomed_is_plain_json_with_the_same_values(figure):
    described = interactive.describe(figure)
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert "<script" not in json.dumps(described["data"])
    drawn = [trace for trace in described["data"] if trace.get("x") and trace.get("hoverinfo") != "skip"]
    layers = [layer for layer in figure.layers if not isinstance(layer, (Band, Rule))]
    assert len(drawn) == len(layers)
    assert set(re.findall(r"var\(--([\w-]+)\)", json.dumps(described))) <= set(LIGHT)


def test_one_label_for_each_layer_that_has_one():
    assert every_layer().labels() == [
        ("line", "ink", EVIL), ("band", "accent", "band"), ("dashed", "green", "rule"),
    ]  # fmt: skip


def test_a_missing_package_is_said_with_what_to_install(monkeypatch):
    import sys

    from grasp_lora.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*grasp-lora\[report\]"):
        svg.draw(every_layer(), svg.WIDE)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"plotly.*grasp-lora\[report\]"):
        interactive.plotly_script()


# --- what the figures hold ----------------------------------------------------------------------------------------


def layers(figure, kind):
    return [layer for layer in figure.layers if isinstance(layer, kind)]


def test_the_trajectory_is_the_history(record):
    (figure,) = trajectory.trajectories(record, "k")
    (points,) = layers(figure, Points)
    assert list(points.y) == [p for row in record.history for p in row["samples"]]
    mean, held = layers(figure, Line)
    assert list(mean.y) == [row["after"]["mean"] for row in record.history]
    assert held.y[-1] == pytest.approx(1 - record.history[-1]["density"])
    (rule,) = layers(figure, Rule)
    found = record.result("search")
    assert (rule.at, [rule.low, rule.high]) == (found["p_star"], found["interval"])
    best = max((row["rewards"][i], row["samples"][i]) for row in record.history for i in range(len(row["rewards"])))
    worst = min((row["rewards"][i], row["samples"][i]) for row in record.history for i in range(len(row["rewards"])))
    colours = dict(zip(points.y, points.colours, strict=True))
    assert colours[best[1]] == GAINS[-1]
    assert colours[worst[1]].startswith("worse")


@pytest.mark.parametrize(("reward", "colour"), [(0.0, "noise"), (0.1, "noise"), (-0.1, "noise"), (0.2, "better-1"),
                                                (-0.2, "worse-1"), (0.4, "better-2"), (-9.0, "worse-3")])  # fmt: skip
def test_shades_of_rewards(reward, colour):
    assert rewards.shade(reward, (0.1, 0.3, 0.5)) == colour


def test_shades_are_thirds_of_what_exceeds_the_noise():
    assert rewards.shade_bounds(np.array([0.05, 1.0, -2.0, 3.0, -4.0]), 0.1) == pytest.approx((0.1, 2.0, 3.0))
    assert rewards.shade_bounds(np.array([0.05]), 0.1) == (0.1, 0.1, 0.1)


def test_evaluations_fit_the_curve_but_for_their_rounds_level(record):
    (figure,) = curves.settled(record, "k")
    (points,) = layers(figure, Points)
    (line,) = layers(figure, Line)
    estimate = record.result("search")["estimate"]
    assert list(line.y) == estimate["mean"]
    assert len(points.x) == sum(1 + len(row["samples"]) for row in record.history)
    away = np.abs(np.interp(points.x, line.x, line.y) - points.y)
    assert np.median(away) < 0.02  # the synthetic noise is 0.01 / sqrt(8)
    assert figure.y_range[0] < min(line.y) <= max(line.y) < figure.y_range[1]


# --- several coordinates ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A run that learned ratio and strength together."""
    return read_run(write_run(tmp_path_factory.mktemp("plane") / "run", policy="ratio_strength"))


def test_every_coordinate_has_its_trajectory_and_all_share_a_map(plane, record):
    figures = trajectory.trajectories(plane, "k")
    assert [figure.key for figure in figures] == ["k-trajectory-1", "k-trajectory-2", "k-plane"]
    points = [layers(figure, Points)[0] for figure in figures]
    tried = [point for row in plane.history for point in row["points"]]
    assert [list(points[0].y), list(points[1].y)] == [list(c) for c in zip(*tried, strict=True)]
    assert list(zip(points[2].x, points[2].y, strict=True)) == [tuple(point) for point in tried]
    ratio, strength = layers(figures[2], Rule)
    assert [ratio.at, strength.at] == plane.result("search")["best"]
    assert [figure.key for figure in trajectory.trajectories(record, "k")] == ["k-trajectory-1"]


def test_a_coordinate_starts_where_nothing_is_pruned_at_full_strength(plane):
    stood = coordinates.committed(plane.history)
    assert stood[0] == [0.0, 1.0]
    assert stood[-1] == plane.history[-1]["applied"]
    assert [one.name for one in coordinates.learned(plane)] == ["ratio", "strength"]
    assert abs(coordinates.learned(plane)[1].value - 0.7) < 0.1
    assert coordinates.axis_label("weight:ar") == "weight of ar"


def test_each_curve_has_the_evaluations_near_the_learned_point_only(plane):
    ratio, strength = curves.settled(plane, "k")
    estimate = plane.result("search")["estimate"]
    assert list(layers(strength, Line)[0].y) == estimate["further"][0]["mean"]
    best = plane.result("search")["best"][1]
    near = [row["points"][i][0] for row in plane.history for i in range(len(row["points"]))
            if abs(row["points"][i][1] - best) <= 0.1 * (1.2 - 0.1)]  # fmt: skip
    assert set(near) <= set(layers(ratio, Points)[0].x)
    assert len(layers(ratio, Points)[0].x) < sum(1 + len(row["points"]) for row in plane.history)


# --- masks, losses, scores ----------------------------------------------------------------------------------------


def test_flips_are_those_of_commits(record):
    (bars,) = layers(trajectory.flips(record, "k"), Bars)
    commits = [row for row in record.history if row["mask_ratio"] is not None]
    assert list(bars.heights) == [row["flipped"] for row in commits]
    assert len(commits) > 1


def test_losses_of_every_stage_with_a_log(record):
    figures = losses.losses(record, "k")
    assert [figure.title for figure in figures] == ["Source adapter", "Search", "Final run"]
    assert "Epoch 2 of 3 had the best dev loss" in figures[0].caption
    (dev,) = layers(figures[0], Points)
    assert (list(dev.x), list(dev.y)) == ([20, 40, 60], pytest.approx([1.2, 1.4, 1.6]))
    assert [key[2] for key in figures[1].labels()] == ["training, mean of 2 steps", "micro-dev, committed mask", "dev"]


def test_masks_are_drawn_where_they_differ_and_said_where_not(record, tmp_path):
    assert [figure.key for figure in masks.densities(record, "k")] == ["k-density-summed"]
    assert masks.uniform(record) == (
        "Each of the 24 pruned tensors keeps 40.0% of its entries because prune.scope is per_tensor."
    )
    varied = read_run(write_run(tmp_path / "run", varied=True))
    assert masks.uniform(varied) is None
    kept, _ = masks.densities(varied, "k")
    (cells,) = layers(kept, Cells)
    assert list(cells.columns) == ["0", "1", "2"]
    assert list(cells.rows) == [f"{m}_proj {p}{a}" for m in "qv" for p in "AB" for a in (1, 2)]
    assert cells.values[0] == pytest.approx([0.4, 0.45, 0.5])


def test_layers_are_sorted_as_numbers_and_gaps_stay_gaps():
    shares = {"h.10.attn.c_proj.0.A": 0.3, "h.2.attn.c_proj.0.A": 0.1, "h.2.mlp.c_proj.0.A": 0.2, "head.0.A": 0.5}
    columns, rows, table = masks.by_layer(shares)
    assert columns == ["–", "2", "10"]
    assert rows == ["attn.c_proj A1", "head A1", "mlp.c_proj A1"]
    assert table == [[None, 0.1, 0.3], [0.5, None, None], [None, 0.2, None]]
    assert masks.by_layer(densities())[2][0] == [0.4, 0.4, 0.4]


def test_a_loss_far_away_is_named_instead_of_drawn(tmp_path):
    levels = {"zero_shot": 9.0, "target": 0.2, "merged": 0.1, "grasp": 0.0}
    record = read_run(write_run(tmp_path / "run", levels))
    figure = scores.forest(record, "loss", "k")
    (rows,) = layers(figure, Intervals)
    assert list(rows.labels) == ["target adapter only", "merged, not pruned", "GRASP"]
    assert "zero shot (10." in figure.caption
    assert rows.colours[-1] == "accent"


# --- colours ------------------------------------------------------------------------------------------------------


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#ffffff", "#777777") == pytest.approx(4.48, abs=0.005)
    assert contrast("#123456", "#123456") == 1.0


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_have_contrast_enough(theme):
    assert LIGHT.keys() == DARK.keys()
    for text, grounds in TEXT_ON.items():
        for ground in grounds:
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for mark in MARKS:
        assert contrast(theme[mark], theme["surface"]) >= 3.0, mark


def test_rounds_that_train_nothing_lie_side_by_side_by_their_number():
    history = [{"round": number, "step": 0} for number in range(4)]
    assert trajectory.steps(history) == [0.0, 1.0, 2.0, 3.0]
    assert trajectory.steps_label(history) == "round"
    trained = [{"round": number, "step": 10 * number} for number in range(4)]
    assert trajectory.steps(trained) == [0.0, 10.0, 20.0, 30.0]
    assert trajectory.steps_label(trained) == "optimizer step"
