"""What a training shows on its way, and what is kept of it."""

import numpy as np
import pytest
import torch

from pinnlib.history import Observation, Recorder
from pinnlib.measuring import Measured

pytestmark = pytest.mark.usefixtures("nothing_hidden")

TERMS = ("data", "pde")


def measured(*losses, G=None):
    """Two terms of one network, or of several: losses as given, weights ten times as large."""
    values = torch.tensor(losses if len(losses) > 1 else losses[0])
    nothing = torch.zeros(())
    return Measured(values, 10 * values.double(), {}, nothing, nothing, [], G)


def test_an_observation_shows_what_was_measured():
    G, asked = torch.ones(2, 3), []
    model = torch.nn.Tanh()
    seen = Observation(7, model, TERMS, measured((1.0, 2.0), G=G), lambda: asked.append(1))
    assert (seen.step, seen.model, seen.terms) == (7, model, TERMS)
    assert seen.losses.tolist() == [1.0, 2.0]
    assert seen.weights.tolist() == [10.0, 20.0]
    assert seen.G is G
    assert not asked


def test_an_observation_measures_gradients_once_if_no_rule_did():
    G, asked = torch.ones(2, 3), []
    model = torch.nn.Tanh()
    seen = Observation(1, model, TERMS, measured((1.0, 2.0)), lambda: asked.append(1) or G)
    assert not asked
    assert seen.G is G
    assert seen.G is G
    assert len(asked) == 1


def test_the_history_of_one_network():
    recorder, alive = Recorder(TERMS, ()), torch.tensor(-1)
    recorder.add(5, measured((1.0, 2.0)), torch.tensor(0.5), 1.5, alive)
    recorder.add(9, measured((3.0, 4.0)), None, 2.5, alive)
    assert not recorder.all_failed
    history = recorder.history()
    assert history.steps.tolist() == [5, 9]
    assert history.steps.dtype == np.int64
    assert {t: x.tolist() for t, x in history.losses.items()} == {
        "data": [1.0, 3.0],
        "pde": [2.0, 4.0],
    }
    assert {t: x.tolist() for t, x in history.weights.items()} == {
        "data": [10.0, 30.0],
        "pde": [20.0, 40.0],
    }
    np.testing.assert_array_equal(history.errors, [0.5, np.nan])
    assert history.seconds.tolist() == [1.5, 2.5]
    assert history.failures == {}
    arrays = [*history.losses.values(), *history.weights.values(), history.errors, history.seconds]
    assert all(array.dtype == np.float64 and array.shape == (2,) for array in arrays)


def test_the_history_of_a_stack_leaves_out_what_failed():
    recorder = Recorder(TERMS, (3,))
    alive, later = torch.tensor([-1, -1, -1]), torch.tensor([-1, 7, -1])
    values = [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    errors = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    recorder.add(5, measured(*values), errors, 1.0, alive)
    recorder.add(10, measured(*values), errors, 2.0, later)
    assert not recorder.all_failed
    history = recorder.history()
    np.testing.assert_array_equal(history.losses["pde"], [[2, 2], [4, np.nan], [6, 6]])
    np.testing.assert_array_equal(history.weights["data"], [[10, 10], [30, np.nan], [50, 50]])
    np.testing.assert_array_equal(history.errors, [[0.1, 0.1], [0.2, np.nan], [0.3, 0.3]])
    assert history.failures == {1: 8}  # counted from 1
    recorder.add(15, measured(*values), None, 3.0, torch.tensor([0, 7, 12]))
    assert recorder.all_failed
    assert recorder.history().failures == {0: 1, 1: 8, 2: 13}
    assert np.isnan(recorder.history().errors[:, 2]).all()


def test_nothing_has_failed_at_first_and_the_first_step_may_fail():
    recorder = Recorder(TERMS, ())
    assert not recorder.all_failed
    recorder.add(1, measured((1.0, 2.0)), torch.tensor(0.5), 1.5, torch.tensor(0))
    assert recorder.all_failed
    history = recorder.history()
    assert history.failures == {0: 1}
    assert np.isnan(history.errors).all()
