"""The long experiments behind the notebooks' tables, and their results."""

from qhelpers.experiments.tables import load_table, select

__all__ = ["load_table", "select"]
