"""What would be published: the package's files, the workflow, and one address everywhere."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import readme_renderer.markdown
import repo_url
import yaml
from environments import empty_environment, freeze
from packaging.requirements import Requirement

from chapters import CHAPTERS, ROOT, cells

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# Wheel and sdist


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(list(folder.iterdir())) == 2
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


def test_wheel_and_sdist_pass_twine_check(distributions: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *distributions.iterdir()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_package_page_shows_the_readme(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zipfile", "--extract", wheel, tmp_path]
    subprocess.run(command, check=True)
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    text = metadata.read_text().partition("\n\n")[2]
    page = readme_renderer.markdown.render(text)
    assert page is not None
    assert "<h1" in page
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    own = [link for link in links if link.startswith(repo_url.current() + "/")]
    readme = (ROOT / "README.md").read_text()
    assert len(own) == len(re.findall(r"\]\((?!https:)", readme)) > 0
    for link in links:
        assert link.startswith(("https://", "#")), "elsewhere, a relative link leads nowhere"
    for link in own:
        kind, branch, path = link.removeprefix(repo_url.current() + "/").split("/", 2)
        assert branch == "main"
        assert (ROOT / path).exists()
        assert kind == ("raw" if path.endswith(".png") else "blob")


def test_wheel_works_in_an_empty_environment(wheel: Path) -> None:
    path = ROOT / "_build" / "environments" / "wheel"
    shutil.rmtree(path, ignore_errors=True)
    python = empty_environment(path, *(Requirement(text).name for text in PROJECT["dependencies"]))
    before = freeze(python)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", wheel], check=True)
    (added,) = set(freeze(python)) - set(before)
    assert added.startswith("pinnlib @ file:")
    code = """
import importlib, pkgutil, pinnlib
for module in pkgutil.walk_packages(pinnlib.__path__, "pinnlib."):
    print(importlib.import_module(module.name).__file__)
"""
    done = subprocess.run(
        [python, "-c", code], cwd=path, check=True, capture_output=True, text=True
    )
    imported = {Path(file) for file in done.stdout.split()}
    (package,) = path.glob("lib/python*/site-packages/pinnlib")
    assert imported == set(package.rglob("*.py")) - {package / "__init__.py"}


def test_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    packed, tracked = (
        {name for name in names if name.startswith("pinnlib/")}
        for names in (zipfile.ZipFile(wheel).namelist(), repo_url.listed())
    )
    assert packed == tracked


# The workflow


def read_workflow(name: str) -> Any:
    # Strings only: else "on" is read as true, and 3.10 as 3.1.
    return yaml.load((ROOT / ".github/workflows" / f"{name}.yml").read_text(), yaml.BaseLoader)


WORKFLOW = read_workflow("book")


def test_workflow_runs_on_every_push() -> None:
    assert WORKFLOW["on"]["push"] == ""
    assert {"run": "make test"} in WORKFLOW["jobs"]["test"]["steps"]


def test_workflow_tests_the_python_versions_of_the_package() -> None:
    versions = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    classifier = "Programming Language :: Python :: 3."
    assert versions == [c.split()[-1] for c in PROJECT["classifiers"] if c.startswith(classifier)]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert "{}.{}".format(*sys.version_info) in versions


@pytest.mark.parametrize("name", ["book", "release", "weekly"])
def test_workflow_uses_actions_by_their_commit(name: str) -> None:
    workflow = read_workflow(name)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) for action in actions)


def test_workflow_may_do_no_more_than_it_must() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    test, publish = WORKFLOW["jobs"]["test"], WORKFLOW["jobs"]["publish"]
    assert "permissions" not in test
    assert test["steps"][0]["with"]["persist-credentials"] == "false"
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}
    assert all("run" not in step for step in publish["steps"])


def test_weekly_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in read_workflow("weekly")["jobs"]["check"]["strategy"]["matrix"]["command"]:
        target = command.rpartition("make ")[2]
        assert re.search(rf"^{target}: ", makefile, flags=re.MULTILINE)
    oldest = next(Requirement(d) for d in PROJECT["dependencies"] if d.startswith("torch"))
    assert f"torch{next(iter(oldest.specifier))}.0".replace(">=", "==") in command


def test_workflow_publishes_the_tested_site_from_main_only() -> None:
    test, publish = WORKFLOW["jobs"]["test"], WORKFLOW["jobs"]["publish"]
    on_main = "github.ref == 'refs/heads/main'"
    assert publish["if"] == on_main
    assert publish["needs"] == "test"
    assert test["steps"][-1]["if"].startswith(f"{on_main} && ")
    folder = test["steps"][-1]["with"]["path"].removesuffix("/_build/html")
    assert f"--path-output {folder}\n" in (ROOT / "Makefile").read_text()


# One address


def test_address_is_the_same_everywhere() -> None:
    slug, site, _ = repo_url.names(repo_url.current())
    owner, name = slug.split("/")
    for path, text in repo_url.files().items():
        for before in re.split(rf"/{re.escape(name)}\b", text)[:-1]:
            for found in re.findall(r"[\w.-]+$", before[-100:]):  # all of it would take seconds
                assert found in {owner, site.partition("/")[0]}, path


@pytest.mark.parametrize(
    "file", ["_config.yml", "README.md", "index.md", "pyproject.toml", "CITATION.cff"]
)
def test_file_has_the_address(file: str) -> None:
    assert repo_url.current() in (ROOT / file).read_text()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_set_up_cell_has_the_address(chapter: str) -> None:
    assert f'"{repo_url.current()}"' in cells(CHAPTERS[chapter], "code")[0].source


def test_address_is_somebodys_own_or_cannot_be_anybodys() -> None:
    owner = repo_url.names(repo_url.current())[0].split("/")[0]
    assert repo_url.ADDRESS.fullmatch(repo_url.current()) or owner == "your.account"


def test_new_address_is_set_everywhere_and_back(tmp_path: Path) -> None:
    before = repo_url.files()
    for path, text in before.items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(text.encode())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)

    def set_address(url: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, tmp_path / "tools" / "repo_url.py", url]
        return subprocess.run(command, capture_output=True, text=True)

    new = "/".join(["https:", "", "github.com", "Somebody-Else", "another"])
    assert set_address(f"{new}.git/").returncode == 0
    old = repo_url.names(repo_url.current())
    changed = 0
    for path, text in before.items():
        new_text = (tmp_path / path.relative_to(ROOT)).read_text()
        assert not any(name in new_text for name in old)
        for now, then in zip(repo_url.names(new), old, strict=True):
            assert new_text.count(now) == text.count(then)
        changed += new_text != text
    assert changed >= 5 + len(CHAPTERS)
    for wrong in ("", "pinnlib", "https://github.com/jane", "https://github.com/a.b/c"):
        assert "is not an address" in set_address(wrong).stderr
