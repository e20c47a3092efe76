"""Every link of the built site that leads into it has a page and an anchor there.

python docs/_ext/links.py docs/_build/html
"""

import html.parser
import pathlib
import sys
from urllib.parse import unquote, urlsplit


class Page(html.parser.HTMLParser):
    """What a page links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Take note of a tag."""
        found = {name: value for name, value in attributes if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag not in ("link", "use"):
            self.links |= {found[name] for name in ("href", "src") if name in found}


def dead(folder: pathlib.Path) -> list[str]:
    """The links that lead nowhere, each with its page."""
    pages = {path.resolve(): Page(path.read_text()) for path in folder.rglob("*.html")}
    found = []
    for path, page in sorted(pages.items()):
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in known):
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return found


if __name__ == "__main__":
    broken = dead(pathlib.Path(sys.argv[1]))
    print("\n".join(broken) or "no dead links")
    sys.exit(bool(broken))
