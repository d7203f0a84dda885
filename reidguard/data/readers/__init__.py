"""Readers of published and home-made datasets, one file for each family."""
