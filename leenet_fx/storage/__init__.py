"""Networks with exits on disk, weights of backbones, and files that are written atomically."""

import lazy_loader

# The command line reads and writes files before it needs torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"backbone_weights": ["load_backbone_weights"]}
)
