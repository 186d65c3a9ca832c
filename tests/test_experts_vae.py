"""The variational and the masked autoencoder: their bounds and probabilities against sums over everything there is."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxplain import MissingKeyError, NonFiniteError, SettingError, StructureError
from jaxplain.experts import VAE, made, vae
from jaxplain.experts._made import _moved

# Four patterns of 3×3 pixels, equally frequent: log 4 nats, which is what a perfect expert needs for each.
PATTERNS = np.array(
    [
        [[1, 1, 1], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 1, 1]],
        [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
        [[0, 0, 1], [0, 0, 1], [0, 0, 1]],
    ],
    float,
)[..., None]
IMAGES = np.tile(PATTERNS, (50, 1, 1, 1))
ENTROPY = np.log(4)
EVERY = np.array(list(itertools.product([0.0, 1.0], repeat=9))).reshape(-1, 3, 3, 1)

SETTINGS = {
    vae: {"n_code": 1, "width": 16, "learning_rate": 0.02, "batch_size": 50, "epochs": 150, "progress": False},
    made: {"n_hidden": 20, "learning_rate": 0.05, "batch_size": 50, "epochs": 100, "progress": False},
}
TRAINERS = pytest.mark.parametrize("train", [vae, made], ids=["vae", "made"])


def trained(train):
    return train(IMAGES, key=jax.random.key(0), **SETTINGS[train])


@pytest.fixture(scope="module")
def autoencoder():
    return trained(vae)


@pytest.fixture(scope="module")
def masked():
    return trained(made)


@pytest.fixture(scope="module")
def models(autoencoder, masked):
    return {vae: autoencoder, made: masked}


@pytest.fixture(scope="module")
def rough(masked):
    """A MADE whose weights are random where they are not masked: its properties come from structure, not training."""
    random = np.random.default_rng(3)
    model = jax.tree.map(lambda w: jnp.asarray(np.where(w != 0, random.normal(size=w.shape), 0)), masked)
    # Direct weights of a pixel that never had ink are still zero.
    return model._replace(A=jnp.asarray(np.triu(random.normal(size=(9, 9)), 1).reshape(model.A.shape)))


def pixelwise(images):
    """The mean log-probability of pixels that are independent."""
    p = images.mean(0)
    return np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0)) + np.sum(
        np.where(p < 1, (1 - p) * np.log(np.maximum(1 - p, 1e-300)), 0)
    )


def within(values, expected, errors=4):
    """The mean of random values is what is expected, up to so many of its standard errors."""
    values = np.asarray(values)
    return abs(values.mean() - expected) <= errors * values.std(ddof=1) / np.sqrt(len(values))


# MADE

log_probs_of = jax.jit(lambda model, images: jax.vmap(model.log_prob)(images))


def test_made_probabilities_sum_to_one(masked, rough):
    for model in (masked, rough):
        np.testing.assert_allclose(np.sum(np.exp(log_probs_of(model, EVERY))), 1, rtol=1e-12)


def test_made_pixels_depend_on_earlier_pixels_alone(rough):
    x = jnp.asarray(EVERY[341])
    slopes_of = jax.jit(lambda model: jax.jacobian(model.conditionals)(x))
    # The hidden units alone, without the direct weights, reach every later pixel too.
    for model in (rough, rough._replace(A=0 * rough.A, b=rough.b + 9)):
        slopes = np.asarray(slopes_of(model)).reshape(9, 9)  # of the pixel in the row, by that in the column
        np.testing.assert_array_equal(np.triu(slopes), 0)
        assert (slopes[np.tril_indices(9, -1)] != 0).all()


def test_made_log_prob_is_the_product_of_its_conditionals(rough):
    x = EVERY[77]
    W, b, V, A, c = (
        np.asarray(w).reshape(shape) for w, shape in zip(rough, [(9, 20), 20, (20, 9), (9, 9), 9], strict=True)
    )
    flat = x.ravel()
    total = 0.0
    conditionals = np.asarray(jax.jit(rough.conditionals)(x)).ravel()
    for d in range(9):
        hidden = np.maximum(0, b + flat[:d] @ W[:d])
        # A unit that sees pixel d or a later one must not be heard.
        assert not V[(W[d:] != 0).any(0), d].any()
        p = 1 / (1 + np.exp(-(c[d] + hidden @ V[:, d] + flat[:d] @ A[:d, d])))
        np.testing.assert_allclose(conditionals[d], p, rtol=1e-10)
        total += np.log(p if flat[d] else 1 - p)
    np.testing.assert_allclose(log_probs_of(rough, EVERY)[77], total, rtol=1e-10)


def test_made_samples_are_as_frequent_as_they_are_probable(rough):
    n = 20_000
    samples = np.asarray(jax.jit(jax.vmap(rough.sample))(jax.random.split(jax.random.key(1), n)))
    assert samples.shape == (n, 3, 3, 1) and set(np.unique(samples)) == {0, 1}
    counts = np.bincount((samples.reshape(n, 9) @ 2 ** np.arange(8, -1, -1)).astype(int), minlength=512)
    expected = n * np.exp(log_probs_of(rough, EVERY))
    rare = expected < 5
    counts, expected = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    freedom = len(expected) - 1
    assert freedom > 50
    chi_square = np.sum((counts - expected) ** 2 / expected)
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_made_learns(masked):
    mean = np.mean(log_probs_of(masked, PATTERNS))
    assert pixelwise(PATTERNS) < -4
    assert -ENTROPY - 0.05 < mean < -ENTROPY  # no distribution does better on four patterns


def test_made_moves_images_by_a_pixel():
    x = np.zeros((5, 5, 1))
    x[2, 2] = 1
    moved = np.asarray(jax.jit(jax.vmap(lambda key: _moved(key, x, 0.5)))(jax.random.split(jax.random.key(0), 9000)))
    counts = moved.sum(0)[..., 0]
    assert moved.sum() == 9000 == counts[1:4, 1:4].sum()
    expected = np.full((3, 3), 500.0)
    expected[1, 1] += 4500
    assert (np.abs(counts[1:4, 1:4] - expected) < 4 * np.sqrt(expected)).all()


def test_made_refuses_what_cannot_be_moved():
    with pytest.raises(SettingError, match="`jitter` must be from 0 to 1"):
        made(IMAGES, key=jax.random.key(0), jitter=2)
    with pytest.raises(StructureError, match=r"height, width(.|\n)*\(9,\)"):
        made(IMAGES.reshape(-1, 9), key=jax.random.key(0), jitter=0.5)


# VAE

decode_all = jax.jit(lambda model, codes: jax.vmap(model.decode)(codes))


def grid_of(model: VAE):
    """log p(x) of all 512 images, by the trapezium rule over a code of one number."""
    codes = np.linspace(-9, 9, 2001)
    means = np.asarray(decode_all(model, codes[:, None])).reshape(-1, 9)
    prior = np.exp(-(codes**2) / 2) / np.sqrt(2 * np.pi) * (codes[1] - codes[0])
    flat = EVERY.reshape(-1, 1, 9)
    return np.log(np.sum(np.prod(np.where(flat == 1, means, 1 - means), -1) * prior, -1))


@pytest.fixture(scope="module")
def bounds(autoencoder):
    """ELBO and importance bounds of two images for 2000 keys, (2000, 2), and their log p(x).

    The posterior is made wider than training left it: the bounds hold for any, and their mean over few keys is that
    over all only where no code that could have made the image is left out.
    """
    *hidden, (kernel, bias) = autoencoder.encoder
    wide = autoencoder._replace(encoder=(*hidden, (0 * kernel, jnp.array([0.0, 0.2]) + 0 * bias)))
    rows = [0b111000000, 0b111000010]  # a pattern, and a pattern with a stray pixel
    x = EVERY[rows]

    @jax.jit
    @jax.vmap
    def all_bounds(key):
        keys = jnp.stack([key, key])
        return {
            "elbo": jax.vmap(wide.elbo)(x, keys),
            "one": jax.vmap(lambda x, key: wide.log_prob(x, key, 1))(x, keys),
            "many": jax.vmap(lambda x, key: wide.log_prob(x, key, 20))(x, keys),
        }

    return all_bounds(jax.random.split(jax.random.key(5), 2000)), grid_of(autoencoder)[rows]


def test_vae_bounds_are_in_order(bounds):
    found, exact = bounds
    for number in range(2):
        elbo, one, many = (np.asarray(found[name])[:, number] for name in ("elbo", "one", "many"))
        assert elbo.mean() < many.mean() < exact[number]
        assert within(elbo - one, 0)  # the same codes: what differs is the divergence, in closed form and drawn
        assert within(np.exp(one), np.exp(exact[number])) and within(np.exp(many), np.exp(exact[number]))
        assert exact[number] - many.mean() < (exact[number] - one.mean()) / 4


def test_vae_probabilities_sum_to_one(autoencoder):
    np.testing.assert_allclose(np.sum(np.exp(grid_of(autoencoder))), 1, rtol=1e-9)


def test_vae_divergence_is_that_of_normals(autoencoder):
    """With a decoder that ignores the code, the ELBO is the likelihood minus the divergence, without noise."""
    model = autoencoder
    W, b = model.decoder[-1]
    blind = model._replace(decoder=(*model.decoder[:-1], (0 * W, b)))
    x = PATTERNS[2]
    mean, log_variance = (float(value[0]) for value in model.encode(x))
    z = np.linspace(mean - 12, mean + 12, 4001)
    log_q = -((z - mean) ** 2) / (2 * np.exp(log_variance)) - log_variance / 2
    q = np.exp(log_q) / np.sqrt(2 * np.pi)
    divergence = np.sum(q * (log_q + z**2 / 2)) * (z[1] - z[0])
    p = np.asarray(jax.nn.sigmoid(b))
    expected = np.sum(np.log(np.where(x == 1, p, 1 - p))) - divergence
    assert divergence > 1e-5
    np.testing.assert_allclose(blind.elbo(x, jax.random.key(0)), expected, rtol=1e-9)


def test_vae_learns(autoencoder):
    keys = jax.random.split(jax.random.key(2), (4, 100))
    elbos = jax.jit(jax.vmap(lambda x, keys: jax.vmap(lambda key: autoencoder.elbo(x, key))(keys)))(PATTERNS, keys)
    # Training starts from independent pixels: the ELBO of a decoder that ignores its code is at most theirs.
    assert pixelwise(PATTERNS) + 2 < np.mean(elbos) < -ENTROPY


def test_vae_shapes_and_reconstructions(autoencoder):
    posterior = jax.jit(jax.vmap(autoencoder.encode))(PATTERNS)
    assert posterior.mean.shape == posterior.log_variance.shape == (4, 1)
    decoded = decode_all(autoencoder, posterior.mean)
    assert decoded.shape == PATTERNS.shape
    assert (decoded >= 0).all() and (decoded <= 1).all()
    np.testing.assert_array_equal(jnp.round(decoded), PATTERNS)


def test_vae_samples_have_its_moments(autoencoder):
    samples = np.asarray(jax.jit(jax.vmap(autoencoder.sample))(jax.random.split(jax.random.key(4), 10_000))).reshape(
        -1, 9
    )
    assert set(np.unique(samples)) == {0, 1}
    probability = np.exp(grid_of(autoencoder))
    flat = EVERY.reshape(-1, 9)
    exact = np.einsum("n,ni,nj->ij", probability, flat, flat)
    error = np.sqrt(np.maximum(exact * (1 - exact), 1e-6) / len(samples))
    assert (np.abs(samples.T @ samples / len(samples) - exact) < 5 * error).all()


# Both


def log_prob(model, x):
    return model.log_prob(x, jax.random.key(9), n_samples=4) if isinstance(model, VAE) else model.log_prob(x)


@TRAINERS
def test_transforms(models, train):
    model, value = models[train], jax.jit(log_prob)
    xs = np.random.default_rng(1).uniform(size=(2, 3, 3, 1))  # a binary image may sit at the kink of a ReLU
    # The expert is a pytree: its weights are arguments too.
    both = jax.jit(jax.vmap(jax.value_and_grad(log_prob, argnums=(0, 1)), in_axes=(None, 0)))
    values, (by_weights, by_pixels) = both(model, xs)
    np.testing.assert_allclose(values, [value(model, x) for x in xs], rtol=1e-12)

    step, direction = 1e-6, np.random.default_rng(0).normal(size=xs[0].shape)
    difference = (value(model, xs[0] + step * direction) - value(model, xs[0] - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(by_pixels[0] * direction), difference, rtol=1e-6)
    steepness = np.sqrt(sum(np.sum(np.square(slope[0])) for slope in jax.tree.leaves(by_weights)))

    def along(distance):
        return value(jax.tree.map(lambda w, slope: w + distance * slope[0] / steepness, model, by_weights), xs[0])

    np.testing.assert_allclose((along(step) - along(-step)) / (2 * step), steepness, rtol=1e-6)


def test_the_same_key_trains_the_same(autoencoder):
    for a, b in zip(*(jax.tree.leaves(model) for model in (autoencoder, trained(vae))), strict=True):
        np.testing.assert_array_equal(a, b)


@TRAINERS
def test_the_key_decides_the_sample(models, train):
    keys = jax.vmap(jax.random.key)(jnp.array([1, 1, *range(2, 20)]))
    samples = np.asarray(jax.jit(jax.vmap(models[train].sample))(keys))
    np.testing.assert_array_equal(samples[0], samples[1])
    assert len(np.unique(samples, axis=0)) > 2


@TRAINERS
def test_training_refuses(train):
    settings = SETTINGS[train] | {"key": jax.random.key(0)}
    with pytest.raises(SettingError, match=r"in \[0, 1\](.|\n)*from 0 to 255(.|\n)*images / 255"):
        train(255 * IMAGES, **settings)
    with pytest.raises(StructureError, match=r"batch of real numbers(.|\n)*int64, shape \(200, 3, 3, 1\)"):
        train(IMAGES.astype(int), **settings)
    with pytest.raises(NonFiniteError, match="NaN"):
        train(IMAGES * np.nan, **settings)
    with pytest.raises(MissingKeyError, match=r"random key(.|\n)*jax\.random\.key\(0\)"):
        train(IMAGES, key=None)
    for name in ("epochs", "batch_size", "n_code" if train is vae else "n_hidden"):
        for value in (0, 2.0, True):
            with pytest.raises(SettingError, match=f"{train.__name__}: `{name}` must be a positive"):
                train(IMAGES, **settings | {name: value})
    for value in (0, -1e-3, np.inf, np.nan):
        with pytest.raises(SettingError, match=f"{train.__name__}: `learning_rate` must be positive"):
            train(IMAGES, **settings | {"learning_rate": value})


def test_made_refuses_a_single_pixel():
    with pytest.raises(StructureError, match=r"at least two pixels(.|\n)*\(1,\)"):
        made(np.ones((5, 1)), key=jax.random.key(0))


def test_wrong_shapes_are_refused_with_both(autoencoder, masked):
    auto, key = autoencoder, jax.random.key(0)
    both = re.escape("(9,)") + r"(.|\n)*" + re.escape("(3, 3, 1)")
    for call in (
        auto.encode,
        lambda x: auto.elbo(x, key),
        lambda x: auto.log_prob(x, key),
        masked.log_prob,
        masked.conditionals,
    ):
        with pytest.raises(StructureError, match=both):
            call(np.zeros(9))
    with pytest.raises(StructureError, match=r"\(4, 3, 3, 1\)(.|\n)*\(3, 3, 1\)(.|\n)*jax\.vmap\(expert\.log_prob\)"):
        masked.log_prob(PATTERNS)
    with pytest.raises(StructureError, match=r"\(2,\)(.|\n)*\(1,\)(.|\n)*jax\.vmap\(expert\.decode\)"):
        auto.decode(np.zeros(2))


def test_methods_refuse(autoencoder, masked):
    auto, x = autoencoder, PATTERNS[0]
    for call in (auto.sample, masked.sample, lambda key: auto.elbo(x, key), lambda key: auto.log_prob(x, key)):
        with pytest.raises(MissingKeyError, match="needs a random key"):
            call(None)
    for call in (auto.elbo, auto.log_prob):
        with pytest.raises(SettingError, match="`n_samples` must be a positive"):
            call(x, jax.random.key(0), n_samples=0)
