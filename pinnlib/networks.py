"""The network: a tanh multilayer perceptron that knows the domain it lives on."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["MLP", "StackedMLP"]


class MLP(nn.Module):
    r"""Multilayer perceptron with tanh activations and inputs scaled to the domain.

    Each input is mapped linearly from its interval ``(low, high)`` to :math:`[-1, 1]`. Weights
    are drawn from the Xavier normal distribution, :math:`W_{ij} \sim \mathcal N(0,\
    2/(n_\text{in}+n_\text{out}))` (:cite:t:`glorot2010`), biases start at zero.

    Args:
        domain: one ``(low, high)`` pair an input variable, in the unit of that variable.
        width: neurons in each hidden layer.
        depth: number of hidden layers.
        outputs: number of outputs.
        generator: source of the initial weights; the global random state is not touched.

    Shape:
        ``(…, len(domain))`` to ``(…, outputs)``.

    Raises:
        ValueError: if an interval is empty, or a size is not positive.

    >>> generator = torch.Generator().manual_seed(0)
    >>> model = MLP([(0, 1), (0, 1)], width=50, depth=3, generator=generator)
    >>> model(torch.zeros(128, 2)).shape
    torch.Size([128, 1])
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        width: int = 50,
        depth: int = 3,
        outputs: int = 1,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if not domain:
            raise ValueError("domain is empty: pass one (low, high) pair for each input")
        for low, high in domain:
            if not low < high:
                raise ValueError(
                    f"domain has the empty interval ({low}, {high}): low < high is needed"
                )
        for name, size in {"width": width, "depth": depth, "outputs": outputs}.items():
            if size < 1:
                raise ValueError(f"{name} is {size}: use 1 or more")
        low, high = torch.tensor(domain, dtype=torch.get_default_dtype()).T
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        sizes = [len(domain), *[width] * depth, outputs]
        self.layers = nn.ModuleList()
        for n_in, n_out in pairwise(sizes):
            # skip_init: nn.Linear's own initialisation would draw from the global random state.
            layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)

    def normalize(self, x: Tensor) -> Tensor:
        r"""Map points of the domain linearly to :math:`[-1, 1]^d`.

        .. math:: x \mapsto 2\,\frac{x - x_\text{low}}{x_\text{high} - x_\text{low}} - 1

        Args:
            x: points, ``(…, d)``.

        Returns:
            ``(…, d)``, without a unit.
        """
        return 2 * (x - self.low) / (self.high - self.low) - 1

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        h = self.normalize(x)
        for layer in hidden:
            h = torch.tanh(layer(h))
        output: Tensor = last(h)
        return output


class StackedLinear(nn.Module):
    """M linear layers of one size as one: weights ``(M, out, in)``, biases ``(M, 1, out)``."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight.mT + self.bias


class StackedMLP(MLP):
    """M networks of one size as one, so that M training runs take one step together.

    Args:
        models: networks of the same domain and size; their parameters are copied.

    Shape:
        ``(M, N, d)``, a batch for each network, or ``(N, d)``, one for all, to ``(M, N, outputs)``.

    Raises:
        ValueError: if there is no network, or the sizes or domains differ.

    >>> generator = torch.Generator().manual_seed(0)
    >>> models = [MLP([(0, 1)], generator=generator) for _ in range(4)]
    >>> StackedMLP(models)(torch.zeros(128, 1)).shape
    torch.Size([4, 128, 1])
    """

    def __init__(self, models: Sequence[MLP]) -> None:
        nn.Module.__init__(self)
        shapes = {str([(p.shape, p.dtype) for p in model.parameters()]) for model in models}
        domains = {str(torch.stack([model.low, model.high]).tolist()) for model in models}
        if len(shapes) != 1 or len(domains) != 1:
            raise ValueError(
                f"models has {len(shapes)} different sizes and {len(domains)} domains: "
                "stack one network or more, all of one size and domain"
            )
        self.register_buffer("low", models[0].low.clone())
        self.register_buffer("high", models[0].high.clone())
        self.layers = nn.ModuleList(
            StackedLinear(layers) for layers in zip(*(m.layers for m in models), strict=True)
        )
