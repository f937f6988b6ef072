"""Looks at a batch of loss terms: what each measures, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pinnlib.gradients import (
    alignment,
    check_finite,
    check_used,
    cosine,
    gradient_rows,
    l2_norm,
    mean_abs,
)
from pinnlib.parameters import used_columns, widths
from pinnlib.residuals import (
    Term,
    check_differentiable,
    check_finite_losses,
    check_terms,
    losses_of,
)
from pinnlib.slips import Slips

__all__: list[str] = []  # for diagnosis


class Look:
    """Measures batches, and keeps what is wrong with them."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = params
        self.terms: tuple[str, ...] = ()
        self._faults: dict[tuple[str, int], list[str]] = {}
        self._is_used = [False] * len(params)

    def __call__(self, terms_of: Callable[[], Mapping[str, Term]]) -> tuple[Tensor, ...]:
        """Losses, mean absolute values, norms ``(K,)``, cosines ``(K, K)`` and alignment."""
        with Slips() as slips:
            terms = terms_of()
        if not isinstance(terms, Mapping):
            kind = type(terms).__name__
            raise TypeError(f"terms_of returns a {kind}: return a loss for each term, by name")
        self.terms = self.terms or tuple(terms)
        check_terms(terms, self.terms)
        K, P = len(terms), sum(widths(self.params))
        G = torch.zeros(K, P, dtype=torch.float64, device="cpu")
        losses, sizes = torch.full((2, K), torch.nan, dtype=torch.float64, device="cpu")
        for k, term in enumerate(self.terms):
            for i, slip in enumerate(slips.of(terms[term]), start=1):
                self._faults.setdefault((term, i), []).append(f"{term!r} {slip}")
            try:
                loss = losses_of({term: terms[term]})
                check_differentiable(loss)
                losses[k] = loss[term].item()
                check_finite_losses(loss)
                row, used = gradient_rows([([loss[term]], None)], self.params, retain_graph=True)
                check_used(loss, used)
                check_finite(loss, row)
            except (TypeError, ValueError) as error:
                self._faults.setdefault((term, 0), []).append(str(error))
                continue
            G[k] = row[0].cpu()
            mask = used_columns(used, self.params)
            sizes[k] = mean_abs(G[k], None if mask is None else mask[0].cpu())
            self._is_used = [a or b for a, b in zip(self._is_used, used[0], strict=True)]
        is_measured = ~sizes.isnan()
        norms = l2_norm(G).where(is_measured, torch.nan)
        cosines = cosine(G).where(is_measured & is_measured[:, None], torch.nan)
        return losses, sizes, norms, cosines, alignment(G[is_measured])

    def findings(self, batches: int) -> Iterator[str]:
        """What is wrong, once each."""
        for messages in self._faults.values():
            few = f" (in {n} of {batches} batches)" if (n := len(messages)) < batches else ""
            yield messages[0] + few
        unused = [p for p, used in zip(self.params, self._is_used, strict=True) if not used]
        if unused and not self._faults:
            shapes = ", ".join(str(tuple(p.shape)) for p in unused)
            yield f"no term uses the parameters of shape {shapes}: nothing will train them"


@contextmanager
def unchanged(params: nn.Module | Iterable[Tensor], trained: Sequence[Tensor]) -> Iterator[None]:
    """With gradients on; buffers and the global random state are put back."""
    buffers = list(params.buffers()) if isinstance(params, nn.Module) else []
    before = [b.clone() for b in buffers]
    devices = {p.device.index for p in trained if p.device.type == "cuda"}
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        finally:
            for b, old in zip(buffers, before, strict=True):
                b.copy_(old)
