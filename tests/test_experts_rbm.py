"""Restricted Boltzmann machines and Gaussians as densities: against sums over all states, and dense covariances."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal

from jaxplain._errors import (
    JaxplainError,
    MissingKeyError,
    NonFiniteError,
    SettingError,
    StructureError,
    TransformError,
)
from jaxplain.experts import RBM, Gaussian, gaussian, log_partition, rbm
from jaxplain.experts._rbm import _scale, _uncentered

KEY = jax.random.key(0)
KINDS = ("binary", "real")
every_kind = pytest.mark.parametrize("kind", KINDS)


def states(n: int) -> np.ndarray:
    return np.array(list(product([0.0, 1.0], repeat=n)))


def machine(kind: str, shape: tuple[int, ...] = (2, 3), n_hidden: int = 4, spread: float = 1.0) -> RBM:
    rng = np.random.default_rng(0)
    sigma = None if kind == "binary" else jnp.asarray(rng.uniform(0.5, 2, shape))
    parts = (spread * rng.normal(size=s) for s in ((*shape, n_hidden), shape, (n_hidden,)))
    return RBM(*map(jnp.asarray, parts), sigma)


def energy(expert: RBM, x: np.ndarray, h: np.ndarray) -> float:
    """E(x, h), term by term, in NumPy."""
    w, b, c, sigma = (None if part is None else np.asarray(part) for part in expert)
    s = np.ones_like(b) if sigma is None else sigma
    own = -np.sum(b * x) if sigma is None else np.sum((x - b) ** 2 / (2 * s**2))
    return (
        own - np.sum(c * h) - sum(x[i] / s[i] * w[(*i, j)] * h[j] for i in np.ndindex(x.shape) for j in range(len(h)))
    )


def examples_for(kind: str, shape: tuple[int, ...], n: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.integers(0, 2, (n, *shape)).astype(float) if kind == "binary" else rng.normal(size=(n, *shape))


@jax.jit
def free_energies(expert: RBM, xs: jax.Array) -> jax.Array:
    return jax.vmap(expert.free_energy)(xs)


@jax.jit
def log_probs(expert: Gaussian, xs: jax.Array) -> jax.Array:
    return jax.vmap(expert.log_prob)(xs)


def log_z(expert: RBM) -> float:
    """Exact: over all x if binary; over all h, each of which is a Gaussian, if real."""
    if expert.sigma is None:
        x = states(expert.visible_bias.size).reshape(-1, *expert.visible_bias.shape)
        return float(logsumexp(-free_energies(expert, x)))
    w, b, c, sigma = (np.asarray(part) for part in expert)
    sigma = np.broadcast_to(sigma, b.shape)
    h = states(len(c))
    back = np.tensordot(h, w, (1, w.ndim - 1))
    axes = tuple(range(1, back.ndim))
    logs = h @ c + np.sum(b / sigma * back + back**2 / 2, axes)
    return float(logsumexp(logs) + np.sum(np.log(sigma * np.sqrt(2 * np.pi))))


# The density


@every_kind
def test_the_free_energy_sums_over_all_hidden_states(kind) -> None:
    expert, hs = machine(kind), states(4)
    xs = examples_for(kind, (2, 3), 5)
    energies = np.array([[energy(expert, x, h) for h in hs] for x in xs])
    assert np.allclose(free_energies(expert, xs), -logsumexp(-energies, axis=1), rtol=1e-13)
    shares = np.exp(-energies) / np.exp(-energies).sum(1, keepdims=True)
    assert np.allclose(jax.vmap(expert.hidden)(xs), shares @ hs, rtol=1e-12)


def test_the_mean_of_binary_pixels_given_hidden_units_is_that_over_all_their_states() -> None:
    expert, xs, h = machine("binary"), states(6).reshape(-1, 2, 3), states(4)[11]
    shares = np.exp([-energy(expert, x, h) for x in xs])
    assert np.allclose(expert.visible(h), np.tensordot(shares / shares.sum(), xs, 1), rtol=1e-12)


@every_kind
def test_the_gradient_of_the_free_energy_is_that_of_finite_differences(kind) -> None:
    expert, x = machine(kind), examples_for("real", (2, 3), 1)[0]
    nudges = 1e-5 * np.eye(6).reshape(6, 2, 3)
    slopes = (free_energies(expert, x + nudges) - free_energies(expert, x - nudges)) / 2e-5
    assert np.allclose(jax.jit(jax.grad(expert.free_energy))(x).ravel(), slopes, rtol=0, atol=1e-8)


def mixture(expert: RBM) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms of the shares and the means of the Gaussians: what completing the square leaves over."""
    hs = states(len(expert.hidden_bias))
    means = np.asarray(jax.vmap(expert.visible)(hs))
    bias, sigma = np.asarray(expert.visible_bias), np.asarray(expert.sigma)
    back, b = (means - bias) / sigma, bias / sigma
    return log_softmax(np.asarray(hs @ expert.hidden_bias + np.sum(b * back + back**2 / 2, 1))), means


