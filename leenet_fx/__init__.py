"""Early exits for any trained image classifier.

`attach` puts exits into a model, `fit` trains them, `evaluate` measures what they save:

    ee = leenet_fx.attach(model)
    leenet_fx.fit(ee, train_loader)
    logits = ee(images)

The public names are listed in `__init__.pyi` and load when first used, so that importing the
package, and the command line's help, do not wait for torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
