"""Attack and harden person re-identification models."""