def log_mixture(xs: np.ndarray, log_shares: np.ndarray, means: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    normals = [multivariate_normal.logpdf(xs, mean, np.diag(sigma**2)) for mean in means]
    return logsumexp(log_shares[:, None] + normals, axis=0)


def test_real_pixels_are_a_mixture_of_one_gaussian_for_each_hidden_state() -> None:
    expert, xs = machine("real", (2,), 3), examples_for("real", (2,), 20)
    want = log_mixture(xs, *mixture(expert), np.asarray(expert.sigma))
    assert np.allclose(-free_energies(expert, xs) - log_z(expert), want, rtol=1e-12)


def test_the_free_energy_of_binary_pixels_is_concave_between_them() -> None:
    expert = machine("binary")
    curvature = jax.jit(jax.hessian(expert.free_energy))(np.full((2, 3), 0.3)).reshape(6, 6)
    assert np.linalg.eigvalsh(curvature).max() < 1e-12


def test_the_centered_form_is_the_ordinary_one_up_to_a_constant() -> None:
    centered, mean = machine("binary"), np.linspace(0.1, 0.9, 6).reshape(2, 3)
    w, b, c, _ = (None if part is None else np.asarray(part) for part in centered)
    cases = [(x.reshape(2, 3), h) for x in states(6)[::7] for h in states(4)[::3]]
    want = [-(b * x).sum() - c @ h - np.einsum("ab,abj,j", x - mean, w, h - 0.5) for x, h in cases]
    got = [energy(_uncentered(centered, mean), x, h) for x, h in cases]
    assert np.ptp(np.subtract(got, want)) < 1e-12


def test_gibbs_sampling_leaves_the_density_alone_and_finds_it() -> None:
    expert = machine("binary", (4,), 3)
    xs = states(4)
    p = np.exp(-free_energies(expert, xs) - log_z(expert))
    n = 5_000
    from_p = xs[np.random.default_rng(0).choice(16, n, p=p)]
    starts = np.concatenate([from_p, np.ones((n, 4))])
    run = jax.jit(jax.vmap(partial(expert.gibbs, n_steps=30)))
    ends = np.asarray(run(jax.random.split(KEY, 2 * n), starts)) @ [8, 4, 2, 1]
    for part in (ends[:n], ends[n:]):
        chi_squared = np.sum((np.bincount(part.astype(int), minlength=16) - n * p) ** 2 / (n * p))
        assert chi_squared < 37.7  # 99.9 % of 15 degrees of freedom


def test_gibbs_sampling_of_real_pixels_has_the_moments_of_the_mixture() -> None:
    expert = machine("real", (2,), 3, spread=0.5)
    log_shares, means = mixture(expert)
    shares = np.exp(log_shares)
    mean = shares @ means
    square = shares @ (means**2 + np.asarray(expert.sigma) ** 2)
    n = 5_000
    xs = jax.jit(jax.vmap(partial(expert.gibbs, x=jnp.zeros(2), n_steps=30)))(jax.random.split(KEY, n))
    error = np.sqrt((square - mean**2) / n)
    assert np.all(np.abs(xs.mean(0) - mean) < 4 * error)
    assert np.all(np.abs((xs**2).mean(0) - square) < 4 * np.std(xs**2, 0) / np.sqrt(n))


# The partition function


@pytest.mark.parametrize(
    ("kind", "expert"), [("binary", machine("binary", (4, 2), 6, 1.5)), ("real", machine("real", (3,), 4))]
)
def test_annealed_importance_sampling_covers_the_exact_log_partition(kind, expert) -> None:
    exact, n = log_z(expert), 60
    runs = jax.vmap(lambda key: log_partition(key, expert, n_chains=50, n_temperatures=100))(jax.random.split(KEY, n))
    estimate, low, high, _ = map(np.asarray, runs)
    assert np.all((low < estimate) & (estimate < high)) and np.max(high - low) < 0.6
    covered = np.sum((low <= exact) & (exact <= high))
    assert covered >= 50  # of 60 at 95 %, three or more standard deviations from 57
    # Z itself, not its logarithm, is right on average.
    ratio = np.exp(estimate - exact)
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / np.sqrt(n)
    assert estimate.mean() < exact + 3 * estimate.std() / np.sqrt(n)


# Training


@cache
def bars() -> jax.Array:
    """3×3 images of rows or columns that are on, 3 % of the pixels flipped."""
    rng = np.random.default_rng(0)
    lines = rng.integers(0, 2, (400, 3)).astype(float)
    images = np.repeat(lines[:, :, None], 3, 2)
    images[200:] = images[200:].transpose(0, 2, 1)
    flips = rng.random(images.shape) < 0.03
    return jnp.asarray(np.where(flips, 1 - images, images))


train = partial(rbm, n_hidden=8, epochs=60, batch_size=40, learning_rate=2.0, weight_decay=0.0, progress=False)


@cache
def trained(persistent: bool) -> RBM:
    return train(bars(), key=KEY, persistent=persistent)


@pytest.mark.parametrize("persistent", [True, False], ids=["pcd", "cd"])
def test_training_beats_independent_pixels(persistent) -> None:
    images, expert = bars(), trained(persistent)
    p = images.mean(0, keepdims=True)
    pixelwise = jnp.sum(images * jnp.log(p) + (1 - images) * jnp.log1p(-p), (1, 2)).mean()
    assert abs(pixelwise + 9 * np.log(2)) < 0.05
    likelihood = -free_energies(expert, images).mean() - log_z(expert)
    seen = np.unique(np.asarray(images).reshape(-1, 9), axis=0, return_counts=True)[1] / len(images)
    best = np.sum(seen * np.log(seen))  # of any density: each image as often as it occurs
    assert likelihood > pixelwise + 0.8 * (best - pixelwise), (likelihood, pixelwise, best)
    assert likelihood < best


def test_training_is_a_function_of_its_key() -> None:
    again = train(bars(), key=KEY)
    assert all(np.array_equal(a, b) for a, b in zip(trained(True)[:3], again[:3], strict=True))


def test_training_keeps_the_dtype() -> None:
    images = bars()[:100].astype(jnp.float32)
    expert = train(images, key=KEY, n_hidden=3, epochs=1, batch_size=50, n_chains=7, n_gibbs=2)
    assert expert.sigma is None and expert.weights.shape == (3, 3, 3)
    assert {part.dtype for part in expert[:3]} == {jnp.dtype("float32")}
    results = jax.eval_shape(lambda e, x: (e.gibbs(KEY, x), e.free_energy(x), log_partition(KEY, e)), expert, images[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}


def test_real_pixels_learn_a_mixture_in_their_own_units() -> None:
    rng = np.random.default_rng(0)
    middles, sigma = np.array([[1.5, -1.0], [-1.0, 2.0]]), np.array([0.1, 10.0])
    images = jnp.asarray((middles[rng.integers(0, 2, 500)] + rng.normal(size=(500, 2))) * sigma + 7)
    settings = dict(visible="gaussian", sigma=sigma, n_hidden=4, epochs=40, batch_size=25, learning_rate=0.1)
    expert = rbm(images, key=KEY, progress=False, **settings)
    likelihood = -free_energies(expert, images) - log_z(expert)
    truth = log_mixture(images, np.log([0.5, 0.5]), middles * sigma + 7, sigma)
    single = log_probs(gaussian(images), images)
    assert single.mean() + 0.1 < truth.mean()
    assert truth.mean() - 0.05 < likelihood.mean() < truth.mean() + 0.05


def test_sigma_is_that_of_the_pixels_with_a_floor() -> None:
    images = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)) * [2.0, 1.0, 0.001])
    std = np.std(images, 0)
    assert np.allclose(_scale(None, images, False), np.array([std[0], std[1], std[0] / 10]) / 2)


