"""What a step measures, and what it spares; single networks of a stack; no wait for the device."""

import inspect
import math
import re
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    EXPONENTS,
    TERMS,
    Inverse,
    gradients,
    network,
    points,
    seeded,
    theta,
    three_losses,
    three_terms,
    two_losses,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pinnlib.distributed import alone
from pinnlib.gradients import gradient_matrix, l2_norm, mean_abs
from pinnlib.measuring import Measured, Measurement, combine
from pinnlib.networks import MLP, Stacked
from pinnlib.recording import Recorded
from pinnlib.residuals import NotFiniteError
from pinnlib.step import Step, balanced_backward, eager
from pinnlib.weighting import (
    Balancer,
    Follow,
    GradientBalancer,
    KernelTrace,
    Ratio,
    geometric_mean_of_terms,
)

pytestmark = pytest.mark.usefixtures("nothing_hidden", "not_compiled")


# Nothing is measured that nobody looks at

# Steps, and how many backward passes of the whole network each takes, for two terms.
PASSES = {
    "every step": (GradientBalancer.simplified, [2, 2, 2]),
    "every third": (lambda: GradientBalancer.simplified(every=3), [2, 1, 1, 2, 1]),
    "constant": (lambda: Balancer(["data", "pde"], {"data": 2.0, "pde": 0.5}), [1, 1]),
    "losses": (lambda: Balancer(["data", "pde"], Inverse()), [1, 1]),
    "probes": (lambda: Balancer(["data", "pde"], Follow(KernelTrace()), every=2), [3, 1, 3]),
    "preprint": (GradientBalancer.preprint, [2] + [1] * 9 + [2]),
}


def residuals_of(model):
    def terms(batch):
        u = model(batch["x"])
        return {"data": [u - 1], "pde": [3 * u**2 - batch["x"][..., :1]]}

    return terms


@pytest.mark.parametrize("case", PASSES)
def test_backward_passes_are_counted(case):
    make, expected = PASSES[case]
    model, walks, counts = network(), [], []

    def terms(batch):
        u = model(batch["x"])
        # A hook sees one gradient for each walk that reaches the network's output.
        u.register_hook(lambda g: walks.append(g) if g.isfinite().all() else None)
        return {"data": [u - 1], "pde": [3 * u**2 - batch["x"][..., :1]]}

    step = Step(terms, model, make())
    for seed in range(len(expected)):
        walks.clear()
        measured = step.measure({"x": points(seed=seed)})
        counts.append(len(walks))
        assert (measured.G is None) == (counts[-1] != 2)
        step.apply(measured)
    assert counts == expected


@pytest.mark.parametrize("case", ["every third", "constant", "losses", "probes"])
def test_recorded_passes_are_counted(case):
    """Two layers of tanh, so two of their derivatives a pass."""
    make, expected = PASSES[case]
    model, expected = network(), expected[:2]
    step = Step(residuals_of(model), model, make(), run=Recorded)
    for seed, passes in enumerate(expected):
        measured = step.measure({"x": points(seed=seed)})
        step.apply(measured)
        assert (measured.G is None) == (passes != 2)
    counts = []
    for recording in step._kernel._recordings.values():
        names = [str(node.target) for node in recording.operations.graph.nodes]
        counts.append(sum("tanh_backward" in name for name in names) // 2)
    assert counts == list(dict.fromkeys(expected))


def test_the_graph_is_freed():
    model = network()
    losses = two_losses(model)({"x": points()})
    balanced_backward(losses, model, GradientBalancer.simplified())
    with pytest.raises(RuntimeError, match="second time"):
        losses["pde"].backward()


@pytest.mark.parametrize("case", PASSES)
def test_one_pass_gives_the_same_gradient_as_the_rows(case):
    make, _ = PASSES[case]
    model = network()
    step = Step(residuals_of(model), model, make())
    for seed in range(3):
        model.zero_grad()
        batch = {"x": points(seed=seed)}
        _, weights = step(batch)
        G = step.rows(batch)
        losses = {t: r[0].square().mean() for t, r in residuals_of(model)(batch).items()}
        torch.testing.assert_close(G, gradient_matrix(losses, model), rtol=1e-12, atol=1e-14)
        flat = torch.cat([g.flatten() for g in gradients(model)])
        torch.testing.assert_close(flat, weights @ G, rtol=1e-10, atol=1e-12)


# A measurement


def measurement(reduce=None):
    model = network()
    batch = {"x": points()}
    terms = three_terms(model)(batch)
    return Measurement(terms, list(model.parameters()), 67, (), reduce), model, batch


def test_what_a_measurement_shows():
    found, model, batch = measurement()
    expected = three_losses(model)(batch)
    torch.testing.assert_close(found.losses, torch.stack([*expected.values()]).detach())
    assert not found.losses.requires_grad
    assert found.G is None
    G, mask = found.rows()
    torch.testing.assert_close(G, gradient_matrix(expected, model))
    assert found.G is not None
    # The last bias shifts u, but not its derivatives; u² brings it back into the equation.
    assert mask is None
    assert found.used == [[True] * 6] * 3


def test_the_entries_that_a_term_uses():
    a, b, c = theta(1.0, 2.0), theta(3.0), theta(5.0)
    found = Measurement({"x": a.sum(), "y": (b * c).sum()}, [a, b, c], 3, (), None)
    G, mask = found.rows()
    assert G.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 5.0]]
    assert mask.tolist() == [[True, True, False], [False, False, True]]
    assert found.G.tolist() == [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 5.0, 3.0]]


