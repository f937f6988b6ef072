"""The gradient matrix of a loss with several terms, and statistics of its rows."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

# In the order of the API page. The rest is for the modules above this one.
__all__ = ["gradient_matrix", "mean_abs", "max_abs", "l2_norm", "cosine", "layer_view"]  # noqa: RUF022


def gradient_matrix(losses: Mapping[str, Tensor], params: Iterable[Tensor]) -> Tensor:
    r"""Gradients of all loss terms, one row a term: the matrix that all balancing starts from.

    .. math:: G = \begin{pmatrix} \nabla_\theta \mathcal L_1 \\ \vdots \\ \nabla_\theta \mathcal L_K
       \end{pmatrix} \in \mathbb R^{K \times P}

    One backward pass a term. The graph that the terms share is kept until the last of them is
    done, and freed then. No ``.grad`` is written, and the result is detached. A parameter that a
    term does not use has zeros in that term's row.

    Args:
        losses: scalar loss of each term, by name, unweighted.
        params: the parameters θ; frozen ones (``requires_grad`` off) are left out, and one that is
            listed twice counts once.

    Returns:
        ``(K, P)``, rows in the order of ``losses``, columns in the order of ``params``, each
        parameter flattened row by row.

    Raises:
        ValueError: if there is no term or no trainable parameter, if a loss is not a finite
            scalar, has no graph, or uses none of the parameters, or if a gradient is not finite.

    >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> gradient_matrix({"data": theta.sum(), "pde": (theta**2).sum()}, [theta])
    tensor([[1., 1.],
            [2., 4.]])
    """
    params = trainable(params)
    check_losses(losses)
    G, used = gradient_rows(losses, params)
    check_used(losses, used)
    check_finite(losses, G)
    return G


def gradient_rows(
    losses: Mapping[str, Tensor],
    params: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    stack: tuple[int, ...] = (),
) -> tuple[Tensor, list[list[bool]]]:
    """The gradient matrix, ``(K, P)``, and which of the parameters each term uses.

    The unchecked part of :func:`gradient_matrix`: it accepts a term that uses none of the
    parameters, and gradients that are not finite. ``retain_graph`` keeps the graph of the last
    term, too. For a stack of M networks, ``stack`` is ``(M,)``: losses are ``(M,)``, parameters
    ``(M, …)``, and the matrix is ``(M, K, P)``.
    """
    rows = [
        torch.autograd.grad(
            loss.sum(), params, retain_graph=retain_graph or k < len(losses), allow_unused=True
        )
        for k, loss in enumerate(losses.values(), start=1)
    ]
    used = [[g is not None for g in row] for row in rows]
    entries = [
        (torch.zeros_like(p) if g is None else g).reshape(*stack, -1)
        for row in rows
        for g, p in zip(row, params, strict=True)
    ]
    # One copy for all rows, and none of the graph: autograd gives tensors of their own.
    return torch.cat(entries, dim=-1).reshape(*stack, len(losses), -1), used


def trainable(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that are not frozen, shared ones once; a ValueError if none is left."""
    kept = list(dict.fromkeys(p for p in params if p.requires_grad))
    if not kept:
        raise ValueError("there is no trainable parameter: pass some with requires_grad=True")
    return kept


def check_losses(losses: Mapping[str, Tensor], stack: tuple[int, ...] = ()) -> None:
    """Raise a ValueError that names the term if a loss is not a finite scalar with a graph."""
    check_differentiable(losses, stack)
    for term, loss in losses.items():
        check_loss_value(term, loss)


def check_differentiable(losses: Mapping[str, Tensor], stack: tuple[int, ...] = ()) -> None:
    """The part of :func:`check_losses` that reads no value, so that it can be recorded."""
    if not losses:
        raise ValueError("losses is empty: pass one scalar loss for each term")
    for term, loss in losses.items():
        if loss.shape != stack and (stack or loss.numel() != 1):
            wanted = f"one scalar for each network, {stack}" if stack else "a scalar"
            raise ValueError(f"loss {term!r} has shape {tuple(loss.shape)}: reduce it to {wanted}")
        if not loss.requires_grad:
            raise ValueError(
                f"loss {term!r} has no graph (requires_grad=False): "
                "compute it from the model's output, without detach() or no_grad()"
            )


def check_loss_value(term: str, loss: Tensor) -> None:
    """Raise a ValueError that names the term if its loss is infinite or undefined."""
    if not _all_finite(loss):
        raise ValueError(
            f"loss {term!r} is {loss.tolist()}: lower the learning rate or check its inputs"
        )


def check_used(losses: Iterable[str], used: Iterable[Sequence[bool]]) -> None:
    """Raise a ValueError that names the term if it uses none of the parameters."""
    for term, row in zip(losses, used, strict=True):
        if not any(row):
            raise ValueError(
                f"loss {term!r} uses none of the parameters: compute it from the model's output"
            )


def check_finite(terms: Iterable[str], G: Tensor, step: int | None = None) -> None:
    """Raise a ValueError that names the first term with an infinite or undefined gradient."""
    if _all_finite(G):
        return
    for term, row in zip(terms, G.unbind(-2), strict=True):
        bad = row[~torch.isfinite(row)]
        if bad.numel():
            at = "" if step is None else f" at step {step}"
            raise ValueError(
                f"gradient of loss {term!r}{at} has {bad.numel()} of {row.numel()} entries that "
                f"are not finite, such as {bad[0].item()}: "
                "lower the learning rate or check the derivatives"
            )


def _all_finite(x: Tensor) -> bool:
    # An undefined entry makes both ends undefined. Ten times faster than isfinite(x).all().
    return all(math.isfinite(end.item()) for end in torch.aminmax(x.detach()))


def mean_abs(G: Tensor) -> Tensor:
    r"""Mean of absolute values, :math:`\frac1P\sum_i |G_{ki}|`; ``(…, P)`` to ``(…)``.

    >>> mean_abs(torch.tensor([[3.0, -4.0]]))
    tensor([3.5000])
    """
    return G.abs().mean(dim=-1)


def max_abs(G: Tensor) -> Tensor:
    r"""Largest absolute value, :math:`\max_i |G_{ki}|`; ``(…, P)`` to ``(…)``.

    >>> max_abs(torch.tensor([[3.0, -4.0]]))
    tensor([4.])
    """
    return G.abs().amax(dim=-1)


def l2_norm(G: Tensor) -> Tensor:
    r"""Euclidean norm, :math:`\sqrt{\sum_i G_{ki}^2}`; ``(…, P)`` to ``(…)``.

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
        ValueError: if the parameters do not add up to P.

    >>> layer = torch.nn.Linear(2, 3)
    >>> view = layer_view(torch.zeros(2, 9), layer.named_parameters(prefix="first"))
    >>> {name: tuple(columns.shape) for name, columns in view.items()}
    {'first': (2, 9)}
    """
    sizes: dict[str, int] = {}
    for name, p in named_params:
        if p.requires_grad:
            layer = name.rpartition(".")[0]
            sizes[layer] = sizes.get(layer, 0) + p.numel()
    if sum(sizes.values()) != G.shape[-1]:
        raise ValueError(
            f"G has {G.shape[-1]} columns, but the parameters have {sum(sizes.values())} entries: "
            "pass those that G was computed for"
        )
    return dict(zip(sizes, G.split(list(sizes.values()), dim=-1), strict=True))
