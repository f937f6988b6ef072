"""Recorded gives what its function gives, and says so where it cannot."""

import functools
import logging
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pinnlib.recording import KEPT, Recorded

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    """A network made without the global random state."""
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for i, p in enumerate(model.parameters()):
        p.data = uniform(*p.shape, seed=10 * seed + i) - 0.5
    return model


@pytest.fixture
def model():
    with torch.random.fork_rng([]):
        return network()


def kernel_of(model):
    """A training step's kernel: derivatives by the inputs, and of them by the parameters."""
    params = list(model.parameters())

    def kernel(batch, weights, state, key, due):
        x = batch["all"].requires_grad_()
        u = model(x)
        (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        losses = torch.stack([(u_xx + u).square().mean(), (u - 1).square().mean()])
        rows = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
        G = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        if due:
            state = {"mean": 0.9 * state["mean"] + 0.1 * G.abs().mean(1)}
            weights = state["mean"].amax() / state["mean"]
        ok = torch.isfinite(G).all()
        return losses, weights, state, weights @ G, ok, [True, False], G if due else None

    return kernel


def gradient_of(model):
    """A function that differentiates, and takes little time to compile."""
    return lambda batch: torch.autograd.grad(model(batch["x"]).square().mean(), model[2].weight)


def arguments(seed=0, n=8, due=True):
    state = {"mean": uniform(2, seed=seed + 50) + 1}
    key = torch.zeros(2, dtype=torch.int64)
    return {"all": uniform(n, 1, seed=seed)}, uniform(2, seed=seed + 99), state, key, due


def check_equal(a, b, scale=1e-11):
    torch.testing.assert_close(a, b, rtol=scale, atol=scale / 100)


@pytest.mark.parametrize("settings", [{"backend": "eager"}, {}], ids=["eager", "inductor"])
def test_a_kernel_equals_its_function_while_the_parameters_move(model, settings):
    kernel = kernel_of(model)
    recorded = Recorded(kernel, **settings)
    for step in range(6):
        due = not settings  # inductor, which takes seconds for each value
        got, expected = recorded(*arguments(step, due=due)), kernel(*arguments(step, due=due))
        *got_tensors, got_used, got_G = got
        *tensors, used, G = expected
        assert got_used == used
        if due:
            got_tensors, tensors = [*got_tensors, got_G], [*tensors, G]
        else:
            assert got_G is G is None
        for x, y in zip(got_tensors, tensors, strict=True):
            check_equal(x, y if isinstance(y, dict) else y.detach())
        assert not any(x.requires_grad for x in got_tensors if isinstance(x, torch.Tensor))
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * uniform(*p.shape, seed=step)
    assert len(recorded._recordings) == 1


def test_settings_are_those_of_the_compiler(model, monkeypatch):
    found = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: found.append(options) or f)
    Recorded(gradient_of(model), mode="default")({"x": uniform(8, 1)})
    assert found == [{"fullgraph": True, "dynamic": False, "mode": "default"}]
    with pytest.raises(TypeError, match="dynamic"):
        Recorded(gradient_of(model), dynamic=True)({"x": uniform(8, 1)})


@pytest.mark.parametrize("tracked", [False, True])
def test_compiled_once_whatever_the_strides(model, recorded_only, tracked):
    recorded = Recorded(gradient_of(model))
    recorded({"x": uniform(8, 1).requires_grad_(tracked)})
    with torch.compiler.set_stance("fail_on_recompile"):
        for k in range(1, 13):
            x = uniform(8 * k, 1, seed=k).requires_grad_(tracked)[::k]
            check_equal(recorded({"x": x}), gradient_of(model)({"x": x.clone()}))
    assert len(recorded._recordings) == 1


def test_another_kind_of_argument_is_recorded_anew(not_compiled):
    calls = []
    recorded = Recorded(
        lambda batch, flag: (calls.append(1), {k: x * 2 for k, x in batch.items()})[1]
    )
    x = uniform(3)
    kinds = [
        ({"x": x}, None),
        ({"y": x}, None),
        ({"x": x.float()}, None),
        ({"x": uniform(4)}, None),
        ({"x": x.clone().requires_grad_()}, None),
        ({"x": x}, 1),
        ({"x": x}, True),
        ({"x": x, "y": x}, True),
    ]
    for batch, flag in kinds:
        got = recorded(batch, flag)
        assert list(got) == list(batch)
        assert not any(y.requires_grad for y in got.values())
        for name, y in got.items():
            check_equal(y, 2 * batch[name].detach())
    assert len(calls) == len(recorded._recordings) == len(kinds)
    recorded({"x": -x}, True)


