"""Five photographs explained by three methods: `python -m examples.photos`."""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxplain as jx
from examples.photos.network import load, photos


def draw(output: pathlib.Path) -> None:
    """Explain the class with the largest logit of each photograph, and draw the maps."""
    data, net = photos(), load()
    score = jx.logit(net)
    labels = np.asarray(jax.jit(net)(data.x)).argmax(1)
    explainers = {
        "Grad-CAM": jx.grad_cam(score),
        "LRP ε⁺-flat": jx.lrp(score, rules=jx.composites.epsilon_plus_flat()),
        "LRP εγ-box": jx.lrp(score, rules=jx.composites.epsilon_gamma_box(0.0, 1.0)),
    }
    maps = {name: _each(explain, data.x, labels) for name, explain in explainers.items()}
    titles = [data.classes[label] for label in labels]
    figure = jx.plot.grid(maps, data.x, titles=titles, share=False, size=1.5)
    figure.savefig(output, dpi=150)


def _each(explain: jx.Explainer, xs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The maps of all examples: one compiled program, which runs for one example at a time."""
    run = jax.jit(lambda xs, labels: jax.lax.map(lambda example: explain(*example), (xs, labels)))
    return np.asarray(run(jnp.asarray(xs), jnp.asarray(labels)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("photos.png"), help="where the picture goes"
    )
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
