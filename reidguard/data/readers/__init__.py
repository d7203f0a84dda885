"""Readers of published and custom datasets, one module per family.

Importing this package imports every module in it, so a new reader needs no other registration than
its :func:`~reidguard.data.register_dataset` decorator.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
