"""`compare`: every method on the same cells, seeds, adapters and evaluation, with what each cost."""

from .compare import Comparison, compare, compare_config

__all__ = ["Comparison", "compare", "compare_config"]
