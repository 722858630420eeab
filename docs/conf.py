"""The site, built by `make docs`: nothing is fetched, and no weights are needed."""

import re
import sys
from importlib import metadata
from pathlib import Path

import typer.main
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from qfpass.tools.cli import app as command_line  # noqa: E402

project = "qfpass"
author = "the authors of qfpass"
project_copyright = "the authors of qfpass, Apache-2.0"
release = version = metadata.version("qfpass")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings mark code by single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are long enough without; docstrings give shapes and dtypes
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_favicon = "_static/favicon.svg"
html_title = "qfpass"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["filter.js"]
html_show_sphinx = False
html_copy_source = False  # the build writes Markdown of its own; see fill


def unlisted_pages() -> list[str]:
    """Pages of this folder, not of those below, that no list of index.md names."""
    listed = set(re.findall(r"^([a-z_/]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    return sorted(page.stem for page in DOCS.glob("*.md") if page.stem not in {*listed, "index"})


def commands() -> str:
    """The commands and their options, as Markdown."""
    group = typer.main.get_command(command_line)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="qfpass"), name="qfpass")
    return re.sub(r"\A# .*\n", "", text)


def of_root(name: str) -> str:
    """A page of the repository's root, with its links as they are from this folder."""
    text = (DOCS.parent / name).read_text()
    for there, here in (
        ("(docs/", "("),
        ("(CONTRIBUTING.md", "(contributing.md"),
        ("(CHANGELOG.md", "(changelog.md"),
    ):
        text = text.replace(there, here)
    return text


MADE = {
    "unlisted pages": lambda: "\n".join(unlisted_pages()),
    "commands": commands,
    "readme": lambda: of_root("README.md"),
    "contributing": lambda: of_root("CONTRIBUTING.md"),
    "changelog": lambda: of_root("CHANGELOG.md"),
}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what is made in the place of its name, `{{ name }}`, and keep the page as Markdown for llms.txt."""
    for name, make in MADE.items():
        if (marker := f"{{{{ {name} }}}}") in source[0]:
            source[0] = source[0].replace(marker, make())
    kept = Path(app.outdir) / "markdown" / f"{page}.md"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(source[0])


def write_llms_txt(app: Sphinx, error: Exception | None) -> None:
    """Write llms.txt (llmstxt.org): every page with its title and where its Markdown lies."""
    if error or app.builder.format != "html":
        return
    titles = {name: title.astext() for name, title in app.env.titles.items()}
    head = (DOCS / "llms_head.txt").read_text()
    lines = [f"- [{titles[name]}](markdown/{name}.md)" for name in sorted(titles)]
    (Path(app.outdir) / "llms.txt").write_text(head + "\n".join(lines) + "\n")


def made_anew(app: Sphinx, *_: object) -> list[str]:
    """Pages that are read in every build, since what they show is made from other files."""
    return [page for page in app.env.found_docs if "{{ " in (DOCS / f"{page}.md").read_text()]


def setup(app: Sphinx) -> None:
    """Register what this file adds."""
    app.connect("env-get-outdated", made_anew)
    app.connect("source-read", fill)
    app.connect("build-finished", write_llms_txt)
