"""Adaptive loss weights (gradient balancing) for physics-informed neural networks."""

from pinnlib.adaptive import AdaptivePINN
from pinnlib.gradients import gradient_matrix
from pinnlib.step import Step, balanced_backward
from pinnlib.weighting import GradientBalancer

__version__ = "0.1.0"
__all__ = ["AdaptivePINN", "GradientBalancer", "Step", "balanced_backward", "gradient_matrix"]
