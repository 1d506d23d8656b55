"""What a run did and whether to trust it, from its folder alone: a page, its Markdown twin, and a live view."""

from .write import Report, write_report

__all__ = ["Report", "write_report"]
