"""What every setting may be: one model for each group, and for what a ``_target_`` takes its own signature."""

from bsq_lightning.cli.settings.check import check_values

__all__ = ["check_values"]
