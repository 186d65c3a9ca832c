"""Class activation maps: identities on real networks, the layer that is found, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from helpers import relative
from jax.ad_checkpoint import checkpoint_name

import jaxplain as jx
from jaxplain import datasets, zoo

DIGITS = datasets.mnist()
X, Y = DIGITS.x_test[:8], DIGITS.y_test[:8]


def _maps(explain):
    return jax.jit(jax.vmap(jx.with_info(explain)))(X, Y)


def test_identities_on_a_network_with_global_average_pooling():
    score = jx.logit(zoo.load("gap"))
    cam, info = _maps(jx.cam(score, upsample=False))
    np.testing.assert_allclose(cam.mean((1, 2)), info.value, rtol=2e-5)  # no bias
    assert np.abs(info.gap).max() < 1e-4 and info.layer.shape == (1, 7, 7, 128) and info.layer.kind == "activation"
    places = cam[0].size
    assert relative(_maps(jx.grad_cam(score, upsample=False))[0], np.maximum(cam, 0) / places) < 1e-5
    hires, info = _maps(jx.hires_cam(score, upsample=False))
    assert relative(hires, cam / places) < 1e-5 and np.abs(info.gap).max() < 1e-4
    assert relative(_maps(jx.xgrad_cam(score, relu=False, upsample=False))[0], hires) < 1e-4
    assert _maps(jx.grad_cam(score))[0].shape == X.shape[:3]


def test_hires_cam_sums_to_the_score_on_a_linear_head():
    w = jax.random.normal(jax.random.key(0), (3, 3, 1, 4))
    head = jax.random.normal(jax.random.key(1), (28 * 28 * 4,))

    def score(x, _):
        h = jax.lax.conv_general_dilated(
            x[None].astype(w.dtype), w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(h).ravel() @ head + 0.7

    maps, info = _maps(jx.hires_cam(score))
    np.testing.assert_allclose(maps.sum((1, 2)), info.value - 0.7, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(info.gap, -0.7, atol=1e-2)


class _ViT(linen.Module):
    scanned: bool

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(8, (4, 4), strides=(4, 4))(x)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param("token", linen.initializers.normal(1.0), (1, 1, 8))
        x = jnp.concatenate([token, x], axis=1)
        if self.scanned:
            x, _ = linen.scan(_Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x, None)
        else:
            for _ in range(2):
                x, _ = _Block()(x, None)
        return linen.Dense(5)(linen.LayerNorm()(x)[:, 0])


class _Block(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(linen.LayerNorm()(x))
        return x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x)))), None


@pytest.mark.parametrize("scanned", [False, True])
def test_a_transformer_with_a_class_token_is_explained_before_its_last_mixing(scanned):
    net, x = _ViT(scanned), jax.random.normal(jax.random.key(0), (16, 24, 3))
    weights = net.init(jax.random.key(1), x[None])
    score = jx.logit(lambda xs: net.apply(weights, xs))
    heat, info = jx.with_info(jx.grad_cam(score, relu=False, upsample=False))(x, 2)
    assert heat.shape == (4, 6) and info.layer.shape == (1, 25, 8) and np.abs(heat).min() > 0
    encode, decode = jx.split(score, "_Block_0" if not scanned else "Scan_Block_0@0")
    h = encode(x, 2)
    tokens = jnp.mean(jx.gradient(decode)(h, x, 2)[0, 1:], 0) @ h[0, 1:].T
    np.testing.assert_allclose(heat, tokens.reshape(4, 6), rtol=1e-4, atol=1e-6)
    # Behind the last block only the class token has a gradient.
    with pytest.raises(jx.LayerError, match="zero everywhere"):
        jx.grad_cam(score, relu=False, at="_ViT/LayerNorm_0")(x, 2)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (jx.Layout(grid=(3, 3)), "does not hold that grid"),  # 10 tokens fewer than there are
        (jx.Layout(grid=(24,)), "no such tokens"),
        (jx.Layout(class_tokens=2), "does not hold that grid"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, words):
    net, x = _ViT(False), jnp.ones((16, 24, 3))
    weights = net.init(jax.random.key(1), x[None])
    with pytest.raises(jx.JaxplainError, match=words):
        jx.grad_cam(jx.logit(lambda xs: net.apply(weights, xs)), layout=layout)(x, 2)
    with pytest.raises(jx.SettingError, match="no such tokens"):
        jx.grad_cam(jx.logit(zoo.load("gap")), layout=jx.Layout(grid=(7, 7)))(X[0], Y[0])


def test_refusals():
    x, y = X[0], Y[0]
    with pytest.raises(jx.LayerError, match="no layer of this score is a map"):
        jx.grad_cam(jx.logit(zoo.load("mlp")))(x, y)
    with pytest.raises(jx.LayerError, match=r"not a mean(.|\n)*jx.grad_cam"):
        jx.cam(jx.logit(zoo.load("cnn_maxpool")))(x, y)
    with pytest.raises(jx.LayerError, match=r"not a mean(.|\n)*logit, not the probability"):
        jx.cam(jx.logit(zoo.load("gap"), of="prob"))(x, y)
    with pytest.raises(jx.SettingError, match="unknown `upsample`"):
        jx.grad_cam(jx.logit(zoo.load("gap")), upsample="sharp")


def test_eigen_cam_is_the_first_singular_vector_and_its_derivative_exists_beside_dead_channels():
    def score(x):
        h = checkpoint_name(jax.nn.relu(x @ w) * alive, "maps")
        return jnp.sum(jnp.mean(h, 0))

    w, alive = jax.random.normal(jax.random.key(0), (3, 6)), jnp.array([1.0, 1, 1, 1, 0, 0])
    x = jax.random.normal(jax.random.key(1), (9, 3))
    explain = jx.eigen_cam(score, at="maps", upsample=False)
    u, s, _ = np.linalg.svd(np.maximum(x @ w, 0) * alive)
    np.testing.assert_allclose(explain(x), np.abs(u[:, 0] * s[0]), rtol=1e-9, atol=1e-12)
    total = lambda x: jnp.sum(jnp.sin(explain(x)))
    step = jax.random.normal(jax.random.key(2), x.shape)
    slope = (total(x + 1e-6 * step) - total(x - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(total)(x), step), slope, rtol=1e-6)
