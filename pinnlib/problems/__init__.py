"""Problems, one partial differential equation a file, and what it takes to write another."""

from pinnlib.problems.base import Problem
from pinnlib.problems.helmholtz import Helmholtz
from pinnlib.problems.klein_gordon import KleinGordon
from pinnlib.problems.sampling import faces, sizes, uniform
from pinnlib.problems.table import Table

__all__ = ["Helmholtz", "KleinGordon", "Problem", "Table", "faces", "sizes", "uniform"]
