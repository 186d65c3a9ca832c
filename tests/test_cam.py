"""Class activation maps: identities on real networks, the layer that is found, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from helpers import promoting, relative
from jax import lax
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
    @promoting()
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
    @promoting()
    def __call__(self, x, _):
        x = x + linen.MultiHeadDotProductAttention(num_heads=2)(linen.LayerNorm()(x))
        return x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x)))), None


@pytest.mark.parametrize("scanned", [False, True])
def test_a_transformer_with_a_class_token_is_explained_before_its_last_mixing(scanned):
    net, x = _ViT(scanned), jax.random.normal(jax.random.key(0), (16, 24, 3))
    weights = jax.jit(net.init)(jax.random.key(1), x[None])
    score = jx.logit(lambda xs: net.apply(weights, xs))
    heat, info = jax.jit(jx.with_info(jx.grad_cam(score, relu=False, upsample=False)))(x, 2)
    assert heat.shape == (4, 6) and info.layer.shape == (1, 25, 8) and np.abs(heat).min() > 0
    encode, decode = jx.split(score, "_Block_0" if not scanned else "Scan_Block_0@0")
    h = jax.jit(encode)(x, 2)
    tokens = jnp.mean(jax.jit(jx.gradient(decode))(h, x, 2)[0, 1:], 0) @ h[0, 1:].T
    np.testing.assert_allclose(heat, tokens.reshape(4, 6), rtol=1e-4, atol=1e-6)
    # Behind the last block only the class token has a gradient.
    with pytest.raises(jx.LayerError, match="zero everywhere"):
        jx.grad_cam(score, relu=False, at="_ViT/LayerNorm_0")(x, 2)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (jx.Layout(grid=(3, 3)), "does not contain that grid"),  # 10 tokens fewer than there are
        (jx.Layout(grid=(24,)), "no such tokens"),
        (jx.Layout(class_tokens=2), "does not contain that grid"),
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
    with pytest.raises(jx.LayerError, match="does not pass through any layer"):
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

    w, alive = jax.random.normal(jax.random.key(0), (3, 6)), jnp.array([[1.0, 1, 1, 1, 0, 0]])
    x = jax.random.normal(jax.random.key(1), (9, 3))
    explain = jx.eigen_cam(score, at="maps", upsample=False)
    u, s, _ = np.linalg.svd(np.maximum(x @ w, 0) * alive)
    np.testing.assert_allclose(explain(x), np.abs(u[:, 0] * s[0]), rtol=1e-9, atol=1e-12)
    total = lambda x: jnp.sum(jnp.sin(explain(x)))
    step = jax.random.normal(jax.random.key(2), x.shape)
    slope = (total(x + 1e-6 * step) - total(x - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.grad(total)(x), step), slope, rtol=1e-6)


def test_the_sign_of_a_centered_eigen_cam_is_that_of_its_skewness():
    score = lambda x: jnp.sum(jnp.mean(checkpoint_name(x @ jnp.array([[1.0, -2.0, 0.5]]), "maps"), 0))
    x = jnp.zeros((4, 9, 1)).at[:, 2].set(jnp.array([[3.0], [-3.0], [0.1], [7.0]]))
    heat = jax.jit(jax.vmap(jx.eigen_cam(score, at="maps", upsample=False, center=True, relu=False)))(x)
    np.testing.assert_array_equal(np.argmax(np.abs(heat), 1), [2] * 4)
    assert np.all(heat[:, 2] > 0)


def _normal(*shape, seed=0):
    # Weights, drawn by numpy: a score must not draw.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / np.sqrt(np.prod(shape[:-1])))


def _conv(x, channels, size=3, stride=1, seed=0):
    kernel = _normal(size, size, x.shape[-1], channels, seed=seed)
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _backbone(x):
    with jax.named_scope("back"):
        return jax.nn.relu(_conv(x[None], 8, stride=2))


def _head(pooled):
    return (pooled @ _normal(pooled.shape[-1], 5, seed=9))[..., 3].sum()


def _dense_net(x):
    h = _backbone(x)
    for seed in (1, 2):
        h = jnp.concatenate([h, _conv(jax.nn.relu(h), 6, seed=seed)], -1)
    with jax.named_scope("last"):
        h = jax.nn.relu(h)
    return _head(h.mean((1, 2)))


def _mixer(x):
    t = _conv(x[None], 8, size=4, stride=4).reshape(60, 8)
    for i in range(2):
        with jax.named_scope(f"block{i}"):
            t = t + (jax.nn.relu(t.T @ _normal(60, 12)) @ _normal(12, 60)).T
            t = t + jax.nn.relu(t @ _normal(8, 12)) @ _normal(12, 8)
    return _head(t.mean(0))


def _coordinates(x):
    h = _backbone(x)
    with jax.named_scope("last"):
        h = jnp.concatenate([jnp.ones((*h.shape[:-1], 2)), h], -1)
    return _head(h.mean((1, 2)))


def _cropped(x):
    with jax.named_scope("last"):
        h = jax.nn.relu(_conv(_backbone(x), 12))
    return _head(h[:, 1:-1, 1:-1].mean((1, 2)))


@pytest.mark.parametrize(
    ("score", "path", "shape", "grid"),
    [
        (_dense_net, "last", (1, 12, 20, 20), (12, 20)),
        (_mixer, "block1", (60, 8), (6, 10)),
        (_coordinates, "last", (1, 12, 20, 10), (12, 20)),
        (_cropped, "last", (1, 12, 20, 12), (12, 20)),
        (lambda x: _head(_backbone(x).mean(1).mean(1)), "back", (1, 12, 20, 8), (12, 20)),
        (jax.checkpoint(lambda x: _head(_backbone(x).mean((1, 2)))), "back", (1, 12, 20, 8), (12, 20)),
    ],
    ids=("concatenated", "mixer", "coordinates", "cropped", "mean_of_mean", "checkpoint"),
)
def test_the_default_layer_is_the_last_map(score, path, shape, grid):
    x = jax.random.normal(jax.random.key(0), (24, 40, 3))
    heat, info = jx.with_info(jx.grad_cam(score, relu=False, upsample=False))(x)
    assert (info.layer.path, info.layer.shape, heat.shape) == (path, shape, grid)
    assert jx.grad_cam(score, relu=False)(x).shape == (24, 40)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn_maxpool", (1, 4, 4, 128)),
        ("cnn_avgpool", (1, 4, 4, 128)),
        ("gap", (1, 7, 7, 128)),
        ("all_conv", (1, 7, 7, 10)),
    ],
)
def test_the_default_layer_of_the_zoo_is_what_is_flattened_or_averaged(name, shape):
    explain = jax.jit(jx.with_info(jx.grad_cam(jx.logit(zoo.load(name)), relu=False)))
    assert explain(X[0], Y[0])[1].layer.shape == shape


_avg_pool = promoting()(linen.avg_pool)
_WHERE = jax.random.uniform(jax.random.key(5), (12, 20)) > 0.5
_WEIGHTS = jax.random.uniform(jax.random.key(5), (12, 20))[..., None]
_V = _normal(8)
TAILS = {  # of a network with maps h, (12, 20, 8): those that average them and are linear, and those that do not
    "mean": (True, lambda h: _head(h.mean((0, 1)))),
    "sum over a count": (True, lambda h: _head(h.sum((0, 1)) / jnp.ones(h.shape[:2]).sum())),
    "flat mean": (True, lambda h: _head(h.reshape(-1, 8).mean(0))),
    "mean of mean": (True, lambda h: _head(h.mean(0).mean(0))),
    "einsum": (True, lambda h: _head(jnp.einsum("hwc->c", h))),
    "whole window": (True, lambda h: _head(_avg_pool(h[None], (12, 20))[0, 0, 0])),
    "tiles": (True, lambda h: _head(_avg_pool(h[None], (3, 2), (3, 2)).mean((0, 1, 2)))),
    "two layers": (True, lambda h: _head(h.mean((0, 1)) @ _normal(8, 6) + 0.3)),
    "mean of logits": (True, lambda h: (h @ _normal(8, 5) + 0.2).mean((0, 1))[3]),
    "margin": (True, lambda h: (h.mean((0, 1)) @ _normal(8, 5))[jnp.array([3, 2])] @ jnp.array([1.0, -1])),
    "predicted class": (True, lambda h: (lambda z: z[jnp.argmax(z)])(h.mean((0, 1)) @ _normal(8, 5))),
    "half precision": (True, lambda h: _head(h.astype(jnp.bfloat16).mean((0, 1)).astype(h.dtype))),
    "affine": (True, lambda h: _head((h.mean((0, 1)) - 0.1) / jnp.sqrt(1.3) * 1.2 + 0.1)),
    "weighted": (False, lambda h: _head((h * _WEIGHTS).sum((0, 1)))),
    "contracted with weights": (False, lambda h: _head(jnp.einsum("hwc,hw->c", h, _WEIGHTS[..., 0]))),
    "weights of each place": (False, lambda h: jnp.einsum("hwc,hwc->hw", h, _normal(12, 20, 8)).mean()),
    "weights of each row": (False, lambda h: jnp.einsum("hwc,hc->hw", h, _normal(12, 8)).mean()),
    "one vector for all": (True, lambda h: jnp.einsum("hwc,hc->hw", h, jnp.broadcast_to(_V, (12, 8))).mean()),
    "masked": (False, lambda h: _head(h.mean((0, 1), where=_WHERE[..., None]))),
    "set to zero": (False, lambda h: _head(h.at[:3].set(0).mean((0, 1)))),
    "written over": (False, lambda h: _head(lax.dynamic_update_slice(h, 0 * h[:3], (0, 0, 0)).mean((0, 1)))),
    "part": (False, lambda h: _head(h[2:8, 3:9].mean((0, 1)))),
    "every second": (False, lambda h: _head(h[::2, ::2].mean((0, 1)))),
    "part of a window": (False, lambda h: _head(_avg_pool(h[None], (10, 15))[0, 0, 0])),
    "overlapping windows": (False, lambda h: _head(_avg_pool(h[None], (6, 4), (4, 4)).mean((0, 1, 2)))),
    "dilated window": (
        False,
        lambda h: _head(
            lax.reduce_window(h, 0.0, lax.add, (6, 10, 1), (6, 10, 1), "VALID", window_dilation=(2, 2, 1))[0, 0]
        ),
    ),
    "leaky": (False, lambda h: _head(jax.nn.leaky_relu(h - 0.3).mean((0, 1)))),
    "leaky head": (False, lambda h: _head(jax.nn.leaky_relu(h.mean((0, 1)) @ _normal(8, 6)))),
    "gated head": (False, lambda h: (lambda p: _head(p * lax.stop_gradient(jax.nn.sigmoid(p))))(h.mean((0, 1)))),
    "unit length": (False, lambda h: (lambda p: _head(p / lax.stop_gradient(jnp.linalg.norm(p))))(h.mean((0, 1)))),
    "softmax": (False, lambda h: jax.nn.softmax(h.mean((0, 1)) @ _normal(8, 5))[3]),
    "flatten": (False, lambda h: h.reshape(-1) @ _normal(1920, 5)[:, 3]),
    "maximum": (False, lambda h: _head(h.max((0, 1)))),
    "mean and maximum": (False, lambda h: _head(h.max((0, 1)) + h.mean((0, 1)))),
    "convolved": (False, lambda h: _head(_conv(h[None], 8).mean((1, 2)))),
}  # fmt: skip


@pytest.mark.parametrize("tail", TAILS)
def test_cam_takes_pooling_and_refuses_the_rest(tail):
    is_cam, after = TAILS[tail]
    x = jax.random.normal(jax.random.key(0), (24, 40, 3))
    h = _backbone(x)[0]
    explain = jx.cam(lambda x: after(_backbone(x)[0]), at="back", upsample=False)
    if not is_cam:
        with pytest.raises(jx.LayerError, match="not a mean of the layer's places"):
            explain(x)
        return
    heat = explain(x)
    assert heat.shape == (12, 20)
    tolerance = 1e-2 if tail == "half precision" else 1e-9
    np.testing.assert_allclose(jnp.mean(heat), after(h) - after(0 * h), rtol=tolerance)


def test_cam_of_class_tokens_in_the_mean_is_refused():
    def score(x):
        tokens = _conv(x[None], 8, size=4, stride=4).reshape(60, 8)
        tokens = jnp.concatenate([_normal(1, 8), tokens])
        return _head((tokens + jax.nn.softmax(tokens @ tokens.T) @ tokens).mean(0))

    x = jax.random.normal(jax.random.key(0), (24, 40, 3))
    with pytest.raises(jx.LayerError, match="not a mean of the layer's places"):
        jx.cam(score)(x)
    assert jx.grad_cam(score, relu=False, upsample=False)(x).shape == (6, 10)


def test_a_layout_does_not_overrule_what_is_known():
    x = jax.random.normal(jax.random.key(0), (24, 40, 3))
    kernel = _normal(8, 3, 3, 3)

    def inside_out(x):  # channels last outside, first inside
        maps = lax.conv_general_dilated(
            x.transpose(2, 0, 1)[None], kernel, (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )
        return _head(jax.nn.relu(maps).mean((2, 3)))

    explain = jx.grad_cam(inside_out, relu=False)
    told = jx.grad_cam(inside_out, relu=False, layout=jx.Layout(channel_axis=1))
    np.testing.assert_array_equal(told(x), explain(x))
    with pytest.raises(jx.SettingError, match=r"axes \[2, 3\] are places"):
        jx.grad_cam(inside_out, layout=jx.Layout(channel_axis=-1))(x)

    order = jnp.arange(60)[::-1]

    def unknown(x):  # tokens that come in an order of their own
        return _head(
            checkpoint_name(jnp.sort(_conv(x[None], 8, size=4, stride=4).reshape(60, 8)[order], 0), "h").mean(0)
        )

    with pytest.raises(jx.LayerError, match="axes are unknown"):
        jx.grad_cam(unknown, at="h")(x)
    layout = jx.Layout(channel_axis=-1, grid=(6, 10))
    assert jx.grad_cam(unknown, at="h", relu=False, layout=layout)(x).shape == (24, 40)
    assert jx.grad_cam(lambda x: unknown(x[0]), at="h", relu=False, layout=layout)(x[None]).shape == (24, 40)
    with pytest.raises(jx.LayerError, match="fit several axes of the input"):  # rows, columns or depth?
        jx.grad_cam(lambda x: unknown(x[..., :3]), at="h", layout=layout)(jnp.ones((24, 40, 30)))


def test_messages_of_class_activation_maps():
    two = lambda a, b: _head(_backbone(a).mean((1, 2)) * _backbone(b).mean((1, 2)))
    x = jax.random.normal(jax.random.key(0), (24, 40, 3))
    with pytest.raises(jx.LayerError, match="several inputs have a layer of their own"):
        jx.grad_cam(two, argnums=(0, 1))(x, x)
    with pytest.raises(jx.InputError, match="argnums=2 does not name") as error:
        jx.grad_cam(two, argnums=2)(x, x)
    assert "split" not in str(error.value)
    table = _normal(9, 4)
    tokens = lambda ids: jnp.sum(jax.nn.relu(checkpoint_name(table[ids], "embedding") @ _normal(4, 4)).mean(0))
    ids = jnp.array([1, 5, 2])
    with pytest.raises(jx.InputError, match="must be floats"):
        jx.score_cam(tokens)(ids)
    encode, decode = jx.split(tokens, "embedding")
    assert jx.score_cam(decode)(encode(ids), ids).shape == (3,)


POOLS = {
    "rows, then columns": lambda h: h.mean(0).mean(0),
    "pieces of rows": lambda h: jnp.concatenate([h[:3].mean(0)[None], h[3:].mean(0)[None]]).mean((0, 1)),
    "rows by a product": lambda h: (jnp.ones((1, h.shape[0])) @ h.reshape(len(h), -1)).reshape(h.shape[1:]).mean(0),
    "rows, scaled and shifted": lambda h: (2 * h.mean(0) + 1).mean(0),
}


@pytest.mark.parametrize("name", POOLS)
def test_the_default_layer_has_all_axes_of_the_input(name):
    kernel, head = jnp.sin(jnp.arange(54.0)).reshape(3, 3, 2, 3), jnp.array([1.0, -2.0, 0.5])

    def score(x):
        numbers = ("NHWC", "HWIO", "NHWC")
        h = lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers)[0]
        return POOLS[name](jax.nn.relu(h)) @ head

    x = jnp.cos(jnp.arange(72.0)).reshape(6, 6, 2)
    heat, info = jx.with_info(jx.grad_cam(score, upsample=False))(x)
    assert heat.shape == (6, 6) and info.layer.shape == (6, 6, 3)
