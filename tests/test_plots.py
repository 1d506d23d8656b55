"""Block plots: every column stands for its value."""

from __future__ import annotations

from grasp_lora.cli.plots import COLUMNS, bars, histogram, ruler


def test_bars_fill_columns_in_proportion():
    assert bars([0, 1, 2, 4, 8]) == [" ▁▂▄█"]
    assert bars([8, 4, 0, 2], height=2) == ["█", "██ ▄"]
    assert bars([0.0, 1e-9, 1.0]) == [" ▁█"]  # what is there is seen
    assert bars([0, 0]) == [""]
    assert bars([]) == [""]


def test_histogram_counts_every_value():
    counts = histogram([0.0, 0.5, 0.5, 1.0, 1.2])
    assert len(counts) == COLUMNS
    assert (counts[0], counts[COLUMNS // 2], counts[-1], sum(counts)) == (1, 2, 2, 5)


def test_ruler_puts_labels_at_their_places():
    line = ruler(["0", "0.5", "1"])
    assert (line[0], line[-1], len(line)) == ("0", "1", COLUMNS)
    assert abs(line.index("0.5") + 1 - COLUMNS // 2) <= 1