def test_results_are_nested_as_the_function_returns_them(not_compiled):
    def function(batch):
        x = batch[0]["x"]
        return [x, (x + 1, None), {"a": {"b": 2 * x}, "c": "name"}, 3]

    x = uniform(2).requires_grad_()
    for _ in range(3):
        first, (second, nothing), third, three = Recorded(function)([{"x": x}])
        check_equal([first, second, third["a"]["b"]], [x.detach(), x.detach() + 1, 2 * x.detach()])
        assert (nothing, third["c"], three) == (None, "name", 3)
        assert not first.requires_grad


def test_any_scale(model, recorded_only):
    recorded = Recorded(lambda batch: (batch["scale"] * model(batch["x"])).square().mean())
    for seed, scale in enumerate([1e-12, 1.0, 1e12] * 2):
        x = uniform(5, 1, seed=seed)
        found = recorded({"x": x, "scale": torch.tensor(scale, dtype=torch.float64)}) / scale**2
        check_equal(found, model(x).square().mean().detach(), 1e-13)


def test_gradients_may_be_off_or_inference_on(model, recorded_only):
    recorded, batch = Recorded(gradient_of(model)), {"x": uniform(8, 1)}
    expected = gradient_of(model)(batch)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            for _ in range(3):
                check_equal(found := recorded(batch), expected)
                assert not found[0].is_inference()
    assert len(recorded._recordings) == 2


def test_tensors_of_inference_mode(model, recorded_only):
    recorded = Recorded(gradient_of(model))
    with torch.inference_mode():
        batch = {"x": uniform(8, 1) + 1}
    expected = gradient_of(model)({"x": batch["x"].clone()})
    for _ in range(3):
        check_equal(recorded(batch), expected)


def test_no_argument_need_be_a_tensor(recorded_only):
    theta = uniform(3)
    recorded = Recorded(lambda batch: theta * 2)
    for _ in range(3):
        check_equal(recorded({}), theta * 2)
        theta += 1


def test_autocast_belongs_to_a_recording(model, recorded_only):
    model.float()

    def function(batch):
        u = model(batch["x"])
        with torch.autocast("cpu", enabled=False):
            exact = batch["x"].T @ batch["x"]
        return u, exact

    recorded = Recorded(function)
    batch = {"x": uniform(8, 1, dtype=torch.float32)}
    with torch.no_grad():
        plain = function(batch)
        with torch.autocast("cpu", torch.bfloat16):
            cast = function(batch)
    assert cast[0].dtype == torch.bfloat16
    for _ in range(3):
        torch.testing.assert_close(recorded(batch), plain)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(recorded(batch), cast)


def test_random_numbers_are_new_at_each_call_and_advance_once(recorded_only):
    own = torch.Generator().manual_seed(3)

    def function(batch):
        return torch.rand(3) + 0 * batch["x"]

    def with_a_generator(batch):
        return torch.rand(3, generator=own) + 0 * batch["x"]

    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        expected = [torch.rand(3) for _ in range(4)]
        state = torch.get_rng_state()
        torch.manual_seed(7)
        recorded = Recorded(function)
        got = [recorded({"x": torch.zeros(3)}) for _ in range(4)]
        assert torch.equal(torch.get_rng_state(), state)
    check_equal(got, expected)
    expected = [torch.rand(3, generator=own) for _ in range(4)]
    own.manual_seed(3)
    recorded = Recorded(with_a_generator)
    with pytest.warns(UserWarning, match="PyTorch's compiler failed"):
        got = [recorded({"x": torch.zeros(3)})]
    got += [recorded({"x": torch.zeros(3)}) for _ in range(3)]
    check_equal(got, expected)


def test_the_function_runs_once_and_is_compared_at_two_calls(not_compiled):
    calls = []
    recorded = Recorded(lambda batch: calls.append(1) or batch["x"] + 1)
    counts = []
    for i in range(101):
        recorded({"x": torch.full((2,), float(i))})
        counts.append(len(calls))
    assert counts == [1] + [2] * 98 + [3] * 2


@pytest.mark.parametrize("calls_before", [1, 99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_number_that_changes_is_noticed(not_compiled, calls_before, dtype, scale):
    store = {"factor": scale}
    recorded = Recorded(lambda batch: {"pde": batch["x"] * store["factor"]})
    batch = {"x": torch.ones(3, dtype=dtype)}
    for _ in range(calls_before):
        recorded(batch)
    store["factor"] *= 1.2
    message = rf"call {calls_before + 1}: result\['pde'\] .* no tensor, or another tensor"
    with pytest.raises(RuntimeError, match=message):
        recorded(batch)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, model, store: model(torch.as_tensor(store["numpy"].random((3, 1)))).mean(),
        lambda x, model, store: model(store["points"]).mean(),
        lambda x, model, store: {"a": x, "b": x} if store["wide"] else {"a": x},
        lambda x, model, store: torch.tensor(store["wide"] + 3) + 0 * x.long(),  # of whole numbers
    ],
    ids=["NumPy", "name", "form", "count"],
)
def test_other_things_that_change_are_noticed(not_compiled, model, function):
    store = {"numpy": np.random.default_rng(0), "points": uniform(3, 1), "wide": False}
    recorded = Recorded(lambda batch: function(batch["x"], model, store))
    recorded({"x": uniform(2)})
    store |= {"points": uniform(3, 1, seed=1), "wide": True}
    with pytest.raises(RuntimeError, match=r"call 2: result.* of the function.*a new Recorded"):
        recorded({"x": uniform(2)})


