"""The page at `/`: one file of HTML with its style and its program inside, so that nothing else has to be fetched."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Page(NamedTuple):
    """html: UTF-8. policy: its Content-Security-Policy."""

    html: bytes
    policy: str


@cache
def page(*, needs_key: bool = False) -> Page:
    """needs_key: whether the API asks for one; the page then waits until one is typed in.

    The browser runs the one program and the one style whose hashes the policy names, and talks to this server only:
    what a model writes cannot become a program, nor load anything."""
    folder = files(__package__)
    html, style, program = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    whole = html.replace("/*key*/", "needed" if needs_key else "none")
    whole = whole.replace("/*style*/", style).replace("/*program*/", program)
    rules = {
        "default-src": "'none'",
        "script-src": f"'{_hash(program)}'",
        "style-src": f"'{_hash(style)}'",
        "connect-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return Page(whole.encode(), "; ".join(f"{name} {value}" for name, value in rules.items()))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
