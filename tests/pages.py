"""What README and docs tell their readers to run: the fenced blocks of a page, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from places import DOCS, ROOT

PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*) -->\n+)?"
    r"^```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TITLE = re.compile(r'title="([^"]+)"')
WHOLE_PAGE = re.compile(r"<!-- not run, the whole page: ([^>]*) -->")
STARTS_WITH = re.compile(r"<!-- its commands start with: (.*?) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block. `title` is the file that it shows; `reason` why its commands are not run."""

    language: str
    title: str | None
    text: str
    reason: str | None

    @property
    def is_shell(self) -> bool:
        return self.language in ("console", "sh")

    @property
    def commands(self) -> list[str]:
        """Of a session (`console`) what stands behind `$ `, the rest being what was printed; else every line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line[2:] for line in lines if line.startswith("$ ")] or lines
        bare = [re.sub(r"(^|\s)#.*", "", line).strip() for line in typed]
        return [part.strip() for line in bare if line for part in line.split("&&")]


def blocks(path: Path) -> Iterator[Block]:
    """In the order of the page."""
    page = path.read_text(encoding="utf-8")
    whole = WHOLE_PAGE.search(page)
    for found in BLOCK.finditer(page):
        title = TITLE.search(found["options"])
        reason = found["reason"] or (whole[1] if whole else None)
        yield Block(found["language"], title[1] if title else None, found["text"], reason)


def starts_with(path: Path) -> list[str]:
    """What has to lie in the reader's folder before the page's first command."""
    found = STARTS_WITH.search(path.read_text(encoding="utf-8"))
    return found[1].split(", ") if found else []
