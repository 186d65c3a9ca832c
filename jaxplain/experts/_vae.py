"""The variational autoencoder: images as smooth functions of a few normal variables."""

import math
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logit, logsumexp
from jax.typing import ArrayLike

from jaxplain._checks import positive_int
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import wide_dtype
from jaxplain.experts._fit import examples_of, fit, minimizing, one_key

Layer = tuple[jax.Array, jax.Array]  # W and b of x -> x · W + b, summed over all axes of x


class Posterior(NamedTuple):
    r"""The encoder's normal distribution of a code: $q(z \mid x) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2)$.

    Attributes:
        mean: Mean μ, (n_code,).
        log_variance: Logarithm of the variance σ², (n_code,).
    """

    mean: jax.Array
    log_variance: jax.Array


class VAE(NamedTuple):
    r"""A density of binary images generated from a code $z \sim \mathcal{N}(0, I)$, with pixels independent given z.

    $$p(x) = \int \mathcal{N}(z;\, 0, I) \prod_i G(z)_i^{x_i}\, (1 - G(z)_i)^{1 - x_i}\, dz.$$

    `decode` is G. Because codes are normally distributed, `activation_maximization` can search for prototypes among
    them, with `jx.prototypes.decoder(expert.decode)`. Codes at a distance of about √n_code from the origin, typical of
    the prior, look like examples; closer to the origin lie blends.

    The integral has no closed form. The encoder's $q(z \mid x)$ provides lower bounds of log p(x) instead: `elbo`, and
    the tighter `log_prob`.

    A pytree of arrays: pass it to `jit`, take gradients through it. `vae(images)` trains one.

    Attributes:
        encoder: Three layers (W, b), from an example to the mean and log-variance of its code, 2 n_code numbers.
        decoder: Three layers (W, b), from a code to the log-odds of the pixels, with the shape of an example.
    """

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]

    def encode(self, x: ArrayLike) -> Posterior:
        """The distribution of codes for an example.

        Arguments:
            x: One example, binary or in [0, 1]. For a batch: `jax.vmap(expert.encode)(images)`.

        Returns:
            `Posterior(mean, log_variance)`; `expert.decode(expert.encode(x).mean)` is the reconstruction.

        Raises:
            StructureError: x does not have the shape of the examples.
        """
        return Posterior(*jnp.split(_network(self.encoder, self._example("encode", x)), 2))

    def decode(self, z: ArrayLike) -> jax.Array:
        """The mean image G(z) of a code, i.e. the probability of ink of each pixel.

        Arguments:
            z: One code, (n_code,). For a batch: `jax.vmap(expert.decode)(codes)`.

        Returns:
            An image with the shape of an example, in [0, 1].

        Raises:
            StructureError: z does not have the shape of a code.
        """
        shape = jnp.shape(self.decoder[0][0])[:-1]
        if jnp.shape(z) != shape:
            raise StructureError(
                explain_error(
                    "VAE.decode: z does not have the shape of a code.",
                    got=f"{jnp.shape(z)}",
                    need=f"{shape}",
                    fix="a batch: jax.vmap(expert.decode)(codes)",
                )
            )
        return jax.nn.sigmoid(_network(self.decoder, jnp.asarray(z)))

    def elbo(self, x: ArrayLike, key: jax.Array, n_samples: int = 1) -> jax.Array:
        r"""An unbiased estimate of the evidence lower bound of log p(x), in nats.

        $$\mathcal{L}(x) = \mathbb{E}_{q(z \mid x)} \log p(x \mid z)
        - \tfrac12 \sum_j \big(\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2\big)
        \;\le\; \log p(x),$$

        with the expectation over `n_samples` codes $\mu + \sigma \varepsilon$ and the divergence in closed form.

        Arguments:
            x: One example. If x is not binary, the bound is not one of a log-probability but of a negative
                cross-entropy.
            key: One random key. For a batch: `jax.vmap(expert.elbo)(images, jax.random.split(key, n))`.
            n_samples: Number of codes (Python integer). More codes reduce the noise, but do not increase the mean.

        Returns:
            A scalar. A single value may exceed log p(x); the mean over keys does not.

        Cost:
            One pass through the encoder, and `n_samples` through the decoder.

        Raises:
            StructureError: x does not have the shape of the examples.
            MissingKeyError: `key` is not one random key.
            SettingError: `n_samples` is not a positive integer.
        """
        x = self._example("elbo", x)
        mean, log_variance = self.encode(x)
        z, _ = _codes("elbo", mean, log_variance, key, n_samples)
        divergence = jnp.sum(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance) / 2
        return jnp.mean(self._log_likelihoods(x, z)) - divergence

    def log_prob(self, x: ArrayLike, key: jax.Array, n_samples: int = 64) -> jax.Array:
        r"""An estimate of log p(x) by importance sampling with the encoder, in nats; its mean is a lower bound.

        $$\log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x).$$

        Arguments:
            x: One binary example (see `elbo`; round a gray image with `jnp.round(x)`).
            key: One random key. For a batch: `jax.vmap(expert.log_prob)(images, jax.random.split(key, n))`.
            n_samples: Number K of codes (Python integer).

        Returns:
            A scalar. A single value may exceed log p(x); the mean over keys does not.

        Guarantees:
            The mean over keys is the ELBO for K = 1, does not decrease with K, and converges to log p(x). The
            exponential is an unbiased estimate of p(x).

        Cost:
            One pass through the encoder, and K through the decoder, all at once. Under `vmap` over n images this needs
            memory for n K images, which `jax.lax.map(..., batch_size=50)` bounds.

        Raises:
            StructureError: x does not have the shape of the examples.
            MissingKeyError: `key` is not one random key.
            SettingError: `n_samples` is not a positive integer.

        References:
            Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders. ICLR 2016.
        """
        x = self._example("log_prob", x)
        mean, log_variance = self.encode(x)
        z, noise = _codes("log_prob", mean, log_variance, key, n_samples)
        # log p(z) − log q(z | x); the constants of the two normals are the same.
        log_ratios = jnp.sum(jnp.square(noise) + log_variance[None] - jnp.square(z), -1) / 2
        return logsumexp(self._log_likelihoods(x, z) + log_ratios) - math.log(n_samples)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws one binary image from p(x).

        Its pixels are drawn independently given the code, which makes the edges of strokes grainy. For a smooth image,
        as is usually shown: `expert.decode(jax.random.normal(key, (n_code,)))`.

        Arguments:
            key: One random key. For a batch: `jax.vmap(expert.sample)(jax.random.split(key, n))`.

        Raises:
            MissingKeyError: `key` is not one random key.
        """
        code_key, pixel_key = jax.random.split(one_key("VAE.sample", key))
        kernel, _ = self.decoder[0]
        probability = self.decode(jax.random.normal(code_key, kernel.shape[:-1], kernel.dtype))
        return _binary(pixel_key, probability)

    def _example(self, name: str, x: ArrayLike) -> jax.Array:
        shape = jnp.shape(self.decoder[-1][1])
        if jnp.shape(x) != shape:
            raise StructureError(
                explain_error(
                    f"VAE.{name}: x does not have the shape of the examples.",
                    got=f"{jnp.shape(x)}",
                    need=f"{shape}",
                    fix=f"a batch: jax.vmap(expert.{name})",
                )
            )
        return jnp.asarray(x)

    def _log_likelihoods(self, x: jax.Array, codes: jax.Array) -> jax.Array:
        """log p(x | z) for each code."""

        def log_likelihood(z: jax.Array) -> jax.Array:
            log_odds = _network(self.decoder, z)
            return jnp.sum(x * log_odds - jax.nn.softplus(log_odds))

        return jax.vmap(log_likelihood)(codes)


def vae(
    images: ArrayLike,
    *,
    key: jax.Array | None = None,
    n_code: int = 16,
    width: int = 400,
    epochs: int = 40,
    learning_rate: float = 4e-3,
    batch_size: int = 100,
    progress: bool = True,
) -> VAE:
    r"""Trains a variational autoencoder: $\max \sum_i \mathbb{E}_{b \sim \text{Bernoulli}(x_i)}\, \mathcal{L}(b)$.

    $\mathcal{L}$ is the ELBO, see `VAE.elbo`.

    Each step draws new binary pixels, with the gray values as probabilities. The bound is therefore one of the
    probability of binary images, which can be compared with other experts. And no image is seen twice, which keeps the
    encoder from memorizing the examples.

    Encoder and decoder have two hidden layers of ReLU each.

    Arguments:
        images: Array (n, *shape) of real numbers in [0, 1].
        key: One random key, for the weights, the order of the examples, the pixels and the codes.
        n_code: Size of the code.
        width: Width of the four hidden layers.
        epochs: Number of passes over the images.
        learning_rate: Highest learning rate of Adam, which rises over the first fifth of the steps and then falls as a
            cosine.
        batch_size: Images per step, at most all of them.
        progress: Whether to show a progress bar.

    Returns:
        A `VAE` in the dtype of the images, at least float32.

    Guarantees:
        Reproducible: the same key gives the same result.

    Cost:
        About 12 width (d + width) multiply-adds for each image and epoch, for d pixels.

    Raises:
        StructureError: The images are not a batch of real numbers.
        SettingError: The images exceed [0, 1], or a setting is out of range.
        MissingKeyError: `key` is not one random key.
        NonFiniteError: An image contains NaN, or training diverged.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxplain.experts import vae
        >>> images = jnp.tile(jnp.array([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]), (100, 1))
        >>> settings = dict(n_code=1, width=16, epochs=100, learning_rate=0.05, progress=False)
        >>> expert = vae(images, key=jax.random.key(0), **settings)
        >>> print(jnp.round(expert.decode(expert.encode(images[0]).mean)))
        [0. 0. 1. 1.]
        >>> bound = expert.log_prob(images[0], jax.random.key(1))
        >>> bool(-1 < bound < jnp.log(1 / 2))  # the image is one of two
        True

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes. ICLR 2014.
        Rezende, Mohamed, Wierstra: Stochastic Backpropagation and Approximate Inference in Deep Generative Models. ICML
            2014.
    """
    examples = examples_of("vae", images)
    examples = examples.astype(wide_dtype(examples))
    for name, value in (("n_code", n_code), ("width", width), ("epochs", epochs), ("batch_size", batch_size)):
        positive_int("vae", name, value)
    if not 0 < learning_rate < math.inf:
        raise SettingError(explain_error("vae: `learning_rate` must be positive.", got=repr(learning_rate)))
    encoder_key, decoder_key, fit_key = jax.random.split(one_key("vae", key), 3)

    shape, hidden = examples.shape[1:], ((width,), (width,))
    decoder = _layers(decoder_key, ((n_code,), *hidden, shape), examples.dtype)
    # Pixels start at their frequencies, so that the first epoch is not spent on learning these.
    start = logit(jnp.clip(jnp.mean(examples, 0), 1e-3, 1 - 1e-3))
    model = VAE(
        _layers(encoder_key, (shape, *hidden, (2 * n_code,)), examples.dtype),
        (*decoder[:-1], (decoder[-1][0], start)),
    )

    def loss(model: VAE, batch: jax.Array, key: jax.Array) -> jax.Array:
        pixel_key, code_key = jax.random.split(key)
        binary = _binary(pixel_key, batch)
        return -jnp.mean(jax.vmap(model.elbo)(binary, jax.random.split(code_key, len(binary))))

    n_steps = epochs * max(1, len(examples) // batch_size)
    optimizer = optax.adam(optax.cosine_onecycle_schedule(n_steps, learning_rate, pct_start=0.2))
    model, _ = fit(
        "vae",
        minimizing(loss, optimizer),
        (model, optimizer.init(model)),
        examples,
        epochs=epochs,
        batch_size=batch_size,
        key=fit_key,
        progress=progress,
    )
    return model


def _layers(key: jax.Array, shapes: tuple[tuple[int, ...], ...], dtype: jnp.dtype) -> tuple[Layer, ...]:
    """Layers from each shape to the next; the last has small weights, so that training starts from a constant."""
    layers = []
    for number, (source, target) in enumerate(pairwise(shapes)):
        scale = (0.1 if number == len(shapes) - 2 else 1) * math.sqrt(2 / math.prod(source))
        kernel = scale * jax.random.normal(jax.random.fold_in(key, number), (*source, *target), dtype)
        layers.append((kernel, jnp.zeros(target, dtype)))
    return tuple(layers)


def _network(layers: tuple[Layer, ...], x: jax.Array) -> jax.Array:
    *hidden, (kernel, bias) = layers
    for W, b in hidden:
        x = jax.nn.relu(jnp.tensordot(x, W, x.ndim) + b)
    return jnp.tensordot(x, kernel, x.ndim) + bias


def _codes(
    name: str, mean: jax.Array, log_variance: jax.Array, key: jax.Array, n_samples: int
) -> tuple[jax.Array, jax.Array]:
    """Codes drawn from the posterior, (n_samples, n_code), and the standard normal noise in them."""
    positive_int(f"VAE.{name}", "n_samples", n_samples)
    noise = jax.random.normal(one_key(f"VAE.{name}", key), (n_samples, *mean.shape), mean.dtype)
    return mean[None] + jnp.exp(log_variance / 2)[None] * noise, noise


def _binary(key: jax.Array, probability: jax.Array) -> jax.Array:
    return (jax.random.uniform(key, probability.shape, probability.dtype) < probability).astype(probability.dtype)
