"""A model, an attack and a dataset that reidguard finds through entry points."""
