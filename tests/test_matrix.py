"""MODELS × METHODS × TRANSFORMS: every transform gives what plain calls give."""

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from models import BATCH, MODELS
from registry import METHODS, TRANSFORMS, covering, jit, setup, shapes, stored

from jaxplain import JaxplainError


@functools.cache
def computed(model: str, method: str) -> Any:
    return jit(setup(model, method))


def reference(model: str, method: str, like: Any, full: bool) -> Any:
    """The plain calls: stored ones where their model is this one, and computed ones with --full."""
    leaves = None if full else stored(model, method)
    return computed(model, method) if leaves is None else jax.tree.unflatten(jax.tree.structure(like), leaves)


def assert_close(got: Any, want: Any, rtol: float, what: str, *, may_be_empty: bool = False) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want), what
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if may_be_empty:
            empty = np.isnan(b)
            assert (np.isnan(a) == empty).all() and empty.reshape(BATCH, -1).all(1).sum() * b[0].size == empty.sum(), (
                what
            )
            a, b = np.where(empty, 0, a), np.where(empty, 0, b)
            if empty.all():
                continue
        assert a.shape == b.shape and a.dtype == b.dtype, what
        assert np.isfinite(b.astype(float)).all(), f"{what}: the reference itself is not finite"
        scale = np.max(np.abs(b.astype(float)), initial=0.0)
        assert scale > 0 or not np.issubdtype(b.dtype, np.floating), f"{what}: nothing is compared, all is zero"
        difference = np.max(np.abs(a.astype(float) - b.astype(float)), initial=0.0)
        assert difference <= rtol * max(scale, 1e-12), f"{what}: {difference:.2e} of {scale:.2e}"


WHOLE = list(itertools.product(MODELS, METHODS, TRANSFORMS))
COVERING = covering()


@pytest.mark.rows(("model", "method", "transform"), WHOLE, COVERING)
def test_transform_equals_reference(model: str, method: str, transform: str, full: bool) -> None:
    if words := METHODS[method].refuses.get(model):
        with pytest.raises(JaxplainError, match=words):
            TRANSFORMS[transform](setup(model, method))
        return
    if not full and METHODS[method].like and (traced := shapes(transform, setup(model, method))) is not None:
        described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        assert described(traced) == described(reference(model, method, traced, full))
        return
    got = TRANSFORMS[transform](setup(model, method))
    want = reference(model, method, got, full)
    if transform == "plain":  # one example; the others are filled in
        got = jax.tree.map(lambda leaf, rest: np.concatenate([leaf, rest[1:]]), got, want)
    rtol = METHODS[method].condition * MODELS[model]().rtol
    what = f"{method} on {model} under {transform}"
    assert_close(got, want, rtol, what, may_be_empty=METHODS[method].may_be_empty)


def test_the_covering_part_covers_every_pair() -> None:
    for one, other in itertools.combinations(range(3), 2):
        assert {(row[one], row[other]) for row in COVERING} == {(row[one], row[other]) for row in WHOLE}
    assert len(set(COVERING)) == len(COVERING)