def test_the_default_sigma_leaves_clusters_to_be_found() -> None:
    rng = np.random.default_rng(0)
    images = jnp.asarray(
        np.array([[3.0, -2.0, 1.0], [-3.0, 2.0, 0.0]])[rng.integers(0, 2, 400)] + rng.normal(size=(400, 3))
    )
    expert = rbm(images, key=KEY, visible="gaussian", n_hidden=4, epochs=150, batch_size=100, progress=False)
    likelihood = -free_energies(expert, images) - log_z(expert)
    assert likelihood.mean() > log_probs(gaussian(images, n_components=0), images).mean() + 0.5


def test_half_precision_is_not_for_temperatures() -> None:
    expert = machine("binary")
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expert)
    same = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    got, want = (log_partition(KEY, e, n_chains=8, n_temperatures=500) for e in (low, same))
    assert got.estimate == want.estimate and got.estimate.dtype == jnp.float32
    assert 1 <= got.effective_chains <= 8


# Gaussians


@cache
def correlated() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3).reshape(200, 2, 3)


def covariance(expert: Gaussian) -> np.ndarray:
    u = np.asarray(expert.components).reshape(len(expert.components), expert.mean.size)
    return u.T @ np.diag(expert.variances - expert.noise) @ u + expert.noise * np.eye(expert.mean.size)


