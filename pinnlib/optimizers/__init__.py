"""Second-order optimizers: for the last digits, after Adam."""

from pinnlib.optimizers.gauss_newton import GaussNewton
from pinnlib.optimizers.ssbroyden import SSBroyden

__all__ = ["GaussNewton", "SSBroyden"]