def test_probes_are_signed_sums_of_residual_gradients():
    """Their squared size estimates the mean diagonal of the kernel."""
    found, model, batch = measurement()
    terms, params = three_terms(model)(batch), list(model.parameters())
    expected = []
    for group in terms.values():
        total = 0.0
        for r in group:
            for value in r.flatten():
                row = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
                total += sum((g**2).sum() for g in row if g is not None).item() / len(r)
        expected.append(total)
    sizes = [found.probes(torch.tensor(key)).square().sum(-1) for key in range(300)]
    mean = torch.stack(sizes).mean(0)
    torch.testing.assert_close(mean, torch.tensor(expected).double(), rtol=0.25, atol=0.0)
    probe = found.probes(torch.tensor(7))
    assert torch.equal(probe, found.probes(torch.tensor(7)))
    found.width = 60
    assert torch.equal(probe[:, :60], found.probes(torch.tensor(7)))
    found.rows()  # the graph was kept for them


@given(exponents=st.tuples(EXPONENTS, EXPONENTS))
def test_combining_over_scales(exponents):
    a, b = (10.0**e for e in exponents)
    G = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]], dtype=torch.float64)
    scaled = torch.tensor([[a], [b]], dtype=torch.float64) * G
    weights = torch.tensor([2 / a, 3 / b], dtype=torch.float64)
    torch.testing.assert_close(combine(weights, scaled), 2 * G[0] + 3 * G[1])
    narrow = combine(weights.float(), scaled.float())  # where the device has no double precision
    torch.testing.assert_close(narrow, (2 * G[0] + 3 * G[1]).float())
    assert combine(weights.float(), scaled.bfloat16()).dtype == torch.bfloat16
    stacked = combine(torch.stack([weights, 2 * weights]), torch.stack([scaled, scaled]))
    torch.testing.assert_close(stacked[1], 2 * stacked[0])


def test_a_weight_that_vanishes_in_the_precision_of_its_loss_is_not_silent():
    a = theta(2.0, dtype=torch.float32)
    found = Measurement({"x": a.sum(), "y": a.sum()}, [a], 1, (), None)
    weights = torch.tensor([1.0, 1e-60], dtype=torch.float64)
    assert found.direction(weights).isnan().all()


def test_processes_that_hold_the_same_points_are_one():
    """Two of them add up to twice a share of a half each."""
    for every in (1, 2):
        models = network(), network()
        steps = [
            Step(three_terms(m), m, GradientBalancer.simplified(TERMS, every=every), reduce=reduce)
            for m, reduce in zip(models, (None, lambda x: 2 * x), strict=True)
        ]
        for seed in range(3):
            found, expected = (step({"x": points(seed=seed)}) for step in reversed(steps))
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(*map(gradients, models))


def test_a_share_counts_points():
    """Three points here and six elsewhere, whose residuals vanish."""
    a, more = theta(2.0), iter([6.0, 0.0])
    found = Measurement({"x": [a * torch.ones(3, 1)]}, [a], 1, (), lambda x: x + next(more))
    torch.testing.assert_close(found.losses, torch.tensor([4 / 3], dtype=torch.float64))


