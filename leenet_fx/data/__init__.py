"""Labelled images in four splits, and transforms for them."""
