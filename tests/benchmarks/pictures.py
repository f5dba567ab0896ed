"""Take the pictures of README, documentation and results again; needs headless Chromium and the extras demo and dev.

python -m tests.benchmarks.pictures larf-demo/

The folder holds the results of the demo, which are used if they are there and computed if not. `--report` takes that of
the report alone. memory.png is a plot, whose command is in docs/several-machines.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, FloatRect, Locator, Page, expect, sync_playwright

from larf_curate.demo.run import Demo
from larf_curate.report import write_report
from larf_curate.review import ReviewQueue
from larf_curate.scoring.selection import Selection
from larf_curate.server import EmbeddedServer

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
FROM_TESTS = {"filter": "review-filter", "find-similar": "review-similar", "hostile-markdown-image": "review-hostile"}
"""Screenshots of tests/review/test_browser.py and the pictures that they become."""
REPORT_ROWS = 4
"""Rows of the table in the picture of it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report", action="store_true", help="only report.png and report-rows.png")
    args = parser.parse_args()
    selection = demo_selection(args.folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        take_report(browser, args.folder)
        if not args.report:
            take_review(browser, selection)
    if not args.report:
        take_from_tests()


def demo_selection(folder: Path) -> Selection:
    """The flagged rows of the demo and their report; what the folder has already is not computed again."""
    if (folder / "selection" / "selection.json").exists():
        write_report(folder / "selection", folder / "report.html", profile=folder / "profile")
        return Selection.load(folder / "selection")
    run = Demo(folder=folder, say=print)
    return run.select(run.score())


def take_report(browser: Browser, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((folder / "report.html").resolve().as_uri())
    clip(page, "report", 0, bottom(page.locator("figure:has([aria-labelledby=map-caption])")))
    rows = page.locator("#explore").bounding_box()
    assert rows is not None
    clip(page, "report-rows", rows["y"], bottom(page.locator("#table-rows tr").nth(REPORT_ROWS - 1)))


def bottom(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def clip(page: Page, name: str, top: float, end: float) -> None:
    """Take the picture of a part of a page, given by its upper and lower end in pixels."""
    part: FloatRect = {"x": 0, "y": top, "width": 1200, "height": end + 10 - top}
    page.screenshot(path=PICTURES / f"{name}.png", full_page=True, clip=part)
    print(f"{name}.png")


def take_review(browser: Browser, selection: Selection) -> None:
    """The first page of the queue, as a reviewer sees it after signing in."""
    with tempfile.TemporaryDirectory() as home, EmbeddedServer(home, port=0, say=print) as server:
        with ReviewQueue(url=server.url, api_key=server.api_key) as queue:
            url = queue.push(selection).url
        reviewer = server.add_user("reviewer")
        page = browser.new_page(viewport={"width": 1400, "height": 1120})
        page.goto(f"{server.url}/sign-in")
        page.fill("input[type=text]", reviewer.username)
        page.fill("input[type=password]", reviewer.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda address: "sign-in" not in address)
        page.goto(url)
        expect(page.locator(".chat__bubble").last).to_be_visible(timeout=20_000)
        expect(page.get_by_text("percentile 100.0").first).to_be_visible()
        expect(page.get_by_text("Sort", exact=True)).to_be_visible(timeout=20_000)
        shoot(page, "review")


def take_from_tests() -> None:
    """Pictures of rows that show what the page can do, from the tests that compare what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "tests/review/test_browser.py"]
        subprocess.run(command, env={**os.environ, "LARF_CURATE_SCREENSHOTS": folder}, check=True)
        for name, picture in FROM_TESTS.items():
            (PICTURES / f"{picture}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())
            print(f"{picture}.png")


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=PICTURES / f"{name}.png")
    print(f"{name}.png")


if __name__ == "__main__":
    main()
