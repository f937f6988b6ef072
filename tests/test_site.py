"""The website in a browser: nothing from outside, readable for all, no link astray.

It is the site that ``make test`` builds from the committed outputs.
"""

import ast
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, Page
from repo_url import current, names
from sphinxcontrib.katex import katex_version
from test_book import MODULES, public_names
from website import SITE, needs_site, visit

from chapters import CHAPTERS, ROOT, cells

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [
    f"{file}.html"
    for file in [TOC["root"], *(c["file"] for part in TOC["parts"] for c in part["chapters"])]
]
CHAPTER_PAGES = [page for page in PAGES if page.startswith("chapters/")]
MORE_CHAPTERS = CHAPTER_PAGES[1:]  # of the same kind as the first

pytestmark = needs_site
every_page = pytest.mark.parametrize("page_name", [*PAGES, "search.html"])


# Offline

PICTURES_LOADED = """() => [...document.querySelectorAll("main img")]
    .every(image => !image.checkVisibility() || (image.complete && image.naturalWidth > 0))"""


# One of a kind. All are opened from files, below, where only a relative address leads anywhere.
@pytest.mark.parametrize("page_name", [PAGES[0], PAGES[1], CHAPTER_PAGES[0], "search.html"])
def test_nothing_comes_from_outside(browser: Browser, server: str, page_name: str) -> None:
    with visit(browser, server, page_name) as (page, trouble):
        read(page)
        for _ in range(3):
            page.locator(".theme-switch-button:visible").first.click()
        for button in page.locator(".dropdown-launch-buttons > button:visible").all():
            button.click()
        for button in page.locator("button.copybtn").all()[:1]:
            button.dispatch_event("click")
        assert trouble == []


def read(page: Page) -> None:
    """All of it, with what is folded, and the pictures that wait until a reader comes near."""
    page.locator("main img").evaluate_all("all => all.forEach(one => (one.loading = 'eager'))")
    page.locator("main summary").evaluate_all("all => all.forEach(one => one.click())")
    page.evaluate("document.fonts.ready.then(() => 0)")
    page.wait_for_function(PICTURES_LOADED)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_search_finds_the_chapter(browser: Browser, server: str, scheme: str) -> None:
    base = server if scheme == "http" else SITE.as_uri() + "/"
    with visit(browser, base, "search.html?q=gradient+norms") as (page, trouble):
        page.locator("#search-results li a", has_text="Gradient norms").first.wait_for()
        if scheme == "http":  # from a file, a browser reads no other page for its excerpt
            page.locator("#search-results .context").first.wait_for()
            page.wait_for_load_state("networkidle")
            assert trouble == []


# Not the search, which is a script, and of the chapters one.
@pytest.mark.parametrize("page_name", [page for page in PAGES if page not in MORE_CHAPTERS])
def test_text_shows_without_javascript(browser: Browser, server: str, page_name: str) -> None:
    with visit(browser, server, page_name, java_script_enabled=False) as (page, _):
        assert page.locator("html").get_attribute("data-theme") == "light"
        hidden = page.locator("article :is(p, li, pre, h1, h2, h3, td, dt, dd, img)").evaluate_all(
            """elements => elements
                .filter(e => !e.closest("details:not([open]), thead"))
                .filter(e => !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true}))
                .map(e => e.outerHTML)"""
        )
        assert hidden == []
        folds = page.locator("article details:not([open]) > summary")
        folds.evaluate_all("all => all.forEach(one => one.click())")
        assert folds.count() == 0


@pytest.mark.parametrize("colors", ["light", "dark"])
def test_colours_do_not_wait_for_scripts(browser: Browser, server: str, colors: Any) -> None:
    page = browser.new_page(color_scheme=colors)
    page.route("**/*.js*", lambda route: route.abort())
    page.goto(f"{server}chapters/01_plain_pinn.html", wait_until="load")
    assert page.locator("html").get_attribute("data-theme") == colors
    for part in ("body", "div.highlight pre"):
        painted = page.locator(part).first.evaluate("e => getComputedStyle(e).backgroundColor")
        red = int(painted.partition("(")[2].partition(",")[0])
        assert (red > 200) == (colors == "light")
    page.close()


