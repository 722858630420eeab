"""The built site: no dead link or anchor, and every page in llms.txt. Needs Sphinx and ten seconds."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

DOCS = Path(__file__).parents[1] / "docs"


class Page(HTMLParser):
    """The ids of a page, and where it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.ids, self.links = set[str](), list[str]()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_link_is_dead(site: Path) -> None:
    pages = {file: Page(file) for file in site.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            known = pages.get(target)
            if not target.exists() or (parts.fragment and known and unquote(parts.fragment) not in known.ids):
                dead.append(f"{file.relative_to(site)}: {link}")
    assert dead == []


def test_llms_txt_has_every_page(site: Path) -> None:
    told = (site / "llms.txt").read_text()
    listed = set(re.findall(r"\]\(markdown/(.+)\.md\)", told))
    assert listed == {str(file.relative_to(DOCS).with_suffix("")) for file in DOCS.rglob("*.md")}
    for name in listed:
        assert "{{ " not in (site / "markdown" / f"{name}.md").read_text()
