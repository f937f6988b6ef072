"""Renew the pictures that the playground shows where there is no JavaScript: make stills

Each is a picture of the page itself, as ``make test`` built it last.
"""

from website import SITE, opened_browser, wait_for_step

from chapters import ROOT

TRIES = {"1 plain": 600, "2 balanced": 900, "3 collapse": 900}

with opened_browser() as browser:
    page = browser.new_page(viewport={"width": 720, "height": 900}, device_scale_factor=2)
    for name, steps in TRIES.items():
        page.goto((SITE / "reference" / "playground.html").as_uri())
        page.get_by_role("button", name=name).click()
        wait_for_step(page, steps)
        page.get_by_role("button", name="Pause").click()
        still = ROOT / "extra" / "playground" / "stills" / f"{name[0]}.jpg"
        page.locator(".pictures").first.screenshot(path=still, type="jpeg", quality=80)
