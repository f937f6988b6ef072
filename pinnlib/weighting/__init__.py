"""From what a step shows to the weights of its terms: rules, and the balancer that keeps them."""

from pinnlib.weighting.balancer import Balancer
from pinnlib.weighting.by_term import ByTerm
from pinnlib.weighting.constant import Constant
from pinnlib.weighting.directions import DCGD, ConFIG, Gramian
from pinnlib.weighting.follow import (
    Average,
    Follow,
    arithmetic_average,
    logarithmic_average,
)
from pinnlib.weighting.kernel import KernelTrace
from pinnlib.weighting.losses import ReLoBRaLo, SoftAdapt, Uncertainty
from pinnlib.weighting.pointwise import ResidualAttention
from pinnlib.weighting.published import GradientBalancer
from pinnlib.weighting.ratio import (
    LayerMax,
    LayerMeans,
    Ratio,
    Reference,
    Statistic,
    geometric_mean_of_terms,
    mean_of_terms,
)
from pinnlib.weighting.rule import Rule, Seen, State
from pinnlib.weighting.side_by_side import SideBySide

__all__ = [
    "DCGD",
    "Average",
    "Balancer",
    "ByTerm",
    "ConFIG",
    "Constant",
    "Follow",
    "GradientBalancer",
    "Gramian",
    "KernelTrace",
    "LayerMax",
    "LayerMeans",
    "Ratio",
    "ReLoBRaLo",
    "Reference",
    "ResidualAttention",
    "Rule",
    "Seen",
    "SideBySide",
    "SoftAdapt",
    "State",
    "Statistic",
    "Uncertainty",
    "arithmetic_average",
    "geometric_mean_of_terms",
    "logarithmic_average",
    "mean_of_terms",
]