def test_what_does_not_go_with_processes():
    model = network()
    balancer = GradientBalancer.simplified(TERMS)
    with pytest.raises(
        ValueError, match=r"reduce talks to other processes, which .* cannot record"
    ):
        Step(three_terms(model), model, balancer, run=Recorded, reduce=lambda x: x)
    Step(three_terms(model), model, balancer, run=Recorded, reduce=alone)
    probing = Balancer(TERMS, Follow(KernelTrace()))
    step = Step(three_terms(model), model, probing, reduce=lambda x: 1 * x)
    with pytest.raises(ValueError, match="draws random signs, which differ from process to"):
        step({"x": points()})
    assert probing.step == 0


# Stacks


M = 3
RULES = {
    "simplified": lambda **k: GradientBalancer.simplified(TERMS, warm_start=True, **k),
    "jaxpi": lambda **k: GradientBalancer.jaxpi(TERMS, alpha=0.5, **k),
    "journal": lambda **k: GradientBalancer.journal(
        TERMS, named_params=network().named_parameters(), **k
    ),
    "geometric": lambda **k: GradientBalancer.simplified(TERMS, geometric_mean_of_terms, **k),
    "constant": lambda **k: Balancer(TERMS, {"data": 3.0, "initial": 1.0, "pde": 0.5}, **k),
    "losses": lambda **k: Balancer(TERMS, Inverse(), **k),
    "kernel": lambda **k: Balancer(TERMS, Follow(KernelTrace(), alpha=0.5), **k),
}


def stack_of(seeds=range(M)):
    return Stacked([network(seed=seed) for seed in seeds])


def stacked_batch(seed=0):
    return {"x": torch.stack([points(seed=10 * i + seed) for i in range(M)])}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_a_stack_is_its_networks(rule, every):
    stack, alone = stack_of(), [network(seed=seed) for seed in range(M)]
    together = Step(three_terms(stack), stack, RULES[rule](every=every), stack=(M,))
    single = [Step(three_terms(model), model, RULES[rule](every=every)) for model in alone]
    for seed in range(3):
        losses, weights = together(stacked_batch(seed))
        for i, step in enumerate(single):
            one_losses, one_weights = step({"x": stacked_batch(seed)["x"][i]})
            torch.testing.assert_close(losses[i], one_losses)
            torch.testing.assert_close(weights[i], one_weights)
    for i, model in enumerate(alone):
        for p, q in zip(stack.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p.grad[i].reshape(q.shape), q.grad)
    assert together.balancer.failed.tolist() == [-1] * M


def quick_terms(model):
    """Residuals of three terms without derivatives, which take time to record."""

    def terms(batch):
        u = model(batch["x"])
        return {"data": [u - 1], "initial": [3 * u**2], "pde": [u - batch["x"][..., :1]]}

    return terms


def spoiled(stack):
    """The terms of a stack, with the residuals of one network times its ``factors``."""

    def terms(batch):
        return {
            term: [r * batch["factors"][:, k, None, None]]
            for k, (term, [r]) in enumerate(quick_terms(stack)(batch).items())
        }

    return terms


@pytest.mark.parametrize(
    ("run", "every", "bad", "broken"),
    [
        (eager, 1, math.nan, 0),
        (eager, 1, math.inf, 2),
        (eager, 1, 1e200, 1),
        (eager, 3, math.nan, 2),
        (eager, 3, 1e200, 0),
        (Recorded, 1, math.nan, 2),
    ],
)
def test_one_network_fails_alone(run, every, bad, broken):
    """It is frozen for good, and the others are bit for bit as without it."""
    rule = RULES["simplified"]
    runs = []
    for factor in (bad, 1.0):
        stack = stack_of()
        step = Step(spoiled(stack), stack, rule(every=every), stack=(M,), run=run)
        optimizer = torch.optim.SGD(stack.parameters(), lr=1e-3)
        snapshots = []
        for seed in range(5):
            factors = torch.ones(M, 3, dtype=torch.float64)
            if seed == 2:
                factors[broken, 1] = factor
            optimizer.zero_grad()
            _, weights = step(stacked_batch(seed) | {"factors": factors})
            optimizer.step()
            state = step.balancer.state["first"].clone()
            snapshots.append([weights, state, *(p.detach().clone() for p in stack.parameters())])
        runs.append((snapshots, step.balancer))
    (with_failure, failing), (healthy, sound) = runs
    assert failing.failed.tolist() == [2 if i == broken else -1 for i in range(M)]
    assert sound.failed.tolist() == [-1] * M
    others = [i for i in range(M) if i != broken]
    for found, expected in zip(with_failure, healthy, strict=True):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a[others], b[others])
            assert a.isfinite().all()
    for now, last in zip(with_failure[4], with_failure[1], strict=True):
        assert torch.equal(now[broken], last[broken])  # nothing has moved since
    assert failing.step == 5
    assert len(failing.by_term()["pde"]) == M


