"""Fuzz tests: every parser gets thousands of damaged files."""
