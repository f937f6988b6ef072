"""Adaptive loss weights (gradient balancing) for physics-informed neural networks."""

from pinnlib.balancing import GradientBalancer
from pinnlib.gradients import gradient_matrix
from pinnlib.training import AdaptivePINN, balanced_backward

__version__ = "0.1.0"
__all__ = ["AdaptivePINN", "GradientBalancer", "balanced_backward", "gradient_matrix"]