def test_what_failed_at_the_first_step_stays_failed():
    w, balancer = theta(1.0, 2.0), GradientBalancer.simplified(alpha=1.0)
    step = Step(lambda b: {"data": w**2 * b, "pde": 2 * w**2}, [w], balancer, stack=(2,))
    for factor in (math.nan, 1.0):
        step(torch.tensor([1.0, factor], dtype=torch.float64))
    assert balancer.failed.tolist() == [-1, 0]
    assert balancer.weights.tolist() == [[1.0, 0.5], [1.0, 1.0]]
    assert w.grad.tolist() == [8.0, 0.0]


def test_errors_of_a_stack_name_the_shapes(refused):
    stack, balancer = stack_of(), GradientBalancer.simplified()
    cases = [
        (lambda b: {"data": stack(b["x"]).mean(), "pde": stack(b["x"]).mean()}, r"scalar for each"),
        (lambda b: {"data": [stack(b["x"])[:2]], "pde": [stack(b["x"])]}, r"be \(3, N, 1\)"),
        (lambda b: {"data": [stack(b["x"])[0]], "pde": [stack(b["x"])]}, r"be \(3, N, 1\)"),
    ]
    for terms, message in cases:
        with refused(stack, balancer, match=message):
            Step(terms, stack, balancer, stack=(M,))(stacked_batch())


def test_a_balancer_of_a_stack_is_not_one_of_a_network(refused):
    stack, balancer, model = stack_of(), GradientBalancer.simplified(TERMS), network()
    Step(three_terms(stack), stack, balancer, stack=(M,))(stacked_batch())
    message = r"holds the weights of a stack \(3,\), not of \(\): make a new one for each"
    with refused(model, balancer, match=message):
        Step(three_terms(model), model, balancer)({"x": points()})


# Devices


class Deferred:
    """A step as on a GPU, on the CPU: nobody looks at a value before it is asked for."""

    def __init__(self, monkeypatch, balancer, model):
        monkeypatch.setattr(
            Balancer, "placed", lambda self, stack, device: (self.weights, self.state, self.failed)
        )
        self.step = Step(two_losses_times(model), model, balancer)
        self.step.device = SimpleNamespace(type="cuda")

    def __call__(self, factor, seed=0):
        factor = torch.tensor(factor, dtype=torch.float64)
        return self.step({"x": points(seed=seed), "factor": factor})


def two_losses_times(model):
    def losses(batch):
        losses = two_losses(model)(batch)
        return losses | {"pde": losses["pde"] * batch["factor"]}

    return losses


