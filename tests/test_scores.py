"""`logit`, `check`, and models that must be refused."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import promoting, text
from models import nnx_model

import jaxplain as jx

W = jax.random.normal(jax.random.key(0), (6, 4))
X = jax.random.normal(jax.random.key(1), (6,))


def apply(x):
    return x @ W


def test_each_score_is_its_formula():
    z = np.asarray(X @ W)
    p = np.exp(z) / np.exp(z).sum()
    others = np.delete(z, 2)
    wanted = {
        "logit": z[2],
        "log_prob": np.log(p[2]),
        "prob": p[2],
        "margin": z[2] - others.max(),
        "centered": z[2] - z.mean(),
    }
    for of, want in wanted.items():
        for label in (2, np.int32(2), jnp.int32(2)):
            np.testing.assert_allclose(jx.logit(apply, of=of)(X, label), want, rtol=1e-12)
        np.testing.assert_allclose(jax.jit(jx.logit(apply, of=of))(X, 2), want, rtol=1e-12)
    np.testing.assert_allclose(jx.logit(apply, of="contrast")(X, 2, 0), z[2] - z[0])


def test_further_arguments_and_pytrees_reach_the_model():
    score = jx.logit(lambda x, w, scale: (x["a"] @ w + x["b"]) * scale)
    x = {"a": X, "b": jnp.ones(4)}
    np.testing.assert_allclose(score(x, 1, W, 3.0), 3 * (X @ W[:, 1] + 1))


@pytest.mark.parametrize("of", ["logit", "log_prob", "prob", "margin", "centered", "contrast"])
@pytest.mark.parametrize("label", [4, 12, -1])
def test_labels_that_do_not_exist(of, label):
    score = jx.logit(apply, of=of)
    labels = (1, label) if of == "contrast" else (label,)
    with pytest.raises(jx.LabelError) as error:
        jx.gradient(score)(X, *labels)
    assert f"no class {label}" in text(error) and "0 to 3" in text(error)
    assert np.isnan(jax.jit(score)(X, *labels))
    assert np.isnan(jax.jit(jx.gradient(score))(X, *labels)).all(), "the explanation of no class must not look like one"


@pytest.mark.parametrize("of", ["logit", "margin", "contrast"])
@pytest.mark.parametrize("label", [jnp.array([1, 2]), [1, 2], 1.0, True, "cat", None])
def test_labels_of_the_wrong_kind(of, label):
    labels = (1, label) if of == "contrast" else (label,)
    with pytest.raises(jx.LabelError, match="one integer") as error:
        jx.gradient(jx.logit(apply, of=of))(X, *labels)
    assert "0 to 3" in text(error) and (hasattr(label, "dtype") or repr(label) in text(error))


def test_outputs_of_the_wrong_shape():
    for model, got in (
        (lambda x: x[0], r"\(6,\)"),
        (lambda x: x[:, None, :], r"\(1, 1, 6\)"),
        (lambda x: {"y": x}, "dict"),
    ):
        with pytest.raises(jx.ScoreError, match=got):
            jx.logit(model)(X, 0)


# Models that must not be explained


class LinenNet(nn.Module):
    dropout: bool = True

    @nn.compact
    @promoting()
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dropout(0.5, deterministic=not (train and self.dropout))(x)


def explain_all(score, x):
    """Every method refuses at its front door; a few suffice to show that it is one door."""
    for method in (jx.gradient, jx.integrated_gradients, jx.taylor, lambda f: jx.integrated_gradients(f, tol=1e-2)):
        for wrap in (lambda e: e, jax.jit):
            with pytest.raises(jx.ModelModeError) as error:
                wrap(method(score))(x)
    return text(error)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # Flax, on its way to its own error
def test_nnx_training_mode_is_refused():
    net = nnx_model()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    message = explain_all(lambda x: net(x[None])[0, 1], jnp.ones((6, 6, 2)))
    assert "training mode" in message and "model.eval()" in message
    with pytest.raises(jx.ModelModeError, match="training mode"):
        jx.check(net, jnp.ones((3, 6, 6, 2)))
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    net.eval()
    assert np.isfinite(jx.gradient(lambda x: net(x[None])[0, 1])(jnp.ones((6, 6, 2)))).all()
    jx.check(net, jax.random.normal(jax.random.key(0), (3, 6, 6, 2)))


def test_linen_training_mode_is_refused():
    net = LinenNet()
    variables = net.init(jax.random.key(0), jnp.ones((1, 6)), train=False)
    assert "train=False" in explain_all(lambda x: net.apply(variables, x[None], train=True)[0, 1], X)
    # With mutable= it does not fail by itself; dropout shows as randomness, and batch statistics show to `check`.
    noisy = lambda x: net.apply(variables, x, train=True, mutable="batch_stats", rngs={"dropout": jax.random.key(0)})[0]
    assert "random" in explain_all(lambda x: noisy(x[None])[0, 1], X)
    quiet = LinenNet(dropout=False)
    batchy = lambda x: quiet.apply(variables, x, train=True, mutable="batch_stats")[0]
    with pytest.raises(jx.ModelModeError, match="changes with the other examples"):
        jx.check(batchy, jax.random.normal(jax.random.key(0), (5, 6)))
    jx.check(lambda x: net.apply(variables, x, train=False), jax.random.normal(jax.random.key(0), (5, 6)))


def test_dropout_is_refused_unless_meant():
    drop = eqx.nn.Dropout(0.5)
    noisy = lambda x: jnp.sum(drop(x, key=jax.random.key(0)) * W[:, 0])
    message = explain_all(noisy, X)
    assert "random_bits" in message and "allow_random=True" in message and "test_scores.py" in message
    for method in (jx.gradient, jx.taylor, jx.integrated_gradients):
        assert np.isfinite(method(noisy, allow_random=True)(X)).all()
    inside_loop = lambda x: jax.lax.fori_loop(0, 2, lambda i, x: x + jax.random.normal(jax.random.key(0), x.shape), x)[
        0
    ]
    assert "random" in explain_all(inside_loop, X)


def test_randomness_that_does_not_reach_the_score_is_fine():
    def score(x):
        jax.random.normal(jax.random.key(0), (3,))
        jax.random.split(jax.random.key(1))
        return jnp.sum(x)

    np.testing.assert_array_equal(jx.gradient(score)(X), np.ones(6))
    np.testing.assert_array_equal(jx.gradient(jax.jit(score))(X), np.ones(6))


def test_check_finds_models_that_mix_examples():
    with pytest.raises(jx.ModelModeError) as error:
        jx.check(lambda x: x - x.mean(axis=0, keepdims=True), jax.random.normal(jax.random.key(0), (5, 6)))
    assert "example 0" in text(error) and "largest difference" in text(error)
    with pytest.raises(jx.ModelModeError, match="example 0 alone and in the batch differ"):
        jx.check(lambda x: x / len(x), jax.random.normal(jax.random.key(0), (5, 6)))
    calls = []

    def stateful(x):
        calls.append(0)
        return x * len(calls)

    with pytest.raises(jx.ModelModeError, match="two runs"):
        jx.check(stateful, jnp.ones((3, 2)))
    with pytest.raises(jx.ModelModeError, match="random"):
        jx.check(lambda x: x + jax.random.normal(jax.random.key(0), x.shape), jnp.ones((3, 2)))
    with pytest.raises(jx.SettingError, match="at least two"):
        jx.check(apply, X[None])
    jx.check(lambda x, w: {"a": x @ w}, jnp.eye(6)[:3], W)
    with pytest.raises(jx.SettingError, match="all examples are equal"):
        jx.check(lambda x: x, jnp.ones((3, 6)))
    with pytest.raises(jx.SettingError, match="one row for each example"):
        jx.check(lambda x: None, jnp.eye(6))


def test_check_finds_mixing_beside_a_large_offset_and_a_large_example():
    xs, w = jax.random.normal(jax.random.key(0), (5, 6), jnp.float32), W.astype(jnp.float32)
    honest = lambda x: x @ w + jnp.float32(1e3)
    mixing = lambda x: honest(x) + 1e-3 * jnp.mean(x @ w, axis=0, keepdims=True)
    for batch in (xs, xs.at[4].mul(1e6)):
        jx.check(honest, batch)
        with pytest.raises(jx.ModelModeError, match="example 0 changes with the other examples"):
            jx.check(mixing, batch)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_check_accepts_rounding(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    w, v = jax.random.normal(keys[0], (300, 500), dtype), jax.random.normal(keys[1], (500, 1), dtype)
    xs = jax.random.normal(keys[2], (33, 300), dtype)
    jx.check(lambda x: jnp.tanh(x @ w) @ v, xs, n_examples=33)
    jx.check(lambda x: jnp.tanh(x @ w) @ v + dtype(1e3), xs)


def test_check_names_nan_in_the_output():
    xs = jnp.array([[1.0], [-1.0], [2.0]])
    for model in (jnp.log, lambda x: {"a": x, "b": 1 / (x - 1)}):
        with pytest.raises(jx.NonFiniteError) as error:
            jx.check(model, xs)
        assert "1 of 3 numbers" in text(error)
    assert "output['b']" in text(error)


def test_while_loops_on_the_path_are_refused():
    def score(x):
        return jax.lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] * 1.5, c[1] + 1), (jnp.sum(x), 0))[0]

    for method in (jx.gradient, jx.integrated_gradients):
        with pytest.raises(jx.TransformError) as error:
            method(score)(X)
        assert "while loop" in text(error) and "test_scores.py" in text(error) and "lax.scan" in text(error)
    beside = lambda x: jnp.sum(x**2) + jax.lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0)
    np.testing.assert_allclose(jx.gradient(beside)(X), 2 * X)
