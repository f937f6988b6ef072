"""What the tests share: one thread, figures without a window, examples that repeat exactly."""

import functools
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any

import matplotlib
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

matplotlib.use("Agg")
torch.set_num_threads(1)
settings.register_profile(
    "pinnlib", deadline=None, derandomize=True, database=None, max_examples=25
)
settings.load_profile("pinnlib")


def pytest_configure(config: pytest.Config) -> None:
    """Chapters that are executed side by side have kernels that never meet."""
    if getattr(config.option, "nbval", False):
        import nbval.kernel
        from jupyter_client.manager import KernelManager
        from kernels import apart

        folder = tempfile.TemporaryDirectory(prefix="kernel-")
        config.add_cleanup(folder.cleanup)
        nbval.kernel.KernelManager = functools.partial(apart, folder.name, KernelManager)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chapters and website first, which take longest: short files at the end leave no core idle."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.path.stem != "test_site")


def pytest_collection_finish() -> None:
    """Spare what has been imported each later search for garbage, a fifth of the time."""
    gc.freeze()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def nothing_hidden(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail a test that draws from the global random state, changes a default, or prints."""

    def settings_of_torch() -> tuple[Any, ...]:
        return torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()

    random_state, defaults = torch.random.get_rng_state(), settings_of_torch()
    yield
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert settings_of_torch() == defaults
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def recorded_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record, but spare the C++ compiler, which takes seconds: for tests of all the rest."""
    compile = functools.partial(torch.compile, backend="aot_eager")
    # Its options are for the C++ compiler: any other says that it ignores them.
    monkeypatch.setattr(
        torch, "compile", lambda function, options=None, **rest: compile(function, **rest)
    )


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record, and run the operations one by one: for tests of what is recorded."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Check that a block raises an error and leaves objects bit for bit as they were."""

    @contextmanager
    def check(*objects: Any, match: str, raises: type[Exception] = ValueError) -> Iterator[None]:
        before = [_snapshot(thing) for thing in objects]
        with pytest.raises(raises, match=match):
            yield
        assert all(map(_identical, before, map(_snapshot, objects)))

    return check


def _snapshot(thing: Any) -> Any:
    """A copy of all numbers in a module with its gradients, an optimizer or a balancer."""
    if not isinstance(thing, nn.Module):
        return deepcopy(thing.state_dict())
    gradients = {name: p.grad for name, p in thing.named_parameters()}
    return deepcopy([thing.state_dict(), gradients])


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_identical(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_identical, a, b))
    return bool(a == b)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from website import opened_browser  # elsewhere than in make test Playwright may be missing

    with opened_browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    from website import served

    with served() as address:
        yield address
