import pytest
import torch
import torch.distributed as dist
from helpers import network, points, theta
from torch import nn

from pinnlib.parameters import (
    accumulate,
    check_matrix,
    check_optimizer,
    check_width,
    gradients_of,
    layers,
    trainable,
    used_columns,
    widths,
)

pytestmark = pytest.mark.usefixtures("nothing_hidden")


def same(params, expected):
    return list(map(id, params)) == list(map(id, expected))


# trainable


def test_trainable_keeps_order_and_leaves_out_frozen_and_double_ones():
    a, b, frozen = theta(1.0), theta(1.0), torch.ones(1)
    assert same(trainable([b, frozen, a, b]), [b, a])
    assert same(trainable(iter([a, b])), [a, b])


@pytest.mark.parametrize(
    "module",
    [
        network(),
        nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)),
        nn.ParameterList([theta(1.0), theta(2.0)]),
        nn.ModuleList([nn.Linear(1, 1)]),
    ],
    ids=lambda module: type(module).__name__,
)
def test_trainable_takes_a_module(module):
    assert same(trainable(module), list(module.parameters()))


def test_trainable_leaves_frozen_complex_and_computed_ones_out_unseen():
    a = theta(1.0)
    assert same(trainable([torch.ones(1, dtype=torch.complex64), (a * 2).detach(), a]), [a])


def hooked():
    p = nn.Parameter(torch.ones(2, 1))
    p.register_post_accumulate_grad_hook(lambda p: None)
    return p


def sharded():
    p = nn.Parameter(torch.ones(2, 1))
    p.device_mesh = object()  # what tells a DTensor
    return p


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (theta(1.0, 2.0), TypeError, r"params is one tensor: pass a list, such as model.param"),
        (torch.tensor(1.0, requires_grad=True), TypeError, "params is one tensor: pass a list"),
        (nn.Linear(1, 1).named_parameters(), TypeError, "params holds a tuple: pass tensors, as"),
        (dict(nn.Linear(1, 1).named_parameters()), TypeError, "params holds a str: pass tensors"),
        ([nn.Linear(1, 1)], TypeError, "params holds a Linear: pass tensors"),
        ([{"params": [theta(1.0)]}], TypeError, "params holds a dict: pass tensors"),
        ([theta(1.0), None], TypeError, "params holds a NoneType: pass tensors"),
        ([], ValueError, r"no trainable parameter: pass some with requires_grad=True"),
        ([torch.ones(2)], ValueError, "no trainable parameter"),
        ([torch.empty(0, 3, requires_grad=True)], ValueError, "no trainable parameter"),
        (nn.Tanh(), ValueError, "no trainable parameter"),
        (
            [theta(1.0), torch.ones(2, 1, dtype=torch.complex64, requires_grad=True)],
            ValueError,
            r"a parameter \(2, 1\) is complex \(torch.complex64\): keep real and imaginary",
        ),
        ([theta(1.0, 2.0) * 2], ValueError, r"a parameter \(2,\) was computed from others: pass"),
        ([theta(1.0), hooked()], ValueError, r"a parameter \(2, 1\) has a hook after accumulation"),
        ([theta(1.0), sharded()], ValueError, r"a parameter \(2, 1\) is sharded \(FSDP, DTensor\)"),
        (
            [theta(1.0), torch.empty(2, device="meta", requires_grad=True)],
            ValueError,
            r"parameters lie on \['cpu', 'meta'\]: keep them on one device",
        ),
    ],
)
def test_trainable_refuses(params, error, message):
    with pytest.raises(error, match=message):
        trainable(params)


def test_trainable_allows_a_hook_that_acts_on_each_row():
    p = theta(1.0)
    p.register_hook(lambda gradient: gradient.clamp(-1, 1))
    assert same(trainable([p]), [p])


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without it")
def test_trainable_refuses_parameters_that_fsdp_has_gathered():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        model, other = network(), network()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"a parameter \(6, 2\) is sharded"):
            trainable(model)
        model(points())  # gathers the parameters until the backward pass
        with pytest.raises(ValueError, match=r"FSDPMLP is sharded \(FSDP\), .* a step late"):
            trainable(model.parameters())
        with pytest.raises(ValueError, match="a step late"):
            trainable([next(iter(model.parameters())), *other.parameters()])
        assert same(trainable(other), list(other.parameters()))
    finally:
        dist.destroy_process_group()


# Columns


def test_widths_of_one_network_and_of_a_stack():
    params = [torch.ones(3, 4, 2), torch.ones(3, 1, 5)]
    assert widths(params) == [24, 15]
    assert widths(params, (3,)) == [8, 5]


