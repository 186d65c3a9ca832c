"""The dataflow engine: facts meet where paths meet, in both directions, and inside of loops and branches."""

import operator

import jax
import jax.numpy as jnp
from jax import lax

from jaxplain._ir.dataflow import Domain, backward, forward
from jaxplain._ir.graph import flatten

NOTHING = frozenset()


def _passed(step, facts):
    return frozenset().union(*facts, [step.control.primitive])


UNION = {"unknown": lambda value: NOTHING, "join": operator.or_}


def _behind(f, x):
    """The primitives between the input of f and its output, by the fact of the input."""
    graph = flatten(jax.make_jaxpr(f)(x))
    domain = Domain(**UNION, transfer=lambda step, after: [_passed(step, after)] * len(step.reads))
    return backward(graph, [NOTHING], domain)[graph.inputs[0]]


def _before(f, x):
    """The same by the fact of the output."""
    graph = flatten(jax.make_jaxpr(f)(x))
    domain = Domain(**UNION, transfer=lambda step, before: [_passed(step, before)] * len(step.writes))
    return forward(graph, [NOTHING], domain)[graph.outputs[0]]


def test_the_facts_of_all_readers_meet():
    both = lambda x: jnp.sin(2 * x) + jnp.cos(2 * x)
    assert _behind(both, 1.0) == _before(both, 1.0) == {"mul", "sin", "cos", "add"}

    def shared(x):  # one value, and two readers
        h = jnp.exp(x)
        return jnp.sin(h) * jnp.cos(h)

    assert _behind(shared, 1.0) == _before(shared, 1.0) == {"exp", "sin", "cos", "mul"}


def test_facts_go_around_a_loop_until_nothing_changes():
    def score(x):  # x reaches the output in the third iteration only
        return lax.scan(lambda c, _: ((jnp.exp(c[1]), jnp.sin(c[2]), c[2]), None), (0.0, 0.0, x), None, 3)[0][0]

    assert _behind(score, 1.0) == _before(score, 1.0) == {"sin", "exp"}


def test_facts_of_all_branches_meet():
    score = lambda x: lax.cond(True, jnp.sin, jnp.cos, jnp.exp(x))
    assert _behind(score, 1.0) >= {"exp", "sin", "cos"} and _before(score, 1.0) >= {"exp", "sin", "cos"}
