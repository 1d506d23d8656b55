"""Figures of a report: what they show (`spec` and one module per subject) and how they are drawn."""