@pytest.mark.parametrize("n_components", [0, 2, 5, None])
def test_gaussians_have_the_density_of_their_covariance(n_components) -> None:
    images = correlated()
    rows = images.reshape(-1, 6)
    expert = gaussian(images, n_components=n_components)
    dense = covariance(expert)
    want = multivariate_normal.logpdf(rows, rows.mean(0), dense)
    assert np.allclose(log_probs(expert, images), want, rtol=1e-11)
    sample = np.cov(rows.T, bias=True)
    assert np.isclose(np.trace(dense), np.trace(sample))  # all variance is kept, if not where it was
    if n_components in (5, None):  # the noise of one direction is its variance
        assert np.allclose(dense, sample)
    x = images[0]
    slope = jax.jit(jax.grad(expert.log_prob))(x).ravel()
    assert np.allclose(slope, -np.linalg.solve(dense, rows[0] - rows.mean(0)), rtol=1e-9)


def test_gaussians_are_the_most_likely_of_their_form() -> None:
    images = correlated()
    expert = gaussian(images, n_components=2)
    slope = jax.jit(jax.grad(lambda e: jnp.mean(jax.vmap(e.log_prob)(images))))(expert)
    assert all(np.allclose(part, 0, atol=1e-10) for part in (slope.mean, slope.variances, slope.noise))


def test_gaussian_samples_have_its_covariance() -> None:
    n = 20_000
    for n_components in (2, None):
        expert = gaussian(correlated(), n_components=n_components)
        samples = jax.jit(jax.vmap(expert.sample))(jax.random.split(KEY, n))
        rows = np.asarray(samples).reshape(n, 6)
        want = covariance(expert)
        scale = np.sqrt(np.diag(want))
        assert np.all(np.abs(rows.mean(0) - expert.mean.ravel()) < 4 * scale / np.sqrt(n))
        error = np.sqrt((np.outer(scale, scale) ** 2 + want**2) / n)  # of a sample covariance
        assert np.all(np.abs(np.cov(rows.T) - want) < 4 * error)


# Refusals


