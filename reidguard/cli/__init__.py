"""The command ``reidguard``: parse, call the library, print."""

from reidguard.cli.app import main

__all__ = ["main"]
