"""Learning the prune ratio: policy, estimate of p_star, diagnostics, simulation and replay; knows no model."""

from .answer import Estimate
from .controller import Controller, Decision, Proposal
from .diagnostics import Diagnostic
from .policy import PolicyState
from .presets import PRESETS, Preset, resolve

__all__ = [
    "PRESETS",
    "Controller",
    "Decision",
    "Diagnostic",
    "Estimate",
    "PolicyState",
    "Preset",
    "Proposal",
    "resolve",
]
