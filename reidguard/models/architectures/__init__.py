"""Networks for re-ID, one module per family.

Importing this package imports every module in it, so a new network needs no other registration than
its :func:`~reidguard.models.register_model` decorator.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
