"""The sets of examples of the leaderboard, each with the network that sees them."""

import functools
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

import jaxplain as jx
from jaxplain._types import PyTree, Score
from leaderboard import store


@dataclass(frozen=True, eq=False)
class Examples:
    """A set of examples and the network that sees them.

    Attributes:
        network: The network whose score is explained.
        x: Images.
        y: Their classes.
        background: Training examples, for methods that need references.
        masks: Where the object is, for metrics of localization.
    """

    network: jx.zoo.Network
    x: np.ndarray
    y: np.ndarray
    background: np.ndarray
    masks: np.ndarray | None = None

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all arrays, including the weights."""
        arrays = (self.x, self.y, self.background, self.masks, *jax.tree.leaves(self.network.params))
        return store.digest(a for a in arrays if a is not None)

    def score(self, of: str) -> Score:
        """The score `of` the class: "logit", "relu(logit)" or "probability"."""
        return self.make_score(of, self.network.params)

    def make_score(self, of: str, params: PyTree) -> Score:
        """The score with other weights."""
        apply = partial(self.network.apply, params)
        logit = jx.logit(apply)
        if of == "relu(logit)":
            return lambda x, label: jax.nn.relu(logit(x, label))
        return jx.logit(apply, of="prob") if of == "probability" else logit


def digits(network: str, n: int) -> Examples:
    """The first `n` of the 1,000 held-out digits."""
    data = jx.datasets.mnist()
    return Examples(jx.zoo.load(network), data.x_test[:n], data.y_test[:n], data.x_train[:100])


def scenes(n: int) -> Examples:
    """Cluttered scenes of held-out digits, as in chapter 4.2, and the masks of their digits."""
    data = jx.datasets.mnist()
    held_out = partial(jx.datasets.cluttered_mnist, images=data.x_test, labels=data.y_test)
    found = jax.jit(jax.vmap(held_out))(jax.random.split(jax.random.key(41), n))
    training = partial(jx.datasets.cluttered_mnist, images=data.x_train, labels=data.y_train)
    background = jax.jit(jax.vmap(training))(jax.random.split(jax.random.key(42), 100)).image
    arrays = map(np.asarray, (found.image, found.labels[:, 0], background, found.digit_masks[:, 0]))
    return Examples(jx.zoo.load("gap_cluttered"), *arrays)
