"""Virtual people: pedestrians rendered with numpy alone."""

from reidguard.virtual.dataset import contact_sheet, read_virtual, write_virtual
from reidguard.virtual.domains import VIRTUAL_DOMAINS
from reidguard.virtual.render import render_person

__all__ = ["VIRTUAL_DOMAINS", "contact_sheet", "read_virtual", "render_person", "write_virtual"]
