"""The blocks of the page "My PINN does not train", run as they stand there, and its text."""

import math
import re
from typing import Any

import pytest
import torch
from test_book import RESULT, prose

from chapters import ROOT, blocks

PAGE = "my_pinn_does_not_train"
TEXT = (ROOT / "reference" / f"{PAGE}.md").read_text()
FIRST, SECOND, *REST = blocks(f"{PAGE}.md")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def run(block: tuple[str, str, str], names: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """What it prints is what the page shows: the same words, and numbers of the same size."""
    heading, code, output = block
    exec(compile(code, heading, "exec"), names)
    shown, printed = output, capsys.readouterr().out
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split()
    for a, b in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        assert math.isclose(float(a), float(b), rel_tol=0.9, abs_tol=0.1)
    for match in re.finditer(r"[^\n]*\berror ([\d.]+)", printed):
        is_bad = re.search(r"plain|weight 1 |weight 100000 ", match[0])
        assert float(match[1]) > 0.9 if is_bad else float(match[1]) < 0.15


def test_first_blocks_diagnose_and_balance(capsys: pytest.CaptureFixture) -> None:
    names: dict[str, Any] = {}
    run(FIRST, names, capsys)
    first = names["losses"](names["model"])
    assert first["pde"] < 0.1 * names["losses"](names["network"]())["pde"], "the loss falls"
    run(SECOND, names, capsys)


@pytest.mark.parametrize("block", REST, ids=[heading for heading, _, _ in REST])
def test_other_block(block: tuple[str, str, str], capsys: pytest.CaptureFixture) -> None:
    """After what the first two define, without their trainings."""
    names: dict[str, Any] = {}
    for _, code, _ in (FIRST, SECOND):
        exec(re.split(r"^(?:model|trials) = ", code, flags=re.MULTILINE)[0], names)
    names["model"] = names["network"]()
    assert block[2] or "\nassert " in block[1]
    torch.manual_seed(0)
    run(block, names, capsys)


def test_numbers_in_prose_are_computed() -> None:
    computed = "\n".join(code + output for _, code, output in (FIRST, SECOND, *REST))
    for number in RESULT.findall(prose(TEXT)):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", computed), number


def test_each_remedy_of_the_table_has_a_block() -> None:
    """And each section with a block is a remedy that the table names."""
    linked = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    for heading in {heading for heading, _, _ in REST} - {SECOND[0]}:
        assert re.sub(r"[^\w ]", "", heading.lower()).replace(" ", "-") in linked, heading


@pytest.mark.parametrize(
    "words",
    [
        *("PINN not converging", "not converge", "loss decreases", "solution is wrong"),
        *("Trivial solution u = 0", "NaN", "GPU", "Inverse problem", "spectral bias", "NTK"),
        "L-BFGS",
    ],
)
def test_uses_the_words_that_people_search(words: str) -> None:
    assert words in TEXT


@pytest.mark.parametrize("page", ["README.md", "index.md", "reference/own_pinn.md"])
def test_is_linked(page: str) -> None:
    assert f"{PAGE}.md" in (ROOT / page).read_text()
