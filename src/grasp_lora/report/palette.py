"""Colours of page and figures, by role, for light and dark. Text has at least 4.5:1 on what it stands on, marks 3:1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LIGHT: Mapping[str, str] = {
    "page": "#f6f7f9", "surface": "#ffffff", "ink": "#1b1f24", "muted": "#57606a", "line": "#d5dae0", "soft": "#eef1f4",
    "shade": "#c3c9d0",
    "accent": "#0b5cad", "orange": "#ad4f09", "green": "#17713a", "red": "#b42318", "purple": "#7135c9",
    "teal": "#0c6b75", "pink": "#b81d63", "grey": "#6a737d", "mark": "#ffe7b8", "mark-ink": "#4a3200",
    "worse-3": "#7c2d12", "worse-2": "#b9500f", "worse-1": "#c9742f", "noise": "#868e97",
    "better-1": "#4f93d6", "better-2": "#2470bd", "better-3": "#0b3f78",
    "heat-0": "#eef5fc", "heat-1": "#d3e4f5", "heat-2": "#adcdec", "heat-3": "#85b3e0", "heat-4": "#3a78b8",
    "heat-5": "#215f9f", "heat-6": "#0f4680", "heat-7": "#072e5a",
    "heat-low-ink": "#10243a", "heat-high-ink": "#ffffff",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#0d1117", "surface": "#161b22", "ink": "#e6edf3", "muted": "#9aa4af", "line": "#343b44", "soft": "#21272f",
    "shade": "#4a535e",
    "accent": "#6cb2ff", "orange": "#f0935a", "green": "#4fc168", "red": "#ff8279", "purple": "#c29bff",
    "teal": "#45c7d3", "pink": "#f985b5", "grey": "#98a1ab", "mark": "#5c4510", "mark-ink": "#ffe9bd",
    "worse-3": "#ffb38a", "worse-2": "#f08a4b", "worse-1": "#c9712f", "noise": "#7d8691",
    "better-1": "#3f86cb", "better-2": "#6cb2ff", "better-3": "#b5d9ff",
    "heat-0": "#11263d", "heat-1": "#173654", "heat-2": "#1d4a75", "heat-3": "#245d92", "heat-4": "#6aaae6",
    "heat-5": "#8fc2f2", "heat-6": "#b6d9fa", "heat-7": "#dceeff",
    "heat-low-ink": "#ffffff", "heat-high-ink": "#0b1a2b",
}  # fmt: skip
SERIES = ("accent", "orange", "green", "purple", "teal", "pink", "red", "grey")
"""Colours of runs that are drawn together."""
GAINS = ("worse-3", "worse-2", "worse-1", "noise", "better-1", "better-2", "better-3")
HEAT = tuple(f"heat-{step}" for step in range(8))
TEXT_ON: Mapping[str, Sequence[str]] = {
    "ink": ("page", "surface", "soft"),
    "muted": ("page", "surface", "soft"),
    "accent": ("page", "surface", "soft"),
    "green": ("page", "surface"),
    "orange": ("page", "surface"),
    "red": ("page", "surface"),
    "mark-ink": ("mark",),
    "heat-low-ink": HEAT[:4],
    "heat-high-ink": HEAT[4:],
}
"""Which colours text is written in, and on what."""
MARKS = (*SERIES, *GAINS, "ink", "muted")
"""Colours of lines and points; all stand on `surface`."""


def variables(colours: Mapping[str, str]) -> str:
    """Return the colours as declarations of CSS variables."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def series(index: int) -> str:
    """Return the colour of the n-th run; they repeat after the last."""
    return SERIES[index % len(SERIES)]


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two `#rrggbb` colours, 1 to 21 (WCAG 2.2, relative luminance)."""
    bright, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
