import subprocess
import sys
from pathlib import Path

import pytest
from mutants import draw, mutants

TOOL = Path(__file__).resolve().parent.parent / "tools" / "mutate.py"
TOY = """\
def double(x: int = 0) -> int:
    if x is None:
        raise TypeError(f"x is {1 + 1}")
    return 2 * x


def untested(x):
    return x + 1
"""
TEST = """\
import pytest
from pinnlib.toy import double

def test_double():
    assert (double(), double(3)) == (0, 6)
    with pytest.raises(TypeError, match="x is 2"):
        double(None)
"""


def changes(source):
    return [(mutant.before, mutant.after) for mutant in mutants(source.encode())]


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("a < b", ["(a <= b)"]),
        ("a + b", ["(a - b)"]),
        ("a and b", ["(a or b)"]),
        ("not a", ["a"]),
        ("x[-1]", ["x[-2]", "x[0]"]),
        ("x[a:]", ["x[:]"]),
        ("1.5 if a else b", ["1.5 if (not (a)) else b", "3.0 if a else b"]),
        ("[a for a in b if a]", ["[a for a in b if (not (a))]"]),
        ("f(a, b=True)", ["f(a)", "f(a, b=False)"]),
        ("zip(a, strict=True)", []),
        ("x.detach()", ["x"]),
        ("min(a)", ["max(a)"]),
        ('f"{a + 1}"', []),
    ],
)
def test_expressions(line, after):
    assert changes(f"é = {line}  # α") == [(f"é = {line} # α", f"é = {a} # α") for a in after]


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("return x", ["return None"]),
        ("raise ValueError(1 + 1)", ["pass"]),
        ("f()", ["pass"]),
        ("self.a = b", ["pass"]),
        ("x += a", ["pass", "x -= a"]),
        ('"""A text, 1 + 1."""', []),
        ("return", []),
        ("x: Tuple[1, 2] = a", []),
        ("Row = int | None", []),
        ("import a", []),
    ],
)
def test_statements(line, after):
    assert changes(line) == [(line, a) for a in after]


def test_draws_repeat():
    found = mutants(TOOL.read_bytes())
    drawn = draw(found, 30, "0 toy")
    assert len(set(drawn)) == 30
    assert drawn == draw(mutants(TOOL.read_bytes()), 30, "0 toy") != draw(found, 30, "1 toy")
    assert draw(found, 10**6, "0") == found


def test_what_is_tested_is_killed_and_the_rest_survives(tmp_path):
    """In a package that has the name of the installed one."""
    for name, text in {"pinnlib/__init__": "", "pinnlib/toy": TOY, "tests/test_toy": TEST}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    command = [sys.executable, TOOL, "--root", tmp_path, "--preload", "", "--report", "report.md"]
    run = subprocess.run(
        [*command, "--at-least", "95"], cwd=tmp_path, capture_output=True, text=True
    )
    report = (tmp_path / "report.md").read_text()
    lines = [line for line in report.splitlines() if line.startswith("-")]
    assert run.returncode == 1, run.stderr
    assert run.stdout == report
    assert "| pinnlib/toy.py | 12 | 8 | 0 | 4 | 66.7 % |" in report
    assert len(lines) == 4
    assert all(line.startswith("- survived: pinnlib/toy.py:8 `return x + 1`") for line in lines)
    assert (tmp_path / "pinnlib/toy.py").read_text() == TOY
