"""Taylor mode: tensors that carry their derivatives by the inputs through a model."""

import pinnlib.jets.rules  # noqa: F401  (enters the rules)
from pinnlib.jets.jet import Jet

__all__ = ["Jet"]