def test_which_setting_prints_on_one_sheet(browser: Browser, server: str) -> None:
    with visit(browser, server, "reference/which_setting.html") as (page, _):
        sheets = page.pdf(
            format="A4", margin=dict.fromkeys(("top", "right", "bottom", "left"), "1.5cm")
        )
        assert len(re.findall(rb"/Type\s*/Page\b", sheets)) == 1


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_film_stands_still_for_those_who_ask(browser: Browser, server: str, motion: Any) -> None:
    name = "chapters/03_balanced_trainer.html"
    with visit(browser, server, name, reduced_motion=motion) as (page, _):
        image = page.locator("figure picture img")
        shown = image.evaluate("image => image.currentSrc")
        moving, still = image.get_attribute("src"), page.locator("picture source")
        assert shown == (still.get_attribute("srcset") if motion == "reduce" else moving)
        assert len(b64decode(moving.partition(",")[2])) < 400e3
        page.locator("figure summary").click()
        assert not image.is_visible()


# Readable

# What is wider than a box that neither scrolls nor lets it stick out.
CUT_OFF = """() => [...document.querySelectorAll("main *")]
    .filter(e => ["hidden", "clip"].includes(getComputedStyle(e).overflowX))
    .filter(e => !e.closest(".katex") && e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1)
    .map(e => `${e.tagName} ${e.className}: ${e.textContent.trim().slice(0, 80)}`)"""
# Equations: one that has to be scrolled cannot be read as a whole.
TOO_WIDE = """() => [...document.querySelectorAll("main .katex-display .katex-html")]
    .filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.parentElement.textContent)"""
DIMMED_OR_FRAMED = """images => images
    .map(image => [getComputedStyle(image), image.outerHTML.slice(0, 200)])
    .filter(([style, _]) => style.filter != "none" || style.padding != "0px")
    .map(([_, html]) => html)"""


# What can be scrolled must be within reach of the keyboard.
OUT_OF_REACH = """() => [...document.querySelectorAll("main :is(pre, div)")]
    .filter(e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX))
    .filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0)
    .filter(e => !e.querySelector("a, [tabindex='0']"))
    .map(e => `${e.className}: ${e.textContent.trim().slice(0, 80)}`)"""
# Words of code and docstrings, paragraphs, cells, formulas and entries of the contents are
# of few kinds, thousands of each, and the checker takes milliseconds for every one: one of a kind,
# the last, stands for all.
KEEP_ONE_OF_A_KIND = """() => {
    const words = ":is(pre, dl.py) :not(dl, dt, dd, ul, li), p:not(th *), p :not(a, a *), td, "
        + ":is(.nav-link, .copybtn, .katex), :is(.nav-link, .copybtn, .katex) *";
    const seen = new Set();
    for (const e of [...document.querySelectorAll(words)].reverse()) {
        const kind = [e, e.parentElement].map(e => `${e.tagName} ${e.className}`).join(" in ");
        if (seen.has(kind) && (!e.children.length || e.matches(".katex"))) e.remove();
        seen.add(kind);
    }
}"""


# The colours are the same at all widths, so that two of the four pairs show all there is to see.
SCREENS = [
    {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark"},
]


def look(page: Page, screen: dict[str, Any]) -> None:
    """As on another screen, as soon as the page has noticed."""
    page.set_viewport_size(screen["viewport"])
    page.emulate_media(color_scheme=screen["color_scheme"])
    colors = "colors => document.documentElement.dataset.theme == colors"
    page.wait_for_function(colors, arg=screen["color_scheme"])
    page.wait_for_function(f"({OUT_OF_REACH})().length == 0", timeout=5000)
    page.evaluate("Promise.allSettled(document.getAnimations().map(a => a.finished)).then(() => 0)")


@every_page
def test_everybody_can_read_it(browser: Browser, page_name: str) -> None:
    with visit(browser, SITE.as_uri() + "/", page_name, **SCREENS[0]) as (page, trouble):
        read(page)
        page.add_style_tag(content="main * {content-visibility: visible !important}")
        page.evaluate("() => { dispatchEvent(new Event('resize')) }")
        for screen in SCREENS:
            look(page, screen)
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1], "the page scrolls sideways"
            assert page.evaluate(CUT_OFF) == []
            assert page.evaluate(TOO_WIDE) == []
            assert page.locator("article img").evaluate_all(DIMMED_OR_FRAMED) == []
        assert trouble == []
        page.evaluate(KEEP_ONE_OF_A_KIND)
        check_with_axe(page)
        if page_name not in MORE_CHAPTERS:
            look(page, SCREENS[0])
            check_with_axe(page, runOnly=["color-contrast"])


