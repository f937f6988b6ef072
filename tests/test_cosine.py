"""The cosines between the rows of a gradient matrix."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinnlib.gradients import cosine

pytestmark = pytest.mark.usefixtures("nothing_hidden")

scales = st.floats(min_value=1e-12, max_value=1e12)


def matrix(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_definition():
    G = matrix(4, 50, dtype=torch.float64)
    norm = (G**2).sum(dim=1).sqrt()
    torch.testing.assert_close(cosine(G), G @ G.T / (norm[:, None] * norm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(s=st.tuples(scales, scales, scales))
def test_size_of_a_row_does_not_matter(dtype, s):
    G = matrix(3, 20, dtype=dtype)
    scaled = G * torch.tensor(s, dtype=dtype)[:, None]
    torch.testing.assert_close(cosine(scaled), cosine(G))


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e38])
def test_squares_that_leave_the_precision(size):
    G = torch.tensor([[size, size], [1.0, -1.0], [1.0, 1.0]])
    expected = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(cosine(G), expected)


def test_opposed_and_parallel_rows_stay_in_range():
    row = matrix(1, 5000)
    C = cosine(torch.cat([row, -3 * row, 7 * row]))
    assert C.abs().max() <= 1
    torch.testing.assert_close(C[0], torch.tensor([1.0, -1.0, 1.0]))


def test_zero_row_is_at_right_angles_to_the_others_and_one_on_the_diagonal():
    G = matrix(3, 20)
    G[1] = 0
    C = cosine(G)
    assert C[1].tolist() == [0, 1, 0]
    assert C[:, 1].tolist() == [0, 1, 0]
    assert C[0, 2] == cosine(G[[0, 2]])[0, 1]


def test_stack_equals_one_by_one():
    G = matrix(2, 5, 4, 20)
    C = cosine(G)
    assert C.shape == (2, 5, 4, 4)
    torch.testing.assert_close(C[1, 3], cosine(G[1, 3]))


def test_symmetric_with_a_diagonal_of_exactly_one():
    C = cosine(matrix(6, 300))
    torch.testing.assert_close(C, C.T)
    assert (C.diagonal() == 1).all()
