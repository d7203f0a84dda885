"""People and places drawn from nothing but numbers; imports numpy and Pillow, never torch."""
