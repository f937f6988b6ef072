"""Weights for single points, before residuals become losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf

import torch
from torch import Tensor, nn

from pinnlib.residuals import Term, check_residual
from pinnlib.weighting.rule import check_number, is_recording


class ResidualAttention(nn.Module):
    r"""Residual-based attention: points whose residual stays large count more.

    .. math:: w_i &\leftarrow \gamma\, w_i + \eta\, \frac{|r_i|}{\max_j |r_j|}, \\
       \mathcal L &= \frac1N \sum_i (w_i r_i)^2,

    from :math:`w_i = 0` on, by :cite:t:`anagnostopoulos2024`, so no weight exceeds
    :math:`\eta / (1-\gamma)`. The points must stay the same at every step. The losses of the terms
    are then those of weighted residuals, and any rule weighs them::

        attention = ResidualAttention({"pde": terms_of(batch)["pde"]})
        step = Step(lambda batch: attention(terms_of(batch)), model, balancer)

    A call updates the weights, once a step. After ``attention.eval()`` they are held, for an
    optimizer that evaluates a loss several times, or to be read only. With ``Recorded``, hold them
    and call :meth:`update` between the steps. They are buffers, ``attention.get_buffer("pde[0]")``,
    and part of ``attention.state_dict()``. Each network of a stack has its own; each process, too.

    Args:
        terms: residuals of the terms that get weights, ``(…, N, 1)`` each, by name.
        gamma: γ, what is kept, from 0 to below 1.
        eta: η, what is added, above 0.

    Raises:
        TypeError: if a term is no list of residuals.
        ValueError: if a residual has another shape, or a number is out of its range.

    >>> r = torch.tensor([[1.0], [-4.0]])
    >>> attention = ResidualAttention({"pde": [r]}, gamma=0.5, eta=0.5)
    >>> attention({"data": [r], "pde": [r]})
    {'data': [tensor([[ 1.],
            [-4.]])], 'pde': [tensor([[ 0.1250],
            [-2.0000]])]}
    """

    def __init__(
        self, terms: Mapping[str, Sequence[Tensor]], *, gamma: float = 0.999, eta: float = 0.001
    ) -> None:
        super().__init__()
        check_number("gamma", gamma, lambda x: 0 <= x < 1, "a number from 0 to below 1")
        check_number("eta", eta, lambda x: 0 < x < inf, "a finite number above 0")
        if not terms:
            raise ValueError("terms is empty: pass the residuals of each term that gets weights")
        self.gamma, self.eta = gamma, eta
        self._counts = {term: len(_residuals(terms, term)) for term in terms}
        for term, residuals in terms.items():
            if "." in term:
                raise ValueError(f"term {term!r} has a dot, which no buffer may have: rename it")
            for i, r in enumerate(residuals):
                check_residual(f"{term}[{i}]", r, getattr(r, "shape", ())[:-2])
                if not r.numel():
                    raise ValueError(f"residual '{term}[{i}]' has no point: sample 1 or more")
                self.register_buffer(f"{term}[{i}]", torch.zeros_like(r.detach()))

    def forward(self, terms: Mapping[str, Term]) -> dict[str, Term]:
        """The terms, with weighted residuals where there are weights, which are updated first.

        Args:
            terms: by name, the same residuals as before, and any other term.

        Raises:
            ValueError: if residuals are missing, or have another number of points than before.
        """
        if self.training:
            self.update(terms)
        weighted = dict(terms)
        for term, pairs in self._pairs(terms).items():
            # A copy, as the next update is in place, and a graph may still hold the weights.
            weighted[term] = [w.clone() * r for w, r in pairs]
        return weighted

    @torch.no_grad()
    def update(self, terms: Mapping[str, Term]) -> None:
        """Update the weights alone; they stay where a residual is not finite.

        Arguments and errors are those of a call.
        """
        if is_recording():
            raise ValueError(
                "attention changes its weights at each call, which Recorded cannot repeat: hold "
                "them by attention.eval(), and call attention.update(terms) between the steps"
            )
        for pairs in self._pairs(terms).values():
            for w, r in pairs:
                size = r.abs()
                largest = size.amax(dim=(-2, -1), keepdim=True)
                share = (size / largest).nan_to_num(nan=0.0)  # where all residuals are zero
                w.copy_(torch.where(largest < inf, self.gamma * w + self.eta * share, w))

    def _pairs(self, terms: Mapping[str, Term]) -> dict[str, Iterable[tuple[Tensor, Tensor]]]:
        """Weights and residuals by term, all checked."""
        pairs: dict[str, Iterable[tuple[Tensor, Tensor]]] = {}
        for term, count in self._counts.items():
            residuals = _residuals(terms, term)
            if len(residuals) != count:
                raise ValueError(
                    f"term {term!r} has {len(residuals)} residuals, and had {count}: pass the same "
                    "ones at every step"
                )
            weights = [self.get_buffer(f"{term}[{i}]") for i in range(count)]
            for i, (w, r) in enumerate(zip(weights, residuals, strict=True)):
                if r.shape != w.shape:
                    raise ValueError(
                        f"residual '{term}[{i}]' has shape {tuple(r.shape)}, and its weights have "
                        f"{tuple(w.shape)}, one for each point: keep the points of a training "
                        "fixed, and make a new ResidualAttention for others"
                    )
            pairs[term] = zip(weights, residuals, strict=True)
        return pairs


def _residuals(terms: Mapping[str, Term], term: str) -> Sequence[Tensor]:
    """The residuals of a term; an error if there are none."""
    if term not in terms:
        raise ValueError(f"term {term!r} is missing: pass its residuals, at every step")
    value = terms[term]
    if not (isinstance(value, list | tuple) and value):
        kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise TypeError(
            f"term {term!r} is {kind}: pass a list of residuals (N, 1), such as a problem's "
            "term_residuals; a loss has no points any more"
        )
    return value
