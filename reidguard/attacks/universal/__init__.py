"""Universal attacks: learnt once on training images, then applied to any image."""
