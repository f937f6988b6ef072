"""Second-order optimizers: for the last digits, after Adam, with weights held."""

from pinnlib.optimizers.ssbroyden import SSBroyden

__all__ = ["SSBroyden"]
