"""The Gaussian expert: probabilistic principal components in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain.experts._fit import examples_of, one_key


class Gaussian(NamedTuple):
    r"""A normal density whose covariance consists of a few directions and isotropic noise in all others.

    $$p(x) = \mathcal{N}(x;\, \mu,\, C), \qquad C = \sum_{i=1}^k (\lambda_i - \sigma^2)\, u_i u_i^\top + \sigma^2 I.$$

    A pytree of arrays: pass it to `jit`, take gradients through it. `gaussian(images)` fits one.

    Attributes:
        mean: Mean μ, with the shape of an example.
        components: Orthonormal directions u, (k, *shape), in order of decreasing variance.
        variances: Variances λ along the components, (k,), including the noise.
        noise: Variance σ² along every direction orthogonal to all components, (); 0 if k = d.
    """

    mean: jax.Array
    components: jax.Array
    variances: jax.Array
    noise: jax.Array

    def log_prob(self, x: ArrayLike) -> jax.Array:
        r"""The log-density of one example, in nats.

        With the residual $r = x - \mu$ and its coordinates $z_i = u_i \cdot r$,

        $$\log p(x) = -\tfrac12 \Big[ \sum_{i=1}^k \Big( \frac{z_i^2}{\lambda_i} + \log \lambda_i \Big)
        + \frac{\lVert r - \sum_i z_i u_i \rVert^2}{\sigma^2} + (d - k) \log \sigma^2 + d \log 2\pi \Big],$$

        which is the Woodbury identity for orthonormal components.

        Arguments:
            x: One example, with the shape of `mean`. For a batch: `jax.vmap(expert.log_prob)(images)`.

        Returns:
            A scalar. Note that it is the logarithm of a density, so it may be thousands of nats above zero if pixels
            hardly vary.

        Guarantees:
            Exact, and normalized over all real x, including values outside of the pixels' range.

        Cost:
            O(d k): two products with the components.

        Raises:
            StructureError: x does not have the shape of `mean`.
        """
        shape = jnp.shape(self.mean)
        if jnp.shape(x) != shape:
            raise StructureError(
                explain_error(
                    "Gaussian: the example does not have the shape of the mean.",
                    got=f"{jnp.shape(x)}",
                    need=f"{shape}",
                    fix="a batch: jax.vmap(expert.log_prob)(images)",
                )
            )
        size, kept = self.mean.size, len(self.components)
        away = jnp.asarray(x) - self.mean
        along = jnp.tensordot(self.components, away, len(shape))
        twice = jnp.sum(jnp.square(along) / self.variances + jnp.log(self.variances)) + size * jnp.log(2 * jnp.pi)
        if kept < size:
            # Rather than |away|² − |along|², a small difference of two large numbers.
            rest = away - jnp.tensordot(along, self.components, 1)
            twice += jnp.sum(jnp.square(rest)) / self.noise + (size - kept) * jnp.log(self.noise)
        return -twice / 2

    def sample(self, key: jax.Array) -> jax.Array:
        r"""Draws $\mu + \sum_i \sqrt{\lambda_i - \sigma^2}\, z_i u_i + \sigma \varepsilon$ with standard normal z, ε.

        Arguments:
            key: One random key. For a batch: `jax.vmap(expert.sample)(jax.random.split(key, n))`.

        Raises:
            MissingKeyError: `key` is not one random key.
        """
        latent_key, noise_key = jax.random.split(one_key("Gaussian.sample", key))
        latent = jax.random.normal(latent_key, self.variances.shape, self.variances.dtype)
        noise = jax.random.normal(noise_key, self.mean.shape, self.mean.dtype)
        away = jnp.tensordot(latent * jnp.sqrt(self.variances - self.noise), self.components, 1)
        return self.mean + away + jnp.sqrt(self.noise) * noise


def gaussian(images: ArrayLike, *, n_components: int | None = None) -> Gaussian:
    r"""The maximum-likelihood Gaussian expert of some images: probabilistic PCA.

    $$\hat\mu = \frac1n \sum_j x_j, \qquad \hat\lambda_i, \hat u_i = \text{the } k \text{ largest eigenpairs of }
    \frac1n \sum_j (x_j - \hat\mu)(x_j - \hat\mu)^\top, \qquad
    \hat\sigma^2 = \frac{1}{d - k} \sum_{i > k} \hat\lambda_i.$$

    For prototypes of a class it is the smoothest expert: its log-density is quadratic, so there is a single best image.
    It models which pixels vary together, but not strokes.

    Arguments:
        images: Array (n, *shape) of real numbers of any range.
        n_components: Number k of directions with their own variance, from 0 (the same variance everywhere) to d. `None`
            keeps all d, i.e. a full covariance, which requires more examples than pixels and no constant pixel.

    Returns:
        A `Gaussian`, in the dtype of the images.

    Guarantees:
        The maximum of the likelihood over all Gaussians of this form. Deterministic.

    Cost:
        One singular value decomposition of the images in float64 on the host: O(n d min(n, d)), or 3 s for 9,000 digits
        of 784 pixels.

    Raises:
        StructureError: the images are not a batch of real numbers.
        SettingError: `n_components` is out of range, or the remaining variance is zero, so that the density is
            infinite.

    Example:
        >>> import jax, jaxplain as jx
        >>> from jaxplain.experts import gaussian
        >>> digits = jx.datasets.mnist()
        >>> expert = gaussian(digits.x_train[:500], n_components=20)
        >>> expert.components.shape
        (20, 28, 28, 1)
        >>> log_probs = jax.vmap(expert.log_prob)(digits.x_test[:100])
        >>> bool((log_probs > expert.log_prob(1 - digits.x_test[0])).all())
        True

    References:
        Tipping, Bishop: Probabilistic Principal Component Analysis. Journal of the Royal Statistical Society B 61,
            1999.
    """
    examples = examples_of("gaussian", images, binary_range=False)
    shape, dtype = examples.shape[1:], examples.dtype
    size = int(np.prod(shape))
    kept = size if n_components is None else n_components
    if not isinstance(kept, int) or isinstance(kept, bool) or not 0 <= kept <= size:
        raise SettingError(
            explain_error(
                "gaussian: `n_components` is out of range.",
                got=f"n_components={n_components!r}",
                need=f"a Python integer from 0 to {size}, the number of pixels, or None for all of them",
            )
        )

    rows = np.asarray(examples, np.float64).reshape(-1, size)
    mean = np.mean(rows, 0)
    _, lengths, directions = np.linalg.svd(rows - mean, full_matrices=False)
    variances = np.zeros(size)
    variances[: len(lengths)] = np.square(lengths) / len(rows)
    noise = np.mean(variances[kept:]) if kept < size else 0.0

    # Variances below this are rounding errors, either of the decomposition in float64 or of residuals in `dtype`.
    rounding = max(max(rows.shape) * np.finfo(np.float64).eps, 10 * float(jnp.finfo(dtype).eps))
    negligible = rounding**2 * variances[0]
    limits = jnp.finfo(dtype)
    if variances[0] > float(limits.max) or 0 < (noise if kept < size else variances[-1]) < float(limits.tiny):
        raise SettingError(
            explain_error(
                f"gaussian: the variances exceed the range of {dtype}.",
                got=f"from {variances[kept - 1] if kept else noise:.3g} to {variances[0]:.3g}",
                fix="rescale the images: (images - images.mean()) / images.std()",
            )
        )
    if (noise if kept < size else variances[-1]) <= negligible:
        rank = int(np.sum(variances > negligible))
        raise SettingError(
            explain_error(
                "gaussian: the covariance of the images is singular.",
                got=f"{len(rows)} images that vary along {rank} of {size} directions, all of them kept"
                if kept == size
                else f"n_components={kept}, and almost no variance ({noise:.3g}) along the others",
                why="the density is infinite along a direction without variance"
                if rank
                else "the images are all the same",
                fix=f"n_components={min(50, rank // 2)}, so that all other directions share their mean variance"
                if rank > 1
                else "use images that differ",
            )
        )
    return Gaussian(
        jnp.asarray(mean.reshape(shape), dtype),
        jnp.asarray(directions[:kept].reshape(kept, *shape), dtype),
        jnp.asarray(variances[:kept], dtype),
        jnp.asarray(noise, dtype),
    )
