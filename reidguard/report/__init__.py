"""One HTML page that needs nothing else: tables, pictures, rank lists."""

from reidguard.report.html import (
    gallery,
    page,
    paragraph,
    picture,
    ranked,
    save_page,
    section,
    table,
)
from reidguard.report.pictures import amplified, as_image, color_cube

__all__ = [
    "amplified",
    "as_image",
    "color_cube",
    "gallery",
    "page",
    "paragraph",
    "picture",
    "ranked",
    "save_page",
    "section",
    "table",
]
