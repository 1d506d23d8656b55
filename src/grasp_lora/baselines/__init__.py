"""Every rival behind the interface of GRASP itself. Importing the package registers all methods, in table order."""

from . import simple  # noqa: I001 - the order of imports is the order of tables
from . import peft_merges, lorahub, grid, optuna_search, probes, grasp
from .method import (
    METHODS,
    FinalRun,
    Judge,
    Method,
    MethodContext,
    MethodResult,
    SearchRun,
    Workbench,
    find_method,
    register,
)
from .recommended import SEQUENTIAL
from .simple import ALONE, alone

__all__ = [
    "ALONE", "METHODS", "SEQUENTIAL", "FinalRun", "Judge", "Method", "MethodContext", "MethodResult", "SearchRun",
    "Workbench", "alone", "find_method", "grasp", "grid", "lorahub", "optuna_search", "peft_merges", "probes",
    "register", "simple",
]  # fmt: skip
