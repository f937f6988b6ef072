"""What was measured: points and values that stay the same throughout a training."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Measurements:
    r"""Values at given points, as a problem's ``sample`` returns them beside the points it draws.

    .. math:: y_i = u(x_i) + \sigma z_i, \qquad z_i \sim \mathcal N(0, 1).

    Args:
        points: ``(n, d)``.
        values: ``(n, m)``, what was measured, or the solution there.
        noise: σ, added to the values: 0 for values that were measured.
        seed: of the noise.

    Raises:
        ValueError: if there is no point, the sizes differ, or σ is not a number from 0 on.

    >>> x = torch.linspace(0, 1, 3)[:, None]
    >>> Measurements(x, x**2).on("cpu")["values"].flatten().tolist()
    [0.0, 0.25, 1.0]
    """

    def __init__(self, points: Tensor, values: Tensor, noise: float = 0.0, seed: int = 0) -> None:
        shapes = tuple(points.shape), tuple(values.shape)
        if points.ndim != 2 or values.ndim != 2 or len(points) != len(values) or not len(points):
            raise ValueError(
                f"points are {shapes[0]}, values {shapes[1]}: pass (n, d) and (n, m), n 1 or more"
            )
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise is {noise}: pass a standard deviation, 0 or more")
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(shapes[1], generator=generator, dtype=torch.float64)
        self.points = points.detach().to("cpu", torch.float64)
        self.values = values.detach().to("cpu", torch.float64) + noise * z

    def on(self, device: torch.device | str) -> dict[str, Tensor]:
        """Points ``observed`` and ``values``, in the default dtype on a device."""
        dtype = torch.get_default_dtype()
        return {
            "observed": self.points.to(device, dtype),
            "values": self.values.to(device, dtype),
        }