def test_used_columns_are_those_of_the_parameters_that_a_term_uses():
    params = [torch.ones(2, 2), torch.ones(1), torch.ones(3)]
    used = used_columns([[True, False, True], [False, True, True]], params)
    assert used.int().tolist() == [[1, 1, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]
    assert used.dtype == torch.bool
    assert used_columns([[False], [True]], params[:1]).int().tolist() == [[0] * 4, [1] * 4]
    stacked = [torch.ones(5, *p.shape) for p in params]
    again = used_columns([[True, False, True], [False, True, True]], stacked, (5,))
    assert torch.equal(used, again)


def test_used_columns_lie_where_the_parameters_do():
    used = used_columns([[True, False]], [torch.ones(2, device="meta"), theta(1.0).to("meta")])
    assert (used.device.type, used.shape) == ("meta", (1, 3))


def test_used_columns_are_none_where_every_term_uses_all():
    assert used_columns([[True, True], [True, True]], [torch.ones(1), torch.ones(2)]) is None


def test_layers_have_the_columns_of_trainable_parameters():
    a, b, c, frozen = theta(1.0, 2.0), theta(3.0), theta(4.0, 5.0, 6.0), torch.ones(7)
    named = [("x.y.weight", a), ("x.y.scale", frozen), ("x.y.bias", b), ("z", c)]
    found = layers(named)
    assert {name: [part[:2] for part in parts] for name, parts in found.items()} == {
        "x.y": [(0, 2), (2, 3)],
        "": [(3, 6)],
    }
    assert same([part[2] for parts in found.values() for part in parts], [a, b, c])


@pytest.mark.parametrize(
    ("named", "kind"),
    [
        (nn.Linear(1, 2).parameters(), "Parameter"),
        ([("a",)], "tuple"),
        ([(theta(1.0), "a")], "tuple"),
        (["ab"], "str"),
    ],
)
def test_layers_want_names(named, kind):
    with pytest.raises(TypeError, match=f"named_params holds a {kind}: pass model.named_param"):
        layers(named)


# From a flat gradient to .grad


@pytest.mark.parametrize("stack", [(), (3,)])
def test_gradients_have_the_shapes_of_their_parameters(stack):
    params = [torch.zeros(*stack, 2, 3), torch.zeros(*stack, 1, 1), torch.zeros(*stack, 4)]
    flat = torch.arange(11.0).expand(*stack, 11)
    first, last = gradients_of(params, flat, [True, False, True]).items()
    assert same([first[0], last[0]], [params[0], params[2]])
    assert torch.equal(first[1], torch.arange(6.0).reshape(2, 3).expand(*stack, 2, 3))
    assert torch.equal(last[1], torch.arange(7.0, 11.0).expand(*stack, 4))


def test_gradients_have_the_layout_and_precision_of_their_parameters():
    transposed, half = torch.zeros(3, 2).T, torch.zeros(2, dtype=torch.float16)
    found = gradients_of([transposed, half], torch.arange(8.0), [True, True])
    assert found[transposed].stride() == transposed.stride()
    assert found[transposed].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found[half].dtype == torch.float16
    assert found[half].tolist() == [6.0, 7.0]


def test_accumulate_adds_in_place_as_backward_does():
    a, b = theta(1.0, 2.0), theta(3.0)
    buffer = torch.ones(2, dtype=torch.float64)
    a.grad = buffer
    accumulate({a: torch.full_like(a, 2.0), b: torch.full_like(b, 4.0)})
    assert a.grad is buffer
    assert buffer.tolist() == [3.0, 3.0]
    assert b.grad.tolist() == [4.0]
    assert not b.grad.requires_grad


# check_optimizer


def test_check_optimizer_wants_all_parameters_and_no_closure():
    model, other = network(), network()
    everything = [*model.parameters(), *other.parameters()]
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer = kind([{"params": model.parameters()}, {"params": other.parameters()}], lr=1e-3)
        check_optimizer(optimizer, everything)
        check_optimizer(optimizer, model.parameters())
    lacking = torch.optim.SGD(model.parameters(), lr=1e-3)
    with pytest.raises(
        ValueError, match="the optimizer lacks parameters of the model: give it mod"
    ):
        check_optimizer(lacking, everything)
    with pytest.raises(TypeError, match="LBFGS evaluates the losses several times a step"):
        check_optimizer(torch.optim.LBFGS(everything), everything)


def test_a_matrix_of_other_parameters_is_refused():
    check_width(torch.ones(2, 3), 3)
    for shape in ((2, 3), (3, 2), (2, 1, 4)):
        with pytest.raises(ValueError, match=rf"G has {shape[-1]} columns, but .* 5 entries"):
            check_width(torch.ones(shape), 5)
    with pytest.raises(ValueError, match="G has 3 columns, but the parameters have 2 entries"):
        check_width(torch.ones(2, 3), 2)


# check_matrix


@pytest.mark.parametrize(
    ("G", "error", "message"),
    [
        (
            torch.ones(3, 2),
            ValueError,
            r"shape \(3, 2\): it needs one row for each of \['a', 'b'\]",
        ),
        (torch.ones(2), ValueError, r"shape \(2,\): it needs one row for each"),
        (torch.ones(2, 0), ValueError, r"shape \(2, 0\): .* a column for each parameter"),
        (torch.ones(2, 3, dtype=torch.int64), TypeError, "G is a torch.int64: pass a tensor of"),
        (torch.ones(2, 3, dtype=torch.complex64), TypeError, "G is a torch.complex64: .* real"),
        (torch.ones(2, 3).numpy(), TypeError, "G is a ndarray: pass a tensor"),
        ([[1.0], [2.0]], TypeError, "G is a list: pass a tensor"),
    ],
)
def test_check_matrix(G, error, message):
    check_matrix(["a", "b"], torch.ones(5, 2, 1))
    with pytest.raises(error, match=message):
        check_matrix(["a", "b"], G)
