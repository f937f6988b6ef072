"""The chapters in Colab, rehearsed in an environment that has what Colab has, and no pinnlib."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import repo_url
from environments import empty_environment, freeze
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from chapters import CHAPTERS, ROOT, cells

SET_UP = cells(next(iter(CHAPTERS.values())), "code")[0].source

# Machine code for three steps is worth the wait only in the chapter that times it.
EAGER = 'import os; os.environ["TORCH_COMPILE_DISABLE"] = "1"'
TIMES_COMPILED = "09_a_faster_step"

# Placed behind the set-up cell: ends the chapter at its third step of training.
STOP = """
from torch.optim.optimizer import register_optimizer_step_post_hook

class Trained(Exception):
    pass

def count(optimizer, args, kwargs, steps=[]):
    steps.append(1)
    if len(steps) == 3:
        raise Trained

register_optimizer_step_post_hook(count)
"""


def redirected(target: str) -> dict[str, str]:
    """The environment variables that make git fetch the published repository from elsewhere."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{target}.insteadOf",
        "GIT_CONFIG_VALUE_0": repo_url.current(),
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the package, as it is here and now."""
    repository = tmp_path_factory.mktemp("published")
    shutil.copytree(ROOT / "pinnlib", repository / "pinnlib")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    for command in ("init --quiet", "add .", "commit --quiet --message package"):
        identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run(["git", *identity, *command.split()], cwd=repository, check=True)
    return repository


@pytest.fixture(scope="module")
def kernel(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python behind a kernel called colab. Nothing is fetched: see `redirected`."""
    path = ROOT / "_build" / "environments" / "colab"
    shutil.rmtree(path, ignore_errors=True)
    build_backend = ("hatchling", "hatch-fancy-pypi-readme")
    installed = ("torch", "numpy", "scipy", "matplotlib", "tabulate", "tqdm", "ipykernel")
    python = empty_environment(path, *installed, *build_backend)
    stub = path / "stub" / "google" / "colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    specification = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
        "env": {
            "PYTHONPATH": str(stub.parent.parent),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # the option is stored inverted: 0 switches it on
            **redirected(published.as_uri()),
        },
    }
    jupyter = tmp_path_factory.mktemp("jupyter")
    (jupyter / "kernels" / "colab").mkdir(parents=True)
    (jupyter / "kernels" / "colab" / "kernel.json").write_text(json.dumps(specification))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(jupyter))
        yield python


def execute(sources: list[str], folder: Path) -> None:
    """Run cells in a fresh kernel called colab."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="colab",
        extra_arguments=["--log-level=ERROR"],  # a local kernel need not warn of its connection
        resources={"metadata": {"path": str(folder)}},
    ).execute()


@pytest.fixture(scope="module")
def set_up(kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """What is installed before and after the set-up cell."""
    before = freeze(kernel)
    execute([SET_UP], tmp_path_factory.mktemp("set-up"))
    return before, freeze(kernel)


def test_set_up_cell_adds_the_package_and_replaces_nothing(
    set_up: tuple[list[str], list[str]],
) -> None:
    before, after = set_up
    (added,) = set(after) - set(before)
    assert added.startswith(f"pinnlib @ git+{repo_url.current()}@")
    assert set(before) < set(after)


@pytest.mark.usefixtures("set_up")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_trains(chapter: str, tmp_path: Path) -> None:
    set_up_cell, *others = [cell.source for cell in cells(CHAPTERS[chapter], "code")]
    if "SEEDS = [" not in "\n".join(others):  # it reads results, and runs to its end
        execute([set_up_cell, *others], tmp_path)
        return
    eager = [] if chapter == TIMES_COMPILED else [EAGER]
    with pytest.raises(CellExecutionError) as error:
        execute([set_up_cell, *eager, STOP, *others], tmp_path)
    assert error.value.ename == "Trained", error.value


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which nothing is installed, nor will be."""
    return empty_environment(tmp_path_factory.mktemp("empty") / "environment")


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        (redirected("file:///nowhere"), "fatal: '/nowhere' does not appear to be a git repository"),
        (redirected("http://127.0.0.1:9/nowhere"), "fatal: unable to access"),
        ({"PATH": ""}, "ERROR: "),
    ],
    ids=["wrong address", "no network", "no git"],
)
def test_set_up_cell_says_what_is_wrong(
    empty: Path, variables: dict[str, str], cause: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [empty, "-c", SET_UP], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: pinnlib cannot be installed from {repo_url.current()}: ")
    assert cause in last


def test_set_up_cell_leaves_an_installed_package_alone() -> None:
    code = SET_UP + "\nassert 'log' not in globals()"
    subprocess.run([sys.executable, "-c", code], env={"PATH": ""}, check=True)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_has_a_colab_button(chapter: str) -> None:
    page = ROOT / "_build" / "committed" / "_build" / "html" / "chapters" / f"{chapter}.html"
    if not page.exists():
        pytest.skip("the website is not built: make test builds it")
    slug, _ = repo_url.names(repo_url.current())
    button = f"https://colab.research.google.com/github/{slug}/blob/main/chapters/{chapter}.ipynb"
    assert f'href="{button}"' in page.read_text()