def test_replaced_parameters_are_noticed(not_compiled, model):
    recorded = Recorded(kernel_of(model))
    recorded(*arguments())
    with torch.random.fork_rng([]):
        model.load_state_dict(network(1).state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"call 2|not have been used in the graph"):
        recorded(*arguments())


def test_rounding_noise_and_what_is_not_finite_is_not_a_change(not_compiled):
    recorded = Recorded(lambda batch: (batch["x"] / 3 * 3 - batch["x"]).square() / batch["zero"])
    for zero in (0.0, 1.0):
        for seed in range(3):
            x = uniform(100, seed=seed, dtype=torch.float32)
            recorded({"x": x, "zero": torch.tensor(zero)})


def test_comparing_changes_nothing(not_compiled, model):
    batch, *rest = arguments()
    before = [p.clone() for p in model.parameters()]
    recorded = Recorded(kernel_of(model))
    results = [recorded(batch, *rest) for _ in range(3)]
    check_equal(results[1][3], results[0][3])
    assert not batch["all"].requires_grad
    assert batch["all"].grad is None
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert p.grad is None


def test_what_is_changed_in_place_is_refused_before_it_changes(model):
    norm = nn.BatchNorm1d(4).double()
    kept = uniform(3, 2)
    copies = {name: x.clone() for name, x in norm.state_dict().items()}
    x = uniform(8, 4)

    def add_to_a_view(batch):
        kept[0].add_(1)
        return batch["x"]

    def batch_in_place(batch):
        batch["x"][..., :1].mul_(2)
        return batch["x"]

    for function, message in (
        (add_to_a_view, r"aten.add_.Tensor changes a tensor \(3, 2\) in place"),
        (batch_in_place, r"aten.mul_.Tensor changes batch\['x'\] in place, .* work on a clone"),
        (
            lambda batch: norm(batch["x"]),
            r"add_.Tensor changes a tensor \(\) in .* evaluation mode",
        ),
        (
            lambda batch: nn.functional.batch_norm(
                batch["x"], norm.running_mean, norm.running_var, training=True
            ),
            r"batch_norm.* changes a tensor \(4,\) in place",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Recorded(function)({"x": x})
    assert torch.equal(kept, uniform(3, 2))
    assert torch.equal(x, uniform(8, 4))
    assert all(torch.equal(x, copies[name]) for name, x in norm.state_dict().items())


def test_own_tensors_may_change_in_place(not_compiled):
    norm = nn.BatchNorm1d(4, track_running_stats=False).double()
    frozen = nn.BatchNorm1d(4).double().eval()

    def function(batch):
        total = torch.tensor(0.0, dtype=torch.float64)
        total += batch["x"].mean()
        y = torch.zeros_like(batch["x"])
        y[:, 0] = norm(batch["x"])[:, 0] + frozen(batch["x"])[:, 1]
        return total, y.T

    recorded = Recorded(function)
    for seed in range(3):
        x = uniform(8, 4, seed=seed)
        total, y = function({"x": x})
        check_equal(recorded({"x": x}), (total, y.detach()))


BRANCH = r"asks for a tensor's value.*use torch.where"
SHAPE = r"makes a shape of a tensor's values.*numbers as ind"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, model: x if x.sum() > 0 else -x, BRANCH),
        (lambda x, model: x if model[0].weight.sum() > 0 else -x, BRANCH),
        (lambda x, model: x * model(x).mean().item(), BRANCH),
        (lambda x, model: x[x > 0.5].mean(), SHAPE),
        (lambda x, model: x.nonzero(), SHAPE),
        (lambda x, model: x[x[:, 0] > 0.5, torch.tensor([0])], SHAPE),
    ],
    ids=["argument", "parameter", "number", "mask", "places", "mask and number"],
)
def test_what_depends_on_a_value_is_refused(model, function, message):
    with pytest.raises(ValueError, match=message):
        Recorded(lambda batch: function(batch["x"], model))({"x": uniform(3, 1)})


