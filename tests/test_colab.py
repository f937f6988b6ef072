"""The chapters in Colab, rehearsed in an environment that has what Colab has, and no pinnlib.

Here the set-up cell installs the package. In what it leaves, ``make test`` executes the chapters.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import repo_url
from environments import empty_environment, freeze
from nbclient import NotebookClient

from chapters import CHAPTERS, ROOT, cells

SET_UP = cells(next(iter(CHAPTERS.values())), "code")[0].source


def redirected(target: str) -> dict[str, str]:
    """The environment variables that make git fetch the published repository from elsewhere."""
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{target}.insteadOf",
        "GIT_CONFIG_VALUE_0": repo_url.current(),
    }


def published(repository: Path) -> Path:
    """A repository with the package, as it is here and now."""
    shutil.copytree(ROOT / "pinnlib", repository / "pinnlib")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    for command in ("init --quiet", "add .", "commit --quiet --message package"):
        identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run(["git", *identity, *command.split()], cwd=repository, check=True)
    return repository


def test_set_up_cell_adds_the_package_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
            "PIP_NO_INDEX": "1",  # nothing is fetched
            "PIP_NO_BUILD_ISOLATION": "0",  # the option is stored inverted: 0 switches it on
            **redirected(published(tmp_path / "published").as_uri()),
        },
    }
    kernels = path / "share" / "jupyter" / "kernels" / "colab"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps(specification))
    monkeypatch.setenv("JUPYTER_PATH", str(kernels.parent.parent))
    before = freeze(python)
    NotebookClient(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SET_UP)]),
        timeout=600,
        kernel_name="colab",
        extra_arguments=["--log-level=ERROR"],  # a local kernel need not warn of its connection
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    after = freeze(python)
    (added,) = set(after) - set(before)
    assert added.startswith(f"pinnlib @ git+{repo_url.current()}@")
    assert set(before) < set(after)


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
