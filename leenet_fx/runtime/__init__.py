"""Conditional execution: stages, controllers, streaming, compilation."""
