"""Problems with an exact solution, one partial differential equation a file."""

from pinnlib.problems.base import Problem
from pinnlib.problems.helmholtz import Helmholtz
from pinnlib.problems.klein_gordon import KleinGordon

__all__ = ["Helmholtz", "KleinGordon", "Problem"]
