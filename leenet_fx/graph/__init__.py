"""How a model becomes a graph of blocks with costs."""
