"""Parts of an exit branch: necks, heads, gates, and branches composed of them."""

# Register the composed branches with the first import of a part.
from leenet_fx.parts import compose as compose
