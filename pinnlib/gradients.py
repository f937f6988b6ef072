"""The gradient matrix of a loss with several terms, and statistics of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pinnlib.parameters import Used, check_width, layers, trainable
from pinnlib.residuals import NotFiniteError, check_differentiable, check_finite_losses

# In the order of the API page. The rest is for the modules below this one.
__all__ = ["gradient_matrix", "mean_abs", "max_abs", "l2_norm", "cosine", "alignment", "layer_view"]  # noqa: RUF022


def gradient_matrix(losses: Mapping[str, Tensor], params: nn.Module | Iterable[Tensor]) -> Tensor:
    r"""Gradients of all loss terms, one row a term: the matrix that all balancing starts from.

    .. math:: G = \begin{pmatrix} \nabla_\theta \mathcal L_1 \\ \vdots \\ \nabla_\theta \mathcal L_K
       \end{pmatrix} \in \mathbb R^{K \times P}

    One backward pass a term. The graph that the terms share is kept until the last of them is
    done, and freed then. No ``.grad`` is written, and the result is detached. A parameter that a
    term does not use has zeros in that term's row. Hooks on a parameter act on each row.

    Args:
        losses: scalar loss of each term, by name, unweighted.
        params: the parameters θ, or their module; frozen ones (``requires_grad`` off) are left
            out, and one that is listed twice counts once.

    Returns:
        ``(K, P)``, rows in the order of ``losses``, columns in the order of ``params``, each
        parameter flattened row by row.

    Raises:
        TypeError: if a loss or a parameter is not a tensor.
        ValueError: if there is no term or no trainable parameter, if a loss is not a finite
            scalar, has no graph, or uses none of the parameters, or if a gradient is not finite.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient_matrix({"data": theta.sum(), "pde": (theta**2).sum()}, [theta])
    tensor([[1., 1.],
            [2., 4.]])
    """
    params = trainable(params)
    check_differentiable(losses)
    G, used = gradient_rows([([loss], None) for loss in losses.values()], params)
    check_used(losses, used)
    check_finite_losses(losses)
    check_finite(losses, G)
    return G


Row = tuple[Sequence[Tensor], Sequence[Tensor] | None]
"""Outputs that are differentiated together, and what each is multiplied with (ones if None)."""


def gradient_rows(
    rows: Sequence[Row],
    params: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    stack: tuple[int, ...] = (),
) -> tuple[Tensor, list[list[bool]]]:
    """One backward pass a row: the matrix ``(K, P)``, and which of the parameters each row uses.

    The unchecked part of :func:`gradient_matrix`: it accepts a row that uses none of the
    parameters, and gradients that are not finite. ``retain_graph`` keeps the graph of the last
    row, too. For a stack of M networks, ``stack`` is ``(M,)``, outputs and parameters start with
    M, and the matrix is ``(M, K, P)``.
    """
    gradients = []
    for k, (outputs, seeds) in enumerate(rows, start=1):
        gradients.append(
            torch.autograd.grad(
                outputs,
                params,
                [torch.ones_like(y) for y in outputs] if seeds is None else seeds,
                retain_graph=retain_graph or k < len(rows),
                allow_unused=True,
            )
        )
    used = [[g is not None for g in row] for row in gradients]
    entries = []
    for row in gradients:
        for g, p in zip(row, params, strict=True):
            if g is not None and g.layout != torch.strided:
                raise ValueError(
                    f"a parameter {tuple(p.shape)} has a sparse gradient: build its layer with "
                    "sparse=False"
                )
            entries.append((torch.zeros_like(p) if g is None else g).reshape(*stack, -1))
    # One copy for all rows, and none of the graph: autograd gives tensors of their own.
    return torch.cat(entries, dim=-1).reshape(*stack, len(rows), -1), used


def check_used(losses: Iterable[str], used: Used) -> None:
    """Raise a ValueError that names the term if it uses none of the parameters."""
    for term, row in zip(losses, used, strict=True):
        if not any(row):
            raise ValueError(
                f"loss {term!r} uses none of the parameters: compute it from the model's output "
                "(and checkpoint layers with use_reentrant=False)"
            )


def is_finite(x: Tensor) -> Tensor:
    """Whether all entries of the last axis are finite, ``(…, n)`` to ``(…)``, without the host."""
    # Four times faster than isfinite(x).all(-1): x - x is zero, or undefined.
    return (x - x).sum(dim=-1) == 0


def check_finite(terms: Iterable[str], G: Tensor, step: int | None = None) -> None:
    """Raise a ValueError that names the first term with an infinite or undefined gradient."""
    if (infinite := ~is_finite(G.detach())).any():
        k = int(infinite.nonzero()[:, -1].min())
        row, at = G.detach()[..., k, :], "" if step is None else f" at step {step}"
        bad = row[~row.isfinite()]
        raise NotFiniteError(
            f"gradient of loss {list(terms)[k]!r}{at} has {bad.numel()} of {row.numel()} entries "
            f"that are not finite, such as {bad[0].item()}: "
            "lower the learning rate or check the derivatives"
        )


def mean_abs(G: Tensor, used: Tensor | None = None) -> Tensor:
    r"""Mean of absolute values over the entries that the row uses; ``(…, P)`` to ``(…)``.

    .. math:: \frac1{|U_k|} \sum_{i \in U_k} |G_{ki}|

    Args:
        G: rows ``(…, P)``.
        used: which entries each row uses, ``(…, P)``, the others being zero; all by default.

    >>> mean_abs(torch.tensor([[3.0, -4.0]]))
    tensor([3.5000])
    >>> mean_abs(torch.tensor([3.0, 0.0]), used=torch.tensor([True, False]))
    tensor(3.)
    """
    # Added up in double precision, where the sum does not overflow, if the device has it.
    wide = G.dtype if G.device.type == "mps" else torch.float64
    mean = G.abs().mean(dim=-1, dtype=wide)
    if used is not None:
        mean = mean * G.shape[-1] / used.sum(dim=-1).clamp(min=1)
    return mean.to(G.dtype)


def max_abs(G: Tensor, used: Tensor | None = None) -> Tensor:
    r"""Largest absolute value, :math:`\max_i |G_{ki}|`; ``(…, P)`` to ``(…)``.

    Unused entries are zero, so ``used`` makes no difference.

    >>> max_abs(torch.tensor([[3.0, -4.0]]))
    tensor([4.])
    """
    return G.abs().amax(dim=-1)


def l2_norm(G: Tensor, used: Tensor | None = None) -> Tensor:
    r"""Euclidean norm, :math:`\sqrt{\sum_i G_{ki}^2}`; ``(…, P)`` to ``(…)``.

    Unused entries are zero, so ``used`` makes no difference.

    >>> l2_norm(torch.tensor([[3.0, -4.0]]))
    tensor([5.])
    """
    # Scaled by the largest entry, so that squares neither overflow nor vanish.
    scale = max_abs(G).clamp(min=torch.finfo(G.dtype).tiny)
    norm: Tensor = torch.linalg.vector_norm(G / scale[..., None], dim=-1) * scale
    return norm


def cosine(G: Tensor) -> Tensor:
    r"""Cosines of the angles between rows: below 0 where two terms are in conflict.

    .. math:: c_{jk} = \frac{G_j \cdot G_k}{\lVert G_j\rVert_2\,\lVert G_k\rVert_2}

    Weights :math:`\lambda_k > 0` rescale rows, which leaves every cosine as it is. A row of zeros
    points nowhere: its cosine with every other row is 0. The diagonal is 1, also for such a row.

    Args:
        G: gradient matrix ``(…, K, P)``.

    Returns:
        ``(…, K, K)``, symmetric, with entries between -1 and 1, whatever the sizes of the rows.

    >>> cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-4.0, 0.0]]))
    tensor([[ 1.,  1.,  0., -1.],
            [ 1.,  1.,  0., -1.],
            [ 0.,  0.,  1.,  0.],
            [-1., -1.,  0.,  1.]])
    """
    # Scaled by the largest entry first, as in l2_norm.
    scaled = G / max_abs(G).clamp(min=torch.finfo(G.dtype).tiny)[..., None]
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    unit = scaled / norm.where(norm > 0, 1)
    cosines: Tensor = (unit @ unit.mT).clamp(-1, 1)
    return cosines.masked_fill(torch.eye(G.shape[-2], dtype=torch.bool, device=G.device), 1)


def alignment(G: Tensor) -> Tensor:
    r"""How far all rows point the same way: 1 if they do, :math:`\tfrac2K - 1` at right angles.

    .. math:: a &= 2\, \Big\lVert \frac1K \sum_k \frac{G_k}{\lVert G_k\rVert_2} \Big\rVert_2^2 - 1
       \\ &= \frac2{K^2} \sum_{j,k} c_{jk} - 1

    The alignment score of :cite:t:`wang2025`, with the cosines of :func:`cosine`: that of two rows
    is their cosine, and -1 is the least. A row of zeros stands at right angles to the others.

    Args:
        G: gradient matrix ``(…, K, P)``; the result is ``(…)``.

    >>> alignment(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
    tensor(-1.)
    """
    return 2 * cosine(G).mean(dim=(-2, -1)) - 1


def layer_view(G: Tensor, named_params: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Columns of the gradient matrix that belong to each layer, as views, without a copy.

    Parameters whose names differ only behind the last dot (``layers.0.weight`` and
    ``layers.0.bias``) form a layer; they must stand side by side, as PyTorch yields them.

    Args:
        G: gradient matrix ``(…, P)``.
        named_params: ``model.named_parameters()``, those that ``G`` was computed for.

    Returns:
        ``(…, p)`` for each layer of p parameters, by layer name.

    Raises:
        ValueError: if the parameters do not add up to P, or those of a layer stand apart.

    >>> layer = torch.nn.Linear(2, 3)
    >>> view = layer_view(torch.zeros(2, 9), layer.named_parameters(prefix="first"))
    >>> {name: tuple(columns.shape) for name, columns in view.items()}
    {'first': (2, 9)}
    """
    found = layers(named_params)
    check_width(G, sum(stop - start for parts in found.values() for start, stop, _ in parts))
    view = {}
    for name, parts in found.items():
        start, stop = parts[0][0], parts[-1][1]
        if sum(b - a for a, b, _ in parts) != stop - start:
            raise ValueError(f"the parameters of layer {name!r} stand apart: pass them in order")
        view[name] = G[..., start:stop]
    return view
