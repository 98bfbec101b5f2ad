"""How what is new gets trained."""
