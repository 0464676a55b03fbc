"""The page at `/`: one HTML file, which loads nothing else."""

from __future__ import annotations

from importlib.resources import files

from starlette.responses import HTMLResponse

HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src data:",
    "Cache-Control": "no-store",
}


def page_response() -> HTMLResponse:
    """Chat in the browser."""
    html = files("pipo.serving").joinpath("page.html").read_text(encoding="utf-8")
    return HTMLResponse(html, headers=HEADERS)
