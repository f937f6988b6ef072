"""Networks that know the domain they live on: the perceptron, the gated one, Fourier features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

from pinnlib.stacked import Stacked

__all__ = ["MLP", "FourierFeatures", "GatedMLP", "OutputTransform", "Stacked"]


class _OnDomain(nn.Module):
    """A module whose inputs are scaled from their intervals to [-1, 1]."""

    low: Tensor
    high: Tensor

    def __init__(self, domain: Sequence[tuple[float, float]], device: torch.device) -> None:
        super().__init__()
        try:
            pairs = [(low, high) for low, high in domain]
            intervals = torch.tensor(pairs, dtype=torch.get_default_dtype(), device="cpu")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"domain is {domain!r}: pass one (low, high) pair of numbers for each input"
            ) from error
        if not pairs:
            raise ValueError("domain is empty: pass one (low, high) pair for each input")
        # Checked as rounded to the dtype: an interval that is empty there gives NaN.
        span = 2 * (intervals[:, 1] - intervals[:, 0])
        for i in (~((span > 0) & span.isfinite())).nonzero().flatten().tolist():
            raise ValueError(
                f"domain has the interval {pairs[i]}, as {intervals.dtype} "
                f"{tuple(intervals[i].tolist())}: finite low < high is needed; shift or scale the "
                "variable, or set the default dtype float64"
            )
        low, high = intervals.to(device).T.contiguous()
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def normalize(self, x: Tensor) -> Tensor:
        r"""Map points of the domain linearly to :math:`[-1, 1]^d`.

        .. math:: x \mapsto 2\,\frac{x - x_\text{low}}{x_\text{high} - x_\text{low}} - 1

        Args:
            x: points, ``(…, d)``.

        Returns:
            ``(…, d)``, without a unit.
        """
        return 2 * (x - self.low) / (self.high - self.low) - 1


class MLP(_OnDomain):
    r"""Multilayer perceptron with tanh activations and inputs scaled to the domain.

    Each input is mapped linearly from its interval ``(low, high)`` to :math:`[-1, 1]`. Weights
    are drawn from the Xavier normal distribution, :math:`W_{ij} \sim \mathcal N(0,\
    2/(n_\text{in}+n_\text{out}))` (:cite:t:`glorot2010`), biases start at zero.

    Args:
        domain: one ``(low, high)`` pair an input variable, in the unit of that variable.
        width: neurons in each hidden layer.
        depth: number of hidden layers.
        outputs: number of outputs.
        generator: source of the initial weights, and their device; the global random state is not
            touched.

    Shape:
        ``(…, len(domain))`` to ``(…, outputs)``.

    Raises:
        ValueError: if an interval is empty or infinite in the default dtype, or a size is not a
            positive whole number.

    >>> generator = torch.Generator().manual_seed(0)
    >>> model = MLP([(0, 1), (0, 1)], width=32, depth=2, generator=generator)
    >>> model(torch.zeros(128, 2)).shape
    torch.Size([128, 1])
    """

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        width: int = 32,
        depth: int = 2,
        outputs: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(domain, generator.device)
        _check_sizes(width=width, depth=depth, outputs=outputs)
        sizes = [len(domain), *[width] * depth, outputs]
        self.layers = nn.ModuleList(_linear(m, n, generator) for m, n in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        h = self.normalize(x)
        for layer in hidden:
            h = torch.tanh(layer(h))
        output: Tensor = last(h)
        return output


class GatedMLP(MLP):
    r"""Multilayer perceptron whose layers choose between two encodings of the input.

    With the input h₀ scaled to :math:`[-1, 1]^d` and its encodings U and V, each hidden layer is a
    gate Z (:cite:t:`wang2021`; the first gate reads h₀, as in the authors' code),

    .. math:: U &= \tanh(W_U h_0 + b_U), \\ V &= \tanh(W_V h_0 + b_V), \\
        Z_k &= \tanh(W_k h_{k-1} + b_k), \\ h_k &= (1 - Z_k) \odot U + Z_k \odot V .

    Args:
        domain: one ``(low, high)`` pair an input variable, in the unit of that variable.
        width: neurons in each hidden layer and encoder.
        depth: number of hidden layers.
        outputs: number of outputs.
        generator: source of the initial weights, and their device.

    Shape and errors are those of :class:`MLP`.

    >>> model = GatedMLP([(0, 1)], width=8, generator=torch.Generator().manual_seed(0))
    >>> sum(p.numel() for p in model.parameters()), model(torch.zeros(128, 1)).shape
    (129, torch.Size([128, 1]))
    """

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        width: int = 32,
        depth: int = 2,
        outputs: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(domain, width, depth, outputs, generator=generator)
        self.encoders = nn.ModuleList(_linear(len(domain), width, generator) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        *gates, last = self.layers
        h = self.normalize(x)
        u, v = (torch.tanh(encoder(h)) for encoder in self.encoders)
        for gate in gates:
            z = torch.tanh(gate(h))
            h = (1 - z) * u + z * v
        output: Tensor = last(h)
        return output


class FourierFeatures(_OnDomain):
    r"""Cosines and sines of random frequencies, so that a network learns fine detail sooner.

    .. math:: \gamma(x) &= [\cos(\hat x B), \sin(\hat x B)], \\
        B_{jk} &\sim \mathcal N(0, \text{scale}^2),

    with x scaled to :math:`[-1, 1]^d` as :math:`\hat x` (Tancik et al. 2020, arXiv:2006.10739; for
    PINNs Wang, Wang and Perdikaris 2021, arXiv:2012.10047). The frequencies are not trained.

    Args:
        domain: one ``(low, high)`` pair an input variable, in the unit of that variable.
        features: number of frequencies.
        scale: standard deviation of the frequencies, in radians per half of an interval.
        generator: source of the frequencies, and their device.

    Shape:
        ``(…, len(domain))`` to ``(…, 2 * features)``.

    Raises:
        ValueError: as for :class:`MLP`, and if ``scale`` is not positive and finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> features = FourierFeatures([(0, 1), (0, 1)], 16, scale=5.0, generator=generator)
    >>> model = nn.Sequential(features, MLP([(-1, 1)] * 32, generator=generator))
    >>> model(torch.zeros(128, 2)).shape
    torch.Size([128, 1])
    """

    frequencies: Tensor
    stacks = ("frequencies",)

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        features: int,
        scale: float,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__(domain, generator.device)
        _check_sizes(features=features)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}: use a positive number")
        size = (len(domain), features)
        B = torch.randn(size, generator=generator, device=generator.device, dtype=self.low.dtype)
        self.register_buffer("frequencies", scale * B)

    def forward(self, x: Tensor) -> Tensor:
        phases = self.normalize(x) @ self.frequencies
        return torch.cat([torch.cos(phases), torch.sin(phases)], dim=-1)


class OutputTransform(nn.Module):
    """A network with a formula behind it, such as one that meets a condition exactly.

    Args:
        model: the network.
        transform: maps points ``(…, N, d)`` and the network's output to ``(…, N, m)``; index
            columns as ``x[..., :1]``, so that it holds for a stack of networks, too.

    Shape:
        ``(…, d)`` to what ``transform`` returns.

    The value x at t = 0, whatever the network:

    >>> def initial(x, u):
    ...     return x[..., :1] + x[..., 1:] * u
    >>> network = MLP([(0, 1), (0, 1)], generator=torch.Generator().manual_seed(0))
    >>> OutputTransform(network, initial)(torch.tensor([[0.25, 0.0]])).item()
    0.25
    """

    def __init__(self, model: nn.Module, transform: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x, self.model(x))


def _linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    # skip_init: nn.Linear's own initialisation would draw from the global random state.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out, device=generator.device)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} is {size!r}: use a whole number, 1 or more")
