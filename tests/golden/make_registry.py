"""Plain calls of every method on every model: `python tests/golden/make_registry.py` writes `registry.npz`.

The quick suite compares each transform with these arrays, and so compiles one program for a row in place of two. Run it
after a change of attributions that is meant, or of a setting in `tests/registry.py`; `pytest --full` does not read it.
With names of methods it computes those only, and it lists the arrays that moved.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import conftest  # noqa: F401 - float64, and XLA's flags
import jax
import jax.numpy as jnp
import numpy as np
from models import MODELS
from registry import METHODS, jit, scores, setup


def main() -> None:
    file = Path(__file__).with_name("registry.npz")
    chosen = sys.argv[1:]
    with np.load(file) as stored:
        before = {name: a.view(jnp.bfloat16) if a.dtype.kind == "V" else a for name, a in stored.items()}
    arrays = dict(before) if chosen else {}
    for model in MODELS:
        arrays[f"{model}/scores"] = scores(model)
        for method in chosen or METHODS:
            if model not in METHODS[method].refuses:
                for i, leaf in enumerate(jax.tree.leaves(jit(setup(model, method)))):
                    arrays[f"{model}/{method}/{i}"] = np.asarray(leaf)
        print(model, len(arrays), flush=True)
    for name, new in arrays.items():
        old = before.get(name)
        if old is None or old.shape != new.shape or not np.array_equal(old, new, equal_nan=new.dtype.kind in "fV"):
            print("moved:", name)
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main()
