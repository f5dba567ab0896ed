"""Hooks of mkdocs: pages from outside docs/ or from the code, and links that work on GitHub and on the site."""

import posixpath
import re
from pathlib import Path

from cli_reference import cli_reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from larf_curate.cli import main

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/larf-curate/larf-curate/blob/main"
SHOWN = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
"""Files of the repository that are pages of the site, by their paths; all of examples/results and pictures are too."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
"""The path in a Markdown link or picture that is relative: neither an address nor an anchor alone."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference of the command line, and pages and pictures from outside docs/."""
    for folder in ("examples/results", "examples/pictures"):
        for path in sorted((ROOT / folder).iterdir()):
            if path.suffix in (".md", ".png"):
                SHOWN[f"{folder}/{path.name}"] = f"{folder}/{path.name}"
    for path, page in SHOWN.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    page = cli_reference(main, "larf-curate")
    files.append(File.generated(config, "reference/cli.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository to their pages, or to GitHub if they are no pages.

    Raises:
        PluginError: If a link goes to a file that does not exist.
    """
    here = page.file.src_uri
    source = next((path for path, shown in SHOWN.items() if shown == here), f"docs/{here}")

    def target(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        shown = path.removeprefix("docs/") if path.startswith("docs/") else SHOWN.get(path)
        if shown:
            return posixpath.relpath(shown, posixpath.dirname(here) or ".")
        if not (ROOT / path).exists():
            raise PluginError(f"{source} links to {link[1]}, which does not exist")
        return f"{REPOSITORY}/{path}"

    # Code is left as it is: fences, indented blocks and spans.
    parts = re.split(r"(^```.*?^```|^    [^\n]*$|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if index % 2 else LINK.sub(target, part) for index, part in enumerate(parts))
