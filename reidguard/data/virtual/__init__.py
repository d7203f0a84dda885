"""Virtual people: pedestrians rendered from nothing but numbers."""

from reidguard.data.virtual.domains import VIRTUAL_DOMAINS
from reidguard.data.virtual.render import render_person

__all__ = ["VIRTUAL_DOMAINS", "render_person"]
