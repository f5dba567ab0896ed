"""Pictures of a report, as in the documentation: its head with the plots, and its table of rows.

    python -m tests.benchmarks.report_picture larf-demo/report.html examples/pictures

Writes ``report.png`` and ``report-rows.png``.
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, MARGIN, ROWS = 1100, 10, 4
"""Width and lower margin in pixels, and number of rows of the table."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme="light")
        page.goto(arguments.page.resolve().as_uri())
        plots = bottom(page.locator("figure:has([aria-labelledby=map-caption])"))
        picture(page, arguments.folder / "report.png", 0, plots)
        rows = page.locator("#explore").bounding_box()["y"]
        picture(page, arguments.folder / "report-rows.png", rows, bottom(page.locator("#table-rows tr").nth(ROWS - 1)))
        browser.close()


def bottom(element):
    box = element.bounding_box()
    return box["y"] + box["height"]


def picture(page, path, top, end):
    clip = {"x": 0, "y": top, "width": WIDTH, "height": end + MARGIN - top}
    page.screenshot(path=path, full_page=True, clip=clip)


if __name__ == "__main__":
    main()
