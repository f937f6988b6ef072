"""The playground: its modules compute what pinnlib computes, and its page does what it says."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
import torch
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Browser, Error, Page
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from website import SITE, needs_site, visit, wait_for_step

from chapters import ROOT
from pinnlib import GradientBalancer, balanced_backward
from pinnlib.evaluation import relative_l2_error
from pinnlib.gradients import gradient_matrix, mean_abs
from pinnlib.networks import MLP
from pinnlib.problems import Helmholtz, KleinGordon
from pinnlib.weighting import Follow, Ratio

FOLDER = ROOT / "extra" / "playground"


class SlowerKleinGordon(KleinGordon):
    def exact(self, x: Tensor) -> Tensor:
        x, t = x.split(1, dim=-1)
        u: Tensor = x * torch.cos(3.5 * math.pi * t) + (x * t) ** 3
        return u

    def source(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        u = self.exact(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        second = [torch.autograd.grad(first[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)]
        f: Tensor = second[1][:, 1:] - second[0][:, :1] + u**3
        return f.detach()


class SlowerHelmholtz(Helmholtz):
    a = (1.0, 3.0)


PROBLEMS = {"klein-gordon": SlowerKleinGordon(), "helmholtz": SlowerHelmholtz()}
RULES: dict[str, Any] = {
    "plain": lambda alpha: {"data": 1.0, "pde": 1.0},
    "constant": lambda alpha: {"data": 1.0, "pde": 0.02},
    "simplified": lambda alpha: GradientBalancer.simplified(alpha=alpha),
    "root": lambda alpha: GradientBalancer(["data", "pde"], Follow(Ratio(weighted=True), alpha)),
}


def node() -> str:
    """The Node that Playwright brings, or another."""
    try:
        return compute_driver_executable()[0]
    except Error:
        return shutil.which("node") or pytest.skip("no Node: sudo apt install nodejs")


def under_node(script: str, *args: Any, **given: Any) -> Any:
    """What a script of this folder prints, given arguments and an input."""
    command = [node(), ROOT / "tests" / script, *map(str, args)]
    given_text = json.dumps(given)
    done = subprocess.run(command, input=given_text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("problem_name", PROBLEMS)
@pytest.mark.parametrize(("rule", "alpha"), [("plain", 0.9), ("constant", 0.5),
                                             ("simplified", 0.1), ("root", 0.3)])  # fmt: skip
def test_fifty_steps_are_those_of_pinnlib(
    problem_name: str, rule: str, alpha: float, generator: torch.Generator
) -> None:
    problem = PROBLEMS[problem_name]
    model = MLP(problem.domain, width=32, depth=2, generator=generator).double()
    params = list(model.parameters())
    batches = [
        {name: x.double() for name, x in problem.sample(32, generator).items()} for _ in range(50)
    ]
    found = under_node(
        "playground.mjs",
        settings={"problem": problem_name, "rule": rule, "alpha": alpha, "lambda": 0.02, "seed": 1},
        theta=parameters_to_vector(params).tolist(),
        batches=[{name: x.tolist() for name, x in batch.items()} for batch in batches],
    )
    assert len(found["steps"]) == len(batches)

    grid = problem.grid(48).double().reshape(48, 48, 2).transpose(0, 1).reshape(-1, 2)
    compare = {"field": model(grid), "exact": problem.exact(grid)}
    for name, expected in compare.items():  # float32 is enough for a picture
        torch.testing.assert_close(torch.tensor(found[name]), expected[:, 0].float())
    error = relative_l2_error(model, problem, 48)
    assert found["error"] == pytest.approx(error, rel=1e-5)

    optimizer = torch.optim.Adam(params, lr=0.01)
    balancer = RULES[rule](alpha)
    for batch, step in zip(batches, found["steps"], strict=True):
        losses = problem.losses(model, batch)
        G = gradient_matrix(problem.losses(model, batch), params)
        optimizer.zero_grad()
        weights = balanced_backward(losses, params, balancer)
        optimizer.step()
        expected = {
            "losses": torch.stack(list(losses.values())),
            "G": G,
            "sizes": mean_abs(G),
            "lambda": weights["pde"],
            "theta": parameters_to_vector(params),
        }
        for name, value in expected.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            found_there = torch.tensor(step[name], dtype=torch.float64)
            close = {"rtol": 1e-10, "atol": 1e-10 * value.abs().max().item()}
            torch.testing.assert_close(found_there, value, **close)


@pytest.mark.parametrize(
    ("rule", "expected"), [("constant", 0.02), ("plain", 1), ("simplified", 1), ("root", 1)]
)
def test_a_gradient_of_zero_has_no_ratio(rule: str, expected: float) -> None:
    code = f"""import {{ follow, rules }} from "{(FOLDER / "balancer.mjs").as_uri()}";
        console.log(follow(rules.{rule}, 1, [0.5, 0], 0.02));"""
    command = [node(), "--input-type=module", "--eval", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(found) == expected


def test_the_three_tries_lead_where_the_page_says() -> None:
    tries = under_node("playground_tries.mjs", 31, 32, 33)

    def each(name: str, value: str = "error") -> list[float]:
        return sorted(one[name][value] for one in tries)

    assert each("plain")[0] > 1  # more wrong than zero everywhere
    assert median(each("plain")) > 3
    assert 5 < median(each("plain", "ratio")) < 50
    assert median(each("balanced")) < 0.4
    assert each("balanced")[-1] < each("plain")[1]
    assert 1e-3 < median(each("balanced", "lambda")) < 0.1
    assert median(each("back")) > 2 * median(each("balanced"))
    assert each("collapse")[0] > 0.7
    assert 0.9 < median(each("collapse")) < 1.1
    assert median(each("collapse", "lambda")) < 3e-3
    assert median(each("root")) < 0.7


def test_small_enough_to_read() -> None:
    sources = {path: path.read_text() for path in FOLDER.iterdir() if path.is_file()}
    assert sum(len(text.encode()) for text in sources.values()) <= 40_000
    assert all(len(text.splitlines()) <= 150 for text in sources.values())
    hook = (ROOT / "_ext" / "playground.py").read_text().splitlines()
    assert len([line for line in hook if line.strip()]) <= 30


# The page in a browser


@contextmanager
def opened(browser: Browser, link: str = "", base: str = "", **context: Any) -> Iterator[Page]:
    """The playground, from a file unless a server is named; nothing may go wrong meanwhile."""
    base = base or SITE.as_uri() + "/"
    with visit(browser, base, f"reference/playground.html{link}", **context) as (page, trouble):
        yield page
        assert trouble == []


def shown(page: Page, name: str) -> str:
    return page.locator(f"[data-value={name}]").inner_text()


def steps(page: Page) -> int:
    return int(shown(page, "steps").removeprefix("step "))


def number(page: Page, name: str) -> float:
    return float(shown(page, name).removeprefix("= "))


def at_rest(page: Page) -> int:
    """The step at which it stands still, once all pictures that were under way have come."""
    before = -1
    while (now := steps(page)) != before:
        before = now
        page.wait_for_timeout(400)
    return now


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@needs_site
def test_the_failure_and_the_cure(browser: Browser, server: str) -> None:
    with opened(browser, "#seed=5", server) as page:
        wait_for_step(page, 600)
        press(page, "Pause")
        assert number(page, "error") > 2
        assert number(page, "lambda") == 1
        press(page, "2 balanced")
        page.get_by_label("seed").fill("5")
        wait_for_step(page, 900)
        press(page, "Pause")
        assert number(page, "error") < 1  # single steps reach 0.67 after step 900 in 24 seeds
        assert number(page, "lambda") < 0.1


@needs_site
def test_the_collapse_on_a_zero_boundary(browser: Browser) -> None:
    with opened(browser) as page:
        press(page, "3 collapse")
        wait_for_step(page, 900)
        assert page.locator("[value=helmholtz]").is_checked()
        assert number(page, "alpha") == 0.1
        assert 0.9 < number(page, "error") < 1.1
        assert number(page, "lambda") < 3e-3


@needs_site
def test_every_control_works(browser: Browser) -> None:
    with opened(browser, "#seed=4") as page:
        wait_for_step(page, 20)  # it starts by itself
        press(page, "Pause")
        before = at_rest(page)
        assert shown(page, "rate") == "at rest"
        press(page, "Step")
        wait_for_step(page, before + 1)
        assert steps(page) == before + 1
        press(page, "Reset")
        assert steps(page) == 0
        first = page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()")
        seed = page.get_by_label("seed")
        seed.fill("5")
        assert page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()") != first
        seed.fill("4")
        assert page.locator("canvas").first.evaluate("canvas => canvas.toDataURL()") == first

        page.locator("[name=lambda]").fill("-2")
        assert page.get_by_label("constant").is_checked()
        press(page, "Step")
        wait_for_step(page, 1)
        assert number(page, "lambda") == 0.01
        page.get_by_label("balanced, ratio", exact=True).check()
        page.locator("[name=alpha]").fill("0.5")
        press(page, "Step")
        wait_for_step(page, 2)
        assert number(page, "lambda") != 0.01
        kept = number(page, "lambda")
        page.get_by_label("constant").check()  # at the weight in force
        press(page, "Step")
        wait_for_step(page, 3)
        assert number(page, "lambda") == kept
        page.get_by_label("Helmholtz").check()
        assert steps(page) == 0
        assert "y up, from -1 to 1" in shown(page, "axes")
        press(page, "Train")
        wait_for_step(page, 20)


@needs_site
def test_a_link_holds_the_settings(browser: Browser) -> None:
    settings = {"problem": "helmholtz", "rule": "root", "alpha": "0.25", "seed": "7"}
    link = "#" + "&".join(f"{name}={value}" for name, value in settings.items())
    with opened(browser, link) as page:
        press(page, "Copy link")
        page.wait_for_function("document.querySelector('[role=status]').innerText.includes('link')")
        with opened(browser, page.evaluate("location.hash")) as other:
            for name, value in settings.items():
                chosen = f"form => form.elements.{name}.value"
                assert other.locator(".playground form").evaluate(chosen) == value
    with opened(browser, "#rule=best&alpha=7&seed=3&lamda=2") as page:
        said = page.get_by_role("status").inner_text()
        for refused in ("rule=best", "alpha=7", "lamda=2"):
            assert refused in said
        assert page.get_by_label("seed").input_value() == "3"
        assert page.get_by_label("plain, λ = 1").is_checked()


@needs_site
def test_a_loss_that_is_not_finite_stops_it(browser: Browser, server: str) -> None:
    context = browser.new_context()
    right = "data[k] + this.lambda * pde[k]"
    wrong = "(this.steps === 30 ? NaN : data[k])"  # so that the second loss after it is none

    def broken(route: Any) -> None:
        body = route.fetch().text()
        assert right in body
        route.fulfill(body=body.replace(right, wrong), content_type="text/html; charset=utf-8")

    context.route("**/playground.html", broken)
    page = context.new_page()
    page.goto(f"{server}reference/playground.html")
    status = page.get_by_role("status")
    status.get_by_text("The loss is not finite at step 32").wait_for()
    assert "Reset" in status.inner_text()
    assert page.get_by_role("button", name="Train", exact=True).is_visible()
    press(page, "Reset")
    assert steps(page) == 0
    context.close()


@needs_site
def test_a_page_that_nobody_watches_waits(browser: Browser) -> None:
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with opened(browser) as page:
        wait_for_step(page, 20)
        page.evaluate(hide, True)
        before = at_rest(page)
        page.evaluate(hide, False)
        wait_for_step(page, before + 20)


@needs_site
def test_it_keeps_still_for_those_who_ask(browser: Browser) -> None:
    with opened(browser, reduced_motion="reduce") as page:
        page.wait_for_timeout(300)
        assert steps(page) == 0
        press(page, "Train")
        wait_for_step(page, 20)


@needs_site
def test_it_speaks_when_something_happened_and_no_more(browser: Browser) -> None:
    with opened(browser) as page:
        page.evaluate("""() => {
            window.said = 0;
            new MutationObserver(changes => { window.said += changes.length; })
                .observe(document.querySelector("[role=status]"), {childList: true});
        }""")
        wait_for_step(page, 100)
        assert page.evaluate("said") == 0
        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        assert re.search(r"Paused.*relative error", page.get_by_role("status").inner_text())
        page.locator("[name=lambda]").focus()
        page.keyboard.press("ArrowLeft")
        assert page.get_by_label("constant").is_checked()
        assert page.locator("[name=lambda]").get_attribute("aria-valuetext")


@needs_site
@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_moves_about(browser: Browser, width: int) -> None:
    watch = """() => {
        window.shift = 0;
        new PerformanceObserver(list => {
            for (const entry of list.getEntries()) window.shift += entry.value;
        }).observe({type: "layout-shift", buffered: true});
    }"""
    with opened(browser, viewport={"width": width, "height": 800}) as page:
        page.evaluate(watch)
        wait_for_step(page, 100)
        press(page, "3 collapse")
        wait_for_step(page, 100)
        assert page.evaluate("shift") < 0.05
        assert page.evaluate("performance.getEntriesByName('first picture').length")
