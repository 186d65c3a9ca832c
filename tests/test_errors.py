"""The text of every error: what, where, got, need, and a fix to paste."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import text

import jaxplain as jx

X = jnp.array([1.0, 2.0, 3.0])
f = jnp.sum
IG = jx.integrated_gradients

REFUSED = {
    # what the user does: (call, error class, words of the message)
    "vector score": (
        lambda: jx.gradient(lambda x: 2 * x)(X),
        jx.ScoreError,
        ["float64[3]", "jax.vmap(explain)", "jx.logit"],
    ),
    "batched score": (lambda: IG(lambda x: x[:, None])(X), jx.ScoreError, ["one number for one example"]),
    "score with aux": (lambda: jx.gradient(lambda x: (jnp.sum(x), x))(X), jx.ScoreError, ["tuple", "[0]"]),
    "integer score": (lambda: jx.gradient(lambda x: jnp.argmax(x))(X), jx.ScoreError, ["int", "not the prediction"]),
    "complex score": (lambda: jx.gradient(lambda x: jnp.sum(x).astype(complex))(X), jx.ScoreError, ["complex"]),
    "integer input": (
        lambda: jx.gradient(f)(jnp.arange(3)),
        jx.InputError,
        ["int64", "astype", "argnums", "embeddings"],
    ),
    "boolean input": (lambda: IG(f)(jnp.array([True])), jx.InputError, ["bool"]),
    "complex input": (
        lambda: jx.gradient(lambda x: jnp.abs(x).sum())(X.astype(complex)),
        jx.InputError,
        ["complex128", "imaginary"],
    ),
    "text input": (lambda: jx.gradient(f)({"a": X, "b": "text"}), jx.InputError, ["str", "['b']"]),
    "empty input": (lambda: jx.gradient(lambda x: 1.0)({}), jx.InputError, ["no array at all"]),
    "no such argument": (lambda: jx.gradient(f, argnums=1)(X), jx.InputError, ["argnums=1", "1 positional"]),
    "one argument twice": (lambda: jx.gradient(f, argnums=(0, -1))(X), jx.InputError, ["argnums=(0, -1)", "different"]),
    "argnums not a number": (lambda: jx.gradient(f, argnums=1.0)(X), jx.InputError, ["integer", "1.0"]),
    "partial around an explainer": (
        lambda: jx.smoothgrad(functools.partial(jx.gradient(lambda a, b: f(a * b), argnums=1), X)),
        jx.SettingError,
        ["partial", "bind arguments in the score"],
    ),
    "info inside a wrapper": (
        lambda: jx.smoothgrad(jx.with_info(jx.gradient(f))),
        jx.SettingError,
        ["info goes outside"],
    ),
    "info of a jitted batch": (
        lambda: jx.with_info(jax.jit(jax.vmap(jx.gradient(f)))),
        jx.SettingError,
        ["before any JAX"],
    ),
    "info twice": (lambda: jx.with_info(jx.with_info(jx.gradient(f))), jx.SettingError, ["itself"]),
    "channels inside": (
        lambda: jx.smoothgrad(jx.saliency(f, channel_axis=-1))(jnp.ones((2, 3)), key=jax.random.key(0)),
        jx.StructureError,
        ["reduce channels after"],
    ),
    "no argument": (lambda: jx.gradient(f)(), jx.InputError, ["0 positional"]),
    "not a function": (lambda: jx.gradient(X), jx.SettingError, ["must be a function", "jx.gradient(score"]),
    "baseline shape": (lambda: IG(f, baseline=jnp.zeros(4))(X), jx.StructureError, ["(4,)", "(3,)", "zeros_like"]),
    "baseline tree": (lambda: IG(lambda x: f(x["a"]), baseline={"b": X})({"a": X}), jx.StructureError, ["'a'", "'b'"]),
    "baseline leaf": (
        lambda: IG(lambda x: f(x["a"]), baseline={"a": X[:2]})({"a": X}),
        jx.StructureError,
        ["argument 0['a']", "(2,)"],
    ),
    "baseline function": (lambda: IG(f, baseline=lambda x: x[:2])(X), jx.StructureError, ["(2,)"]),
    "baselines, one short": (
        lambda: IG(lambda a, b: f(a) + f(b), argnums=(0, 1), baseline=(0.0,))(X, X),
        jx.StructureError,
        ["1 entries", "2 entries"],
    ),
    "complex baseline": (
        lambda: IG(f, baseline=X.astype(complex))(X),
        jx.InputError,
        ["`baseline` must be real", "argument 0", "complex128", "score(re, im)"],
    ),
    "complex number as baseline": (lambda: IG(f, baseline=1j)(X), jx.InputError, ["`baseline`", "complex"]),
    "complex baseline function": (
        lambda: IG(f, baseline=lambda x: x.astype(complex))(X),
        jx.InputError,
        ["`baseline`"],
    ),
    "complex references": (
        lambda: IG(f, baseline=jx.references(jnp.ones((2, 3), complex)))(X),
        jx.InputError,
        ["`references`"],
    ),
    "baseline None": (lambda: IG(f, baseline=None)(X), jx.StructureError, ["`baseline`"]),
    "references shape": (
        lambda: IG(f, baseline=jx.references(jnp.zeros((5, 4))))(X),
        jx.StructureError,
        ["(5, 4)", "(n, 3)"],
    ),
    "references without axis": (lambda: IG(f, baseline=jx.references(X))(X), jx.StructureError, ["(n, 3)"]),
    "references ragged": (
        lambda: IG(lambda x: f(x[0]), baseline=jx.references((jnp.zeros((2, 3)), jnp.zeros((1, 3)))))((X, X)),
        jx.StructureError,
        ["lengths [1, 2]"],
    ),
    "references n": (lambda: jx.references(X, n=0), jx.SettingError, ["`n`"]),
    "references missing": (
        lambda: jx.expected_gradients(f, references=X)(X, key=jax.random.key(0)),
        jx.SettingError,
        ["jx.references(x_train", "distribution"],
    ),
    "zero steps": (lambda: IG(f, n_steps=0), jx.SettingError, ["`n_steps`", "positive", "0"]),
    "negative steps": (lambda: IG(f, n_steps=-3), jx.SettingError, ["-3"]),
    "float steps": (lambda: IG(f, n_steps=50.0), jx.SettingError, ["50.0", "shape of the compiled program"]),
    "traced steps": (lambda: jax.jit(lambda n: IG(f, n_steps=n)(X))(3), jx.SettingError, ["Python integer"]),
    "zero samples": (lambda: jx.smoothgrad(jx.gradient(f), n_samples=0), jx.SettingError, ["`n_samples`"]),
    "one sample's variance": (lambda: jx.vargrad(jx.gradient(f), n_samples=1), jx.SettingError, ["at least 2"]),
    "zero chunk": (lambda: IG(f, chunk_size=0), jx.SettingError, ["`chunk_size`"]),
    "quadrature": (lambda: IG(f, quadrature="simpson"), jx.SettingError, ["simpson", "gauss_legendre"]),
    "complete with tol": (lambda: IG(f, complete=True, tol=0.1), jx.SettingError, ["exclude each other"]),
    "negative tol": (lambda: IG(f, tol=-1e-3), jx.SettingError, ["`tol`", "-0.001", "at least 0"]),
    "NaN tol": (lambda: IG(f, tol=jnp.nan), jx.SettingError, ["`tol`", "nan"]),
    "negative atol": (lambda: IG(f, tol=1e-3, atol=jnp.float32(-1)), jx.SettingError, ["`atol`", "-1"]),
    "negative noise": (
        lambda: jax.jit(jx.smoothgrad(jx.gradient(f), noise=-0.1))(X, key=jax.random.key(0)),
        jx.SettingError,
        ["smoothgrad: `noise`", "-0.1"],
    ),
    "NaN noise": (
        lambda: jx.vargrad(jx.gradient(f), noise=np.array([0.1, np.nan, 0.1]))(X, key=jax.random.key(0)),
        jx.SettingError,
        ["vargrad: `noise`", "nan"],
    ),
    "negative noise function": (
        lambda: jx.smoothgrad_squared(jx.gradient(f), noise=lambda x: -x)(X, key=jax.random.key(0)),
        jx.SettingError,
        ["`noise`", "-3"],
    ),
    "max_steps": (lambda: IG(f, n_steps=50, tol=0.1, max_steps=10), jx.SettingError, ["max_steps=10"]),
    "noise shape": (
        lambda: jx.smoothgrad(jx.gradient(f), noise=jnp.ones(2))(X, key=jax.random.key(0)),
        jx.StructureError,
        ["`noise`", "(2,)"],
    ),
    "inner shape": (
        lambda: jx.smoothgrad(lambda x: x[:2])(X, key=jax.random.key(0)),
        jx.StructureError,
        ["inner attribution", "(2,)", "jx.smoothgrad(jx.gradient(score))"],
    ),
    "root name": (lambda: jx.taylor(f, root="search"), jx.SettingError, ["jx.line_search", "jx.scaled_input"]),
    "root shape": (lambda: jx.taylor(f, root=jnp.ones(2))(X), jx.StructureError, ["`root`"]),
    "line search": (lambda: jx.line_search(n_points=0), jx.SettingError, ["`n_points`"]),
    "reduction": (lambda: jx.saliency(f, channel_axis=0, reduction="median"), jx.SettingError, ["median", "'norm'"]),
    "channel axis": (lambda: jx.saliency(f, channel_axis=3)(X), jx.SettingError, ["channel_axis=3", "(3,)"]),
    "of": (lambda: jx.logit(f, of="softmax"), jx.SettingError, ["softmax", "'prob'"]),
    "missing key": (
        lambda: jx.smoothgrad(jx.gradient(f))(X),
        jx.MissingKeyError,
        ["key=jax.random.key(0)", "jax.random.split(key, len(xs))"],
    ),
    "number as key": (lambda: jx.smoothgrad(jx.gradient(f))(X, key=0), jx.MissingKeyError, ["int"]),
    "keys without vmap": (
        lambda: jx.smoothgrad(jx.gradient(f))(X, key=jax.random.split(jax.random.key(0), 2)),
        jx.MissingKeyError,
        ["one random key", "vmap"],
    ),
    "one raw key under vmap": (
        lambda: jax.vmap(jx.smoothgrad(jx.gradient(f)))(jnp.ones((2, 3)), key=jax.random.PRNGKey(0)),
        jx.MissingKeyError,
        ["under vmap, keyword arguments are mapped", "jax.random.split(key, len(xs))"],
    ),
    "info of a transformed explainer": (
        lambda: jx.with_info(jax.vmap(jx.gradient(f))),
        jx.SettingError,
        ["jax.vmap(jx.with_info"],
    ),
    "picture of a batch": (lambda: jx.plot.image(np.ones((2, 4, 4, 1))), jx.StructureError, ["(2, 4, 4, 1)"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    call, kind, words = REFUSED[what]
    with pytest.raises(kind) as error:
        call()
    message = text(error)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in:\n{message}"


def test_one_typed_key_under_vmap_is_an_error_too():
    # JAX itself refuses before the explainer is called.
    with pytest.raises(ValueError, match="vmap was requested to map its argument along axis 0"):
        jax.vmap(jx.smoothgrad(jx.gradient(f)))(jnp.ones((2, 3)), key=jax.random.key(0))


def test_errors_are_also_the_matching_builtin():
    assert issubclass(jx.ScoreError, TypeError) and issubclass(jx.StructureError, ValueError)
    assert issubclass(jx.LabelError, ValueError) and issubclass(jx.ModelModeError, RuntimeError)
    assert all(issubclass(getattr(jx, n), jx.JaxplainError) for n in dir(jx) if n.endswith("Error"))


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="label"):
        jx.gradient(f)(X, label=3)