REFUSED = {
    "free energy of a batch": (
        lambda: machine("binary").free_energy(np.zeros((5, 2, 3))),
        StructureError,
        "(5, 2, 3)",
        "(2, 3)",
    ),
    "hidden": (lambda: machine("real").hidden(np.zeros(6)), StructureError, "(6,)", "(2, 3)"),
    "visible": (lambda: machine("real").visible(np.zeros(3)), StructureError, "(3,)", "(4,)"),
    "gibbs shape": (lambda: machine("real").gibbs(KEY, np.zeros(6)), StructureError, "(6,)", "(2, 3)"),
    "gibbs key": (
        lambda: machine("real").gibbs(None, np.zeros((2, 3))),
        MissingKeyError,
        "RBM.gibbs",
        "jax.random.key",
    ),
    "gibbs steps": (lambda: machine("real").gibbs(KEY, np.zeros((2, 3)), 0), SettingError, "n_steps"),
    "no key": (lambda: train(bars()), MissingKeyError, "rbm", "key=jax.random.key(0)"),
    "range": (lambda: train(255 * bars(), key=KEY), SettingError, "[0, 1]", "images / 255"),
    "NaN": (lambda: train(bars() * jnp.nan, key=KEY), NonFiniteError, "NaN"),
    "integers": (lambda: train(np.zeros((9, 4), int), key=KEY), StructureError, "(9, 4)"),
    "kind": (lambda: train(bars(), key=KEY, visible="poisson"), SettingError, "poisson", "gaussian"),
    "no hidden units": (lambda: train(bars(), key=KEY, n_hidden=0), SettingError, "n_hidden"),
    "no rounds": (lambda: train(bars(), key=KEY, n_gibbs=1.5), SettingError, "n_gibbs", "1.5"),
    "no chains": (lambda: train(bars(), key=KEY, n_chains=0), SettingError, "n_chains"),
    "batch": (lambda: train(bars(), key=KEY, batch_size=0), SettingError, "batch_size"),
    "traced": (lambda: jax.jit(lambda x: train(x, key=KEY))(bars()), TransformError, "train outside"),
    "keys": (lambda: train(bars(), key=jax.random.split(KEY)), MissingKeyError, "[2]"),
    "no images": (lambda: train(bars()[:0], key=KEY), StructureError, "(0,"),
    "rate": (lambda: train(bars(), key=KEY, learning_rate=0.0), SettingError, "learning_rate"),
    "decay": (lambda: train(bars(), key=KEY, weight_decay=-1.0), SettingError, "weight_decay"),
    "sigma of bits": (lambda: train(bars(), key=KEY, sigma=1.0), SettingError, "sigma", "gaussian"),
    "sigma's shape": (
        lambda: train(bars(), key=KEY, visible="gaussian", sigma=np.ones(3)),
        StructureError,
        "(3,)",
        "(3, 3)",
    ),
    "sigma's sign": (lambda: train(bars(), key=KEY, visible="gaussian", sigma=-1.0), SettingError, "positive", "-1"),
    "all the same": (lambda: train(np.ones((50, 4)), key=KEY, visible="gaussian"), SettingError, "the same"),
    "one chain": (lambda: log_partition(KEY, machine("real"), n_chains=1), SettingError, "n_chains", "at least 2"),
    "one temperature": (lambda: log_partition(KEY, machine("real"), n_temperatures=1), SettingError, "n_temperatures"),
    "log_partition's key": (lambda: log_partition(0, machine("real")), MissingKeyError, "log_partition"),
    "Gaussian of a batch": (
        lambda: gaussian(correlated()).log_prob(correlated()),
        StructureError,
        "(200, 2, 3)",
        "(2, 3)",
    ),
    "Gaussian sample": (lambda: gaussian(correlated()).sample(None), MissingKeyError, "Gaussian.sample"),
    "too many components": (
        lambda: gaussian(correlated(), n_components=7),
        SettingError,
        "n_components=7",
        "from 0 to 6",
    ),
    "few examples": (lambda: gaussian(correlated()[:4]), SettingError, "singular", "along 3 of 6", "n_components=1"),
    "nothing left": (lambda: gaussian(correlated()[:4], n_components=4), SettingError, "singular", "n_components=1"),
    "one image": (lambda: gaussian(np.ones((3, 2)), n_components=1), SettingError, "all the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_was_got_and_what_to_do(case) -> None:
    call, kind, *words = REFUSED[case]
    with pytest.raises(kind) as raised:
        call()
    assert isinstance(raised.value, JaxplainError)
    assert all(word in str(raised.value) for word in words), str(raised.value)