def test_arguments_have_no_gaps_and_no_past_and_what_nobody_needs_is_let_go(not_compiled):
    def function(batch):
        assert batch["x"].is_leaf  # nothing reaches what it was computed from
        batch["x"].exp()
        return [batch["x"].view(-1)]

    recorded = Recorded(function)
    for seed in range(3):
        x = uniform(2, 3, seed=seed).requires_grad_().T
        check_equal(recorded({"x": x}), [x.detach().flatten()])
    (recording,) = recorded._recordings.values()
    assert [x.numel() for x in recording.result] == [0]
    assert "exp" not in str(recording.operations.graph)  # nobody needs it


def test_numbers_as_indices_are_fine(not_compiled):
    recorded = Recorded(lambda batch: batch["x"][batch["i"]] * torch.tensor(2.0).item())
    for i in ([0, 1], [2, 0]):
        check_equal(recorded({"x": uniform(3), "i": torch.tensor(i)}), 2 * uniform(3)[i])


def test_errors_of_the_function_pass_and_leave_it_usable(recorded_only):
    is_missing = True

    def function(batch):
        if is_missing:
            raise OSError("file is missing")
        return torch.linalg.inv(batch["x"])

    recorded = Recorded(function)
    with pytest.raises(OSError, match="file is missing"):
        recorded({"x": torch.eye(2)})
    assert torch.is_grad_enabled()
    is_missing = False
    with pytest.raises(torch.linalg.LinAlgError):
        recorded({"x": torch.zeros(2, 2)})
    check_equal(recorded({"x": 2 * torch.eye(2)}), torch.eye(2) / 2)
    with pytest.raises(torch.linalg.LinAlgError):
        recorded({"x": torch.zeros(2, 2)})


def test_arguments_of_an_unknown_kind_are_refused():
    recorded = Recorded(lambda batch, *rest: batch["x"])
    with pytest.raises(TypeError, match=r"batch\['x'\] is a ndarray: pass a tensor"):
        recorded({"x": np.ones(3)})
    with pytest.raises(
        TypeError, match=r"argument 1\['a'\] is a set: pass a tensor, or a hashable"
    ):
        recorded({"x": torch.ones(3)}, {"a": set()})


def test_many_kinds_are_warned_of_once_and_the_oldest_is_dropped(not_compiled):
    assert KEPT == 8
    recorded = Recorded(lambda batch: batch["x"])
    for n in range(KEPT):
        recorded({"x": torch.ones(n)})
    with pytest.warns(UserWarning, match="keep the shapes of batches the same") as caught:
        recorded({"x": torch.ones(KEPT)})
    assert caught[0].filename == __file__
    for n in range(2 * KEPT):
        recorded({"x": torch.ones(n)})
    assert len(recorded._recordings) == KEPT


def test_threads_record_one_after_the_other(recorded_only):
    errors, results = [], {}

    def work(seed):
        try:
            recorded = Recorded(lambda batch: batch["x"] * seed)
            for n in (2, 3):
                for _ in range(20):
                    results[seed, n] = recorded({"x": torch.ones(n)})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for (seed, n), x in results.items():
        check_equal(x, torch.full((n,), float(seed)))


def test_without_a_compiler_it_says_so_and_gives_the_same_numbers(model, monkeypatch):
    from torch._inductor import config  # which takes a second

    monkeypatch.setattr(logging.getLogger("torch._inductor.scheduler"), "disabled", True)
    recorded = Recorded(gradient_of(model))
    message = r"failed \(InvalidCxxCompiler: .*no-such-compiler.*install a C\+\+ compiler, .* g\+\+"
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.warns(UserWarning, match=message) as caught,
    ):
        recorded({"x": uniform(3, 1)})
    # PyTorch may have warned of itself before. Ours points to the call, not into the package.
    assert [w.filename for w in caught if w.category is UserWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = uniform(3, 1, seed=1)
        check_equal(recorded({"x": x}), gradient_of(model)({"x": x}))


def test_another_failure_of_the_compiler_is_named(monkeypatch):
    def broken(graph, inputs, **_):
        raise NotImplementedError("\nno such device\nhere\nand much more")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    recorded = Recorded(lambda batch: 2 * batch["x"])
    with pytest.warns(UserWarning, match="failed .*no such device here") as caught:
        check_equal(recorded({"x": torch.ones(2)}), 2 * torch.ones(2))
    assert "much more" not in str(caught[0].message)
    assert "g++" not in str(caught[0].message)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"cpp_wrapper": True}),
        ({"options": {"epilogue_fusion": True}}, {"epilogue_fusion": True}),
    ],
)
def test_becomes_one_function_unless_told_otherwise(monkeypatch, settings, expected):
    asked = []

    def compile(function, *, options, **_):
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    Recorded(lambda batch: 2 * batch["x"], **settings)({"x": torch.ones(2)})
    assert asked == [expected]