def test_elsewhere_errors_wait_until_a_value_is_asked_for(monkeypatch):
    model, balancer = network(), GradientBalancer.simplified(warm_start=True)
    step = Deferred(monkeypatch, balancer, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def parts():
        return [balancer.weights.clone(), balancer.state["first"].clone(), *model.parameters()]

    for seed in range(2):
        optimizer.zero_grad()
        step(1.0, seed)
        optimizer.step()
    balancer.check()
    before = [x.detach().clone() for x in parts()]
    for factor in (math.nan, 1.0, math.inf):  # and what fails once stays as it is
        optimizer.zero_grad()
        losses, _ = step(factor, 3)
        optimizer.step()
        assert losses.shape == (2,)
        assert all(map(torch.equal, parts(), before))
        assert all((p.grad == 0).all() for p in model.parameters())
    weights = balancer.by_term()  # which asks for nothing
    assert list(weights) == ["data", "pde"]
    message = "a loss, gradient or weight at step 2 was not finite, and since then weights stay"
    for ask in (balancer.check, balancer.state_dict, lambda: weights["pde"], lambda: repr(weights)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_elsewhere_the_numbers_are_those_of_the_cpu(monkeypatch):
    models = network(), network()
    here = Step(two_losses_times(models[0]), models[0], GradientBalancer.simplified(every=2))
    expected = [
        here({"x": points(seed=s), "factor": torch.ones((), dtype=torch.float64)}) for s in range(4)
    ]
    step = Deferred(monkeypatch, GradientBalancer.simplified(every=2), models[1])
    for seed in range(4):
        torch.testing.assert_close(step(1.0, seed), expected[seed], rtol=0, atol=0)
    torch.testing.assert_close(gradients(models[1]), gradients(models[0]), rtol=0, atol=0)


FACTORIES = {
    getattr(torch, name)
    for name in re.findall(
        r"\w+",
        "arange empty eye full linspace logspace ones rand randint randn randperm tensor zeros "
        "as_tensor asarray tril_indices triu_indices empty_strided scalar_tensor",
    )
}
WAITS = {
    getattr(Tensor, name)
    for name in re.findall(
        r"\w+",
        "item tolist numpy cpu __bool__ __float__ __int__ __index__ nonzero __array__ "
        "is_nonzero equal allclose unique __complex__",
    )
} | {torch.equal, torch.allclose, torch.nonzero, torch.unique}


class OnDevice(TorchFunctionMode):
    """Raise where a tensor is made without a device, or the device is waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in WAITS, f"{func.__name__} waits for the device"
        assert func not in FACTORIES or kwargs.get("device") is not None, f"{func.__name__}: where?"
        assert "to" not in getattr(func, "__name__", "").split("_") or not is_cpu(args, kwargs)
        return func(*args, **kwargs)


def is_cpu(args, kwargs):
    return any(str(x) == "cpu" for x in (*args[1:], *kwargs.values()) if not inspect.isclass(x))


def test_the_watch_sees_what_it_should():
    x = torch.ones(2, device="cpu")
    for action in (
        x.sum().item, x.tolist, x.numpy, x.cpu, lambda: bool(x[0]), lambda: float(x[0]),
        lambda: torch.zeros(2), lambda: torch.tensor(1.0), lambda: x.to("cpu"),
        lambda: [0, 1][x[0].long()],
    ):  # fmt: skip
        with pytest.raises(AssertionError), OnDevice():
            action()
    with OnDevice():
        torch.zeros(2, device="meta")


META_RULES = RULES | {
    "preprint": lambda **k: GradientBalancer.preprint(TERMS, **k),
    "bounds": lambda **k: GradientBalancer.simplified(TERMS, bounds=(0.5, 2), **k),
    "l2": lambda **k: Balancer(TERMS, Follow(Ratio(l2_norm, "pde", mean_abs, weighted=True)), **k),
}


@pytest.mark.parametrize(
    ("rule", "stack"),
    [
        *((rule, ()) for rule in META_RULES),
        *((rule, (M,)) for rule in ("simplified", "journal", "kernel")),
    ],
)
def test_a_step_stays_on_the_device_and_never_waits_for_it(rule, stack):
    balancer = META_RULES[rule](every=2)
    models = [network(seed=seed) for seed in range(M)]
    model = (Stacked(models) if stack else models[0]).to("meta")
    coefficient = nn.Parameter(torch.ones(stack, dtype=torch.float64, device="meta"))

    def terms(batch):
        values = (three_terms if rule == "simplified" else quick_terms)(model)(batch)
        factor = coefficient[..., None, None] if stack else coefficient
        return values | {"pde": [factor * r for r in values["pde"]]}

    step = Step(terms, model, balancer, beside=[coefficient], stack=stack)
    batch = {"x": torch.ones(*stack, 8, 2, dtype=torch.float64, device="meta")}
    step(batch)  # the state moves there at the first step
    for _ in range(2):  # one between updates, and one that is due
        with OnDevice():
            losses, weights = step(batch)
            balancer.by_term()
        assert losses.shape == weights.shape == (*stack, 3)
    found = [losses, weights, balancer.failed, *balancer.state.values(), coefficient.grad]
    found += [p.grad for p in model.parameters()]
    assert all(x.device.type == "meta" for x in found)
    assert balancer.step == 3


def test_unused_parameters_on_the_device():
    a, b = (torch.ones(3, device="meta", requires_grad=True) for _ in range(2))
    step = Step(lambda _: {"data": a.sum(), "pde": (a * b).sum()}, [a, b],
                GradientBalancer.simplified())  # fmt: skip
    step({})
    with OnDevice():
        step({})
    assert b.grad.device.type == "meta"


def test_float32_where_there_is_no_double_precision(monkeypatch):
    """A state in single precision, as on a device without another, gives nearly the same."""
    models = [MLP([(0, 1)] * 2, width=6, depth=2, generator=seeded()) for _ in range(2)]
    found = []
    for model, dtype in zip(models, (torch.float64, torch.float32), strict=True):
        balancer = GradientBalancer.simplified(TERMS, alpha=0.5)
        balancer.weights = balancer.weights.to(dtype)
        step = Step(three_terms(model), model, balancer)
        for seed in range(3):
            losses, weights = step({"x": points(seed=seed).float()})
        assert weights.dtype == dtype
        found.append([losses.double(), weights.double(), *gradients(model)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


# A share of many


def shares_of(terms):
    """A measurement by one of two processes; the other one has two points of the same kind."""
    params, sent = [theta(2.0)], []

    def reduce(x):
        sent.append(x)
        return x + OTHERS[len(sent) - 1].to(x)

    return Measurement(terms(params[0]), params, 1, (), reduce)


OTHERS = [
    torch.tensor([2.0, 1.0], dtype=torch.float64),  # points of each residual, 1 for a loss
    torch.tensor([0.5, 0.25], dtype=torch.float64),
    torch.tensor([[1.0], [4.0]], dtype=torch.float64),
]


def test_a_share_counts_by_its_points_and_a_loss_as_one():
    x = torch.tensor([[1.0]], dtype=torch.float64)
    found = shares_of(lambda a: {"data": [a * x], "pde": a**2})
    # One of three points, and one of two losses.
    assert found.losses.tolist() == pytest.approx([4 / 3 + 0.5, 4 / 2 + 0.25], rel=1e-14)
    G, _ = found.rows()
    assert G[:, 0].tolist() == pytest.approx([4 / 3 + 1, 4 / 2 + 4], rel=1e-14)


def test_a_share_without_points_adds_nothing():
    x = torch.ones(0, 1, dtype=torch.float64)
    found = shares_of(lambda a: {"data": [a * x], "pde": a**2})
    assert found.losses.tolist() == [0.5, 2.25]
    assert found.rows()[0].tolist() == [[1.0], [6.0]]


def test_what_travels_lies_on_the_device():
    a, places = torch.ones(1, requires_grad=True, device="meta"), []
    terms = {"data": [a[:, None]], "pde": a.sum()}
    Measurement(terms, [a], 1, (), lambda x: places.append(x.device.type) or x).rows()
    assert places == ["meta"] * 3


def test_a_share_is_checked_before_anything_travels():
    with pytest.raises(ValueError, match=r"residual 'data\[0\]' has shape \(1,\)"):
        shares_of(lambda a: {"data": [a], "pde": a**2})


# What is not finite


def explained(**spoiled):
    good = {"losses": torch.ones(2), "weights": torch.ones(2), "G": torch.ones(2, 3)}
    good |= {"direction": torch.ones(3)} | spoiled
    found = Measured(state={}, ok=torch.tensor(False), is_used=[True], **good)
    with pytest.raises(NotFiniteError) as caught:
        found.explain(GradientBalancer.simplified())
    return str(caught.value)


def test_the_first_thing_that_is_not_finite_is_named():
    nan = torch.tensor([1.0, math.nan])
    rows = torch.tensor([[1.0, 1, 1], [1, math.inf, 1]])
    assert explained(losses=nan, weights=nan, G=rows).startswith("loss 'pde' is nan")
    assert explained(weights=nan, G=rows).startswith("gradient of loss 'pde' at step 0 has 1 of 3")
    assert explained(weights=nan).startswith("weight of 'pde' at step 0 would be nan")
    assert explained(weights=nan, G=None).startswith("weight of 'pde' at step 0 would be nan")
    message = explained(direction=torch.tensor([1.0, math.inf, 0.0]))
    assert message.startswith(
        "the balanced gradient at step 0 is not finite in torch.float32, with"
    )
    assert "{'data': 1.0, 'pde': 1.0}" in message