def check_with_axe(page: Page, **rules: Any) -> None:
    # Without preload: it would look for the theme's style sheets in the wrong folder.
    options = {"resultTypes": ["violations"], "preload": False, **rules}
    result = Axe().run(page, options=options)
    assert result.violations_count == 0, result.generate_report()


def test_landing_page_says_it_all_on_one_screen(browser: Browser, server: str) -> None:
    screen = {"width": 1280, "height": 800}
    with visit(browser, server, "index.html", viewport=screen) as (page, _):
        for part in ("h1", "figure img", "table"):
            box = page.locator(f"article {part}").first.bounding_box()
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 800


# The pages as files


@cache
def parse(page_name: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / page_name).read_text(), "html.parser")


@cache
def anchors(page_name: str) -> set[str]:
    return {tag["id"] for tag in parse(page_name).select("[id]")}


@pytest.mark.parametrize("page_name", CHAPTER_PAGES)
def test_figures_have_alt_text_and_numbered_captions(page_name: str) -> None:
    figures = parse(page_name).select("article figure")
    captions = [figure.select_one("figcaption .caption-number").text for figure in figures]
    assert len(captions) == len(set(captions)) > 0
    assert all(re.fullmatch(r"Fig\. [\d.]+ ", caption) for caption in captions)
    assert parse(page_name).select("article img") == [
        image for figure in figures for image in figure.select("img") if len(image["alt"]) > 40
    ]


@every_page
def test_formulas_are_typeset(page_name: str) -> None:
    for formula in parse(page_name).select(".math"):
        assert formula.select_one(".katex-html"), formula.text
        assert formula.select_one(".katex-mathml annotation"), "nothing for a screen reader"
        assert not formula.select(".katex-error"), formula.text


def test_style_of_formulas_is_of_the_version_that_typesets_them() -> None:
    style = (ROOT / "extra" / "katex" / "katex.min.css").read_text()
    assert f'.katex-version:after{{content:"{katex_version}"}}' in style


@pytest.mark.parametrize("page_name", CHAPTER_PAGES)
def test_solutions_are_folded(page_name: str) -> None:
    folds = parse(page_name).select("article details:not(figure *, .hide)")  # not code
    assert 2 <= len(folds) <= 4
    for fold in folds:
        assert "open" not in fold.attrs
        assert fold.select_one("summary").text == "Solution"
        assert fold.select_one("div.highlight-python pre")


HERE = "http://here/"


def links(page_name: str) -> Iterator[tuple[Tag, str]]:
    """Each link of a page, with its address as seen from the root of the site."""
    for a in parse(page_name).select("[href], [src]"):
        yield a, urljoin(HERE + page_name, a.get("href") or a["src"])


@every_page
def test_internal_links_lead_somewhere(page_name: str) -> None:
    assert parse(page_name).select(".xref.myst:not(a *)") == [], "a link that was not resolved"
    for a, url in links(page_name):
        if url.startswith(HERE):
            path, anchor = urldefrag(url.removeprefix(HERE))
            target = unquote(path.partition("?")[0])
            assert (SITE / target).is_file(), a
            if anchor and target.endswith(".html"):
                assert unquote(anchor) in anchors(target), a


@pytest.mark.parametrize("page_name", PAGES)
def test_page_says_what_a_link_to_it_shows(page_name: str) -> None:
    page, site = parse(page_name), f"https://{names(current())[1]}/"
    content = {
        meta.get("name") or meta.get("property"): meta["content"]
        for meta in page.select("meta[content]")
    }
    heading = page.select_one("article h1").text.removesuffix("#")
    assert page.select_one("title").text.startswith(heading)
    assert 40 < len(content["description"]) <= 200
    assert content["og:description"] == content["description"]
    assert content["og:title"] == heading
    assert content["og:url"] == page.select_one("[rel=canonical]")["href"] == site + page_name
    assert (SITE / content["og:image"].removeprefix(site)).is_file()


