"""What a PINN that does not train shows: losses, gradients, who is outvoted, angles, slips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pinnlib.findings import Table, as_html, as_text, in_words, middle, number
from pinnlib.inspecting import Look, unchanged
from pinnlib.parameters import trainable
from pinnlib.residuals import Term
from pinnlib.weighting import Balancer

__all__ = ["Diagnosis", "diagnose"]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What B batches show of K terms: printed as text, shown by a notebook as tables.

    Tensors are in double precision on the CPU. What cannot be measured is nan, such as the
    gradient of a loss that is no scalar.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> found = diagnose(lambda: {"data": theta.sum(), "pde": -(theta**3).sum()}, [theta])
    >>> found.terms, found.losses[0].tolist(), found.outvoted.tolist()
    (('data', 'pde'), [3.0, -9.0], [1.0, 0.0])
    """

    terms: tuple[str, ...]
    """Names of the terms."""
    weights: Tensor
    """What each loss is multiplied with in the sum, ``(K,)``."""
    losses: Tensor
    """The unweighted losses, ``(B, K)``."""
    mean_abs: Tensor
    """Mean of absolute values of each unweighted gradient, ``(B, K)``."""
    norms: Tensor
    """Euclidean norm of each unweighted gradient, ``(B, K)``."""
    cosines: Tensor
    """Cosines of the angles between the gradients, ``(B, K, K)``."""
    alignment: Tensor
    """How far all of them point the same way, as :func:`pinnlib.gradients.alignment`, ``(B,)``."""
    outvoted: Tensor
    """In what share of the batches a small step along the sum makes a term worse, ``(K,)``."""
    findings: tuple[str, ...]
    """What this means, in words."""

    @property
    def ratios(self) -> Tensor:
        """Weighted norm of each gradient over the least of them, medians of batches, ``(K,)``."""
        sizes = self.weights * middle(self.norms)
        heard = sizes[sizes > 0]
        return sizes / heard.min() if len(heard) else sizes

    def _tables(self) -> list[Table]:
        """The table of terms, and that of their angles."""
        columns = {
            "loss": middle(self.losses),
            "mean |∇L|": middle(self.mean_abs),
            "‖∇L‖": middle(self.norms),
            "weight": self.weights,
            "ratio": self.ratios,
        }
        if (self.weights == 1).all():
            del columns["weight"]
        texts = {head: [number(x) for x in values.tolist()] for head, values in columns.items()}
        texts["outvoted"] = [number(share, ".0%") for share in self.outvoted.tolist()]
        rows = list(zip(self.terms, *texts.values(), strict=True))
        angles = [[number(c, "+.2f") for c in row] for row in middle(self.cosines).tolist()]
        pairs = [[term, *row] for term, row in zip(self.terms, angles, strict=True)]
        together = f"alignment {number(middle(self.alignment).item(), '+.2f')}"
        of = f"medians of {n} batches" if (n := len(self.losses)) > 1 else "one batch"
        return [
            Table(f"Terms, {of}", ["term", *texts], rows),
            Table(f"Cosines of the gradients ({together})", ["term", *self.terms], pairs),
        ]

    def __str__(self) -> str:
        return as_text(self._tables(), self.findings)

    def _repr_html_(self) -> str:
        return as_html(self._tables(), self.findings)


def diagnose(
    terms_of: Callable[[], Mapping[str, Term]],
    params: nn.Module | Iterable[Tensor],
    *,
    weights: Mapping[str, float] | None = None,
    batches: int = 10,
) -> Diagnosis:
    r"""Find out why a PINN does not train, as far as losses and gradients can tell.

    The gradients :math:`G_k` of the unweighted losses are measured on a few batches. A term is
    outvoted where a small step along the weighted sum makes its loss larger, to first order:

    .. math:: G_k \cdot \sum_j \lambda_j G_j < 0 .

    Also found, term by term: a loss or residual of a wrong shape, without a graph, that uses none
    of the parameters, or that is not finite; ``(N, 1)`` less ``(N,)``; a derivative taken without
    ``create_graph=True``. Parameters, buffers, ``.grad`` and the global random state stay as they
    are. Generators of your own move on. An error that ``terms_of`` raises is passed on.

    Args:
        terms_of: draws a fresh batch and returns each term of one network, by name: its unweighted
            scalar loss, or the list of its residuals ``(N, 1)``, of which more can be told.
        params: what the optimizer trains, or the module; frozen parameters are left out.
        weights: those of your sum, such as ``balancer.by_term()``; all 1 if None.
        batches: how many are drawn. Each costs a backward pass a term.

    Returns:
        The measurements, and what they mean.

    Raises:
        TypeError: if ``terms_of`` is no function, or returns no dictionary.
        ValueError: if there is no term or no trainable parameter, if the names change or are not
            those of the weights, or if ``batches`` is below 1.

    >>> model = torch.nn.Linear(1, 1)
    >>> def losses():
    ...     x = torch.rand(64, 1)
    ...     return {"data": (model(x) - 1).square().mean(), "pde": model(x)}
    >>> print(diagnose(losses, model).findings[0])
    loss 'pde' has shape (64, 1): reduce it to a scalar
    """
    if not callable(terms_of):
        raise TypeError(
            f"terms_of is a {type(terms_of).__name__}: pass a function that draws a batch and "
            "returns the losses, so that several can be drawn"
        )
    if batches < 1:
        raise ValueError(f"batches is {batches}: draw 1 or more")
    look = Look(trainable(params))
    with unchanged(params, look.params):
        seen = [look(terms_of) for _ in range(batches)]
    terms = look.terms
    losses, sizes, norms, cosines, aligned = (
        torch.stack(parts) for parts in zip(*seen, strict=True)
    )
    scale = Balancer(terms, weights or dict.fromkeys(terms, 1.0)).target(losses.T)  # of any matrix
    # What has no gradient has no say. This form needs no squares, which could overflow.
    pulls = ((scale * norms).nan_to_num(0)[:, None] @ cosines.nan_to_num(0)).squeeze(1)
    outvoted = (pulls < 0).double().where(norms.isfinite(), torch.nan).nanmean(dim=0)
    words = in_words(terms, scale, losses, norms, cosines, outvoted)
    findings = (*look.findings(batches), *words)
    return Diagnosis(terms, scale, losses, sizes, norms, cosines, aligned, outvoted, findings)
