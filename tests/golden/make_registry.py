"""Plain calls of every method on every model: `python tests/golden/make_registry.py` writes `registry.npz`.

The quick suite compares each transform with these arrays, and so compiles one program for a row in place of two. Run it
after a change of attributions that is meant, or of a setting in `tests/registry.py`; `pytest --full` does not read it.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import conftest  # noqa: F401 - float64, and XLA's flags
import jax
import numpy as np
from models import MODELS
from registry import METHODS, jit, scores, setup


def main() -> None:
    arrays = {}
    for model in MODELS:
        arrays[f"{model}/scores"] = scores(model)
        for method, spec in METHODS.items():
            if model not in spec.refuses:
                for i, leaf in enumerate(jax.tree.leaves(jit(setup(model, method)))):
                    arrays[f"{model}/{method}/{i}"] = np.asarray(leaf)
        print(model, len(arrays), flush=True)
    np.savez_compressed(Path(__file__).with_suffix("").parent / "registry.npz", **arrays)


if __name__ == "__main__":
    main()
