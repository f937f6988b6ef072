"""Problems, one partial differential equation a file, and what it takes to write another."""

from pinnlib.problems.allen_cahn import AllenCahn
from pinnlib.problems.base import Problem
from pinnlib.problems.burgers import Burgers
from pinnlib.problems.cavity import Cavity
from pinnlib.problems.heat import Heat
from pinnlib.problems.helmholtz import Helmholtz
from pinnlib.problems.klein_gordon import KleinGordon
from pinnlib.problems.lotka_volterra import LotkaVolterra
from pinnlib.problems.measurements import Measurements
from pinnlib.problems.oscillator import Oscillator
from pinnlib.problems.poisson import Poisson
from pinnlib.problems.sampling import faces, sizes, uniform
from pinnlib.problems.table import Table
from pinnlib.problems.wave import Wave

__all__ = [
    "AllenCahn",
    "Burgers",
    "Cavity",
    "Heat",
    "Helmholtz",
    "KleinGordon",
    "LotkaVolterra",
    "Measurements",
    "Oscillator",
    "Poisson",
    "Problem",
    "Table",
    "Wave",
    "faces",
    "sizes",
    "uniform",
]
