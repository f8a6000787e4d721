"""Low-light image enhancement in JAX and Flax: train, evaluate, ablate and use published systems.

    import lljax
    enhancer = lljax.load("name, workdir or file")
    bright = enhancer(picture)                     # uint8 [H, W, 3], a float array or a PIL image

Importing this package imports nothing heavy; what it offers is loaded at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "load": "lljax.inference.enhancer",
    "Enhancer": "lljax.inference.enhancer",
    "list_methods": "lljax.method",
    "list_weights": "lljax.weights",
    "fit": "lljax.training.loop",
    "evaluate": "lljax.evaluation.evaluate",
}
__all__ = ["Enhancer", "evaluate", "fit", "list_methods", "list_weights", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata
        return metadata.version("lljax")
    if name not in _WHERE:
        raise AttributeError(f"module 'lljax' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
