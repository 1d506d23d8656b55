"""`compare`: every method on the same cells, seeds, adapters and evaluation, with what each cost."""

from .compare import Asked, Comparison, compare, compare_config

__all__ = ["Asked", "Comparison", "compare", "compare_config"]