def test_a_page_that_is_missing_leads_back_from_any_folder() -> None:
    """It stands in for any address, so that no link can be relative."""
    *_, root = names(current())
    addresses = [a.get("href") or a["src"] for a in parse("404.html").select("[href], [src]")]
    inside = [address for address in addresses if not address.startswith(("https://", "#"))]
    for address in inside:
        assert address.startswith(root)
        assert (SITE / urlsplit(address).path.removeprefix(root)).is_file(), address
    ways = {a["href"].removeprefix(root) for a in parse("404.html").select("article p a")}
    assert ways == {"index.html", "search.html", "reference/my_pinn_does_not_train.html"}


def test_sitemap_lists_every_page() -> None:
    site = f"https://{names(current())[1]}/"
    listed = ElementTree.parse(SITE / "sitemap.xml").iterfind(".//{*}loc")
    assert sorted(str(entry.text) for entry in listed) == sorted(site + page for page in PAGES)


@every_page
def test_page_is_light(page_name: str) -> None:
    images = {url for a, url in links(page_name) if a.name == "img" and url.startswith(HERE)}
    own = {SITE / url.removeprefix(HERE) for url in images}
    assert sum(path.stat().st_size for path in {SITE / page_name, *own}) < 2e6


def test_what_is_far_from_the_screen_is_not_laid_out(browser: Browser, server: str) -> None:
    phone = {"viewport": {"width": 375, "height": 667}}
    is_laid_out = "e => e.checkVisibility({contentVisibilityAuto: true})"
    with visit(browser, server, "chapters/03_balanced_trainer.html", **phone) as (page, _):
        boxes = page.locator(".bd-article pre")
        shown = boxes.evaluate_all(f"boxes => boxes.filter({is_laid_out}).length")
        assert shown < boxes.count() / 3
        code = page.locator(".bd-article div.cell:not(:has(details)) pre").last
        assert not code.evaluate(is_laid_out)
        code.scroll_into_view_if_needed()
        page.wait_for_function(is_laid_out, arg=code.element_handle())  # at the next frame
        page.wait_for_function("e => e.scrollWidth > e.clientWidth", arg=code.element_handle())
        page.wait_for_function("e => e.tabIndex == 0", arg=code.element_handle(), timeout=5000)


@pytest.mark.parametrize("page_name", PAGES)
def test_no_script_holds_up_the_text(page_name: str) -> None:
    page = parse(page_name)
    scripts = {urlsplit(s["src"]).path.split("/")[-1]: s for s in page.select("script[src]")}
    assert [n for n, s in scripts.items() if not s.has_attr("defer")] == [
        "documentation_options.js"
    ]
    assert "fontawesome.js" not in scripts  # 1.5 MB; the icons come from a font


def test_second_build_writes_nothing() -> None:
    source = SITE.parent.parent / "src"
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source]
    build = subprocess.run(
        [*command, "--path-output", SITE.parent.parent, "-W", "-n"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0 added, 0 changed, 0 removed" in build.stdout


# The API page


@cache
def of_api(selector: str) -> list[Tag]:
    return list(parse("reference/api.html").select(selector))


@pytest.mark.parametrize("name", public_names())
def test_api_entry(name: str) -> None:
    """An entry with an example that the tests run, and a way to the chapter that builds it."""
    entries = [dt for dt in of_api("dt[id^='pinnlib.']") if dt["id"].endswith(f".{name}")]
    assert entries
    example = re.compile(">>> ")
    assert any(entry.find_next_sibling("dd").find(string=example) for entry in entries)
    there = [a for a in of_api("article td a") if a["href"] == f"#{entries[0]['id']}"]
    assert there[0].find_parent("tr").select("a[href^='../chapters/']")


@pytest.mark.parametrize("name", sorted(CHAPTERS))
def test_code_of_a_chapter_links_to_the_api(name: str) -> None:
    linked = {url for _, url in links(f"chapters/{name}.html") if "reference/api.html#" in url}
    code = "\n".join(cell.source for cell in cells(CHAPTERS[name], "code"))
    for node in ast.parse(code).body:  # not what a script in a string imports
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pinnlib"):
            for alias in node.names:
                assert any(url.endswith(f".{alias.name}") for url in linked), alias.name
    assert MODULES


@pytest.mark.parametrize("name", sorted(CHAPTERS))
def test_chapter_opens_in_colab(name: str) -> None:
    slug, _, _ = names(current())
    button = f"https://colab.research.google.com/github/{slug}/blob/main/chapters/{name}.ipynb"
    assert button in [url for _, url in links(f"chapters/{name}.html")]
