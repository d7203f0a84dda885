"""Virtual people: pedestrians rendered from nothing but numbers."""

from reidguard.data.virtual.dataset import contact_sheet, read_virtual, write_virtual
from reidguard.rendering.domains import VIRTUAL_DOMAINS
from reidguard.rendering.render import render_person

__all__ = ["VIRTUAL_DOMAINS", "contact_sheet", "read_virtual", "render_person", "write_virtual"]
