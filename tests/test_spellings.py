"""What a node is does not depend on spelling: the same function, written in other ways, gets the same explanation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative
from spellings import ACTIVATIONS, AROUND, WAYS, network

import jaxplain as jx
from jaxplain import composites, rules

TINY = 1e-12  # a scale that is a node of its own adds a stabilizer
METHODS = {
    "epsilon": lambda f: jx.lrp(f, rules=rules.epsilon(TINY)),
    "plus, flat": lambda f: jx.lrp(f, rules=composites.epsilon_plus_flat(TINY)),
    "alpha_beta": lambda f: jx.lrp(f, rules=composites.epsilon_alpha2_beta1(TINY)),
    "gamma, box": lambda f: jx.lrp(f, rules=composites.epsilon_gamma_box(-9.0, 9.0, epsilon=TINY)),
    "w_square": lambda f: jx.lrp(
        f, rules=composites.compose(rules.epsilon(TINY), {"layer": rules.wsquare(epsilon=TINY)})
    ),
    "attention": lambda f: jx.lrp(f, rules=composites.attention(TINY)),
    "excitation": lambda f: jx.excitation_backprop(f, epsilon=TINY),
    "deep_taylor": lambda f: jx.deep_taylor(f, epsilon=TINY),
    "guided_backprop": jx.guided_backprop,
    "deconvnet": jx.deconvnet,
    "rescale": jx.deeplift,
    "reveal_cancel": lambda f: jx.deeplift(f, rule="reveal_cancel"),
}


def test_there_are_many_ways():
    assert WAYS >= 25 and len(AROUND) >= 10


def _maps(score, x, methods=METHODS):
    """The map of each method that explains the score, and the kinds of its nodes."""
    plans = {}

    @jax.jit
    def run(x):
        maps = {}
        for name, method in methods.items():
            try:
                maps[name] = method(score)(x)
            except jx.JaxplainError as error:
                plans[name] = str(error).split("\n")[0]
        return maps

    maps = run(x)
    kinds = [
        node.kind for node in jx.layers(score)(x) if node.kind not in ("structural", "loop", "branch", "checkpoint")
    ]
    return maps, plans, sorted(kinds)


def _differences(written, plain, x, methods=METHODS):
    assert relative(written(x), plain(x)) < 1e-12
    (maps, refused, kinds), (wanted, refused_plain, kinds_plain) = (_maps(f, x, methods) for f in (written, plain))
    found = {name: relative(maps[name], wanted[name]) for name in maps.keys() & wanted.keys()}
    wrong = {name: gap for name, gap in found.items() if not gap < 1e-8}
    assert refused.keys() == refused_plain.keys(), refused.items() ^ refused_plain.items()
    return wrong, kinds, kinds_plain


W, B, C, V = (jnp.asarray(np.random.default_rng(3).normal(size=shape)) for shape in ((5, 6), (1, 6), (6, 6), (6,)))
X = jnp.asarray(np.random.default_rng(4).normal(size=(1, 5)))
WRITTEN = [(name, number) for name, ways in ACTIVATIONS.items() for number in range(1, len(ways))]


def _activated(act):
    return lambda x: (jnp.tanh(act(x @ W + B) @ C) @ V)[0]


@pytest.mark.rows(("name", "number"), WRITTEN, WRITTEN[::4])
def test_an_activation_is_what_it_computes(name, number):
    wrong, kinds, plain = _differences(_activated(ACTIVATIONS[name][number]), _activated(ACTIVATIONS[name][0]), X)
    assert not wrong and kinds == plain


@pytest.mark.rows("seed", range(500), range(0, 500, 100))
def test_a_network_in_another_spelling(seed):
    written, x = network(seed, plain=False)
    plain, _ = network(seed, plain=True)
    drawn = np.random.default_rng(seed).permutation(list(METHODS))[:4]
    wrong, *_ = _differences(written, plain, x, {name: METHODS[name] for name in drawn})
    assert not wrong
