"""How the virtual people of :mod:`reidguard.data` are drawn: with numpy and Pillow, never torch."""
