"""Models as graphs of blocks with costs."""
