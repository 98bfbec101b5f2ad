"""How exits get into a graph, and how it runs then."""
