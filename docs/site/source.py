"""Files outside docs/ that a page links to, such as recipes: each becomes a page, so that links work there too."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((\.\./[^)#\s]+)\)")
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".json": "json", ".txt": "text"}


def on_files(files: Files, config: Any) -> Files:
    """mkdocs' hook: add a page for every such file."""
    root, wanted = Path(config.docs_dir).parent, set()
    for page in files.documentation_pages():
        wanted |= {outside(page, link) for link in LINK.findall(page.content_string)}
    for path in sorted(wanted - {None}):
        text = (root / path).read_text(encoding="utf-8")
        language = LANGUAGES[posixpath.splitext(path)[1]]
        content = f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{language}\n{text}\n````\n"
        files.append(File.generated(config, f"source/{path}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs' hook: links to such files lead to their pages."""

    def link(found: re.Match[str]) -> str:
        path = outside(page.file, found[1])
        if path is None:
            return found[0]
        return f"]({posixpath.relpath(f'source/{path}.md', posixpath.dirname(page.file.src_uri) or '.')})"

    return LINK.sub(link, markdown)


def outside(page: File, link: str) -> str | None:
    """The linked file's path in the repository; None where it is a page of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link))
    return None if path.startswith("docs/") else path
