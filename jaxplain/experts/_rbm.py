"""The restricted Boltzmann machine, an expert with binary hidden units."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logit
from jax.typing import ArrayLike

from jaxplain._checks import one_of, positive_int
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import wide_dtype
from jaxplain.experts._fit import examples_of, fit, minimizing, one_key


class RBM(NamedTuple):
    r"""A restricted Boltzmann machine: a density of examples x with binary hidden units h, summed out in closed form.

    Binary pixels (`sigma` is None), $x \in \{0, 1\}^d$:

    $$p(x, h) \propto e^{-E(x, h)}, \qquad E(x, h) = -b \cdot x - c \cdot h - \sum_{ij} x_i W_{ij} h_j.$$

    Real pixels (`sigma` = σ), $x \in \mathbb{R}^d$: each h is a Gaussian of covariance $\operatorname{diag} \sigma^2$,
    and p(x) a mixture of $2^{n_\text{hidden}}$ of them:

    $$E(x, h) = \sum_i \frac{(x_i - b_i)^2}{2 \sigma_i^2} - c \cdot h - \sum_{ij} \frac{x_i}{\sigma_i} W_{ij} h_j.$$

    A pytree of arrays: pass it to `jit`, take gradients through it. `rbm(images, key=key)` trains one.

    Attributes:
        weights: Weights W, (*shape, n_hidden), where shape is the shape of an example.
        visible_bias: Biases b of the pixels, with the shape of an example.
        hidden_bias: Biases c of the hidden units, (n_hidden,).
        sigma: Standard deviations of x given h, with the shape of an example or (); `None` for binary pixels.
    """

    weights: jax.Array
    visible_bias: jax.Array
    hidden_bias: jax.Array
    sigma: jax.Array | None = None

    def free_energy(self, x: ArrayLike) -> jax.Array:
        r"""The free energy F(x), which is −log p(x) up to the constant log Z: $p(x) = e^{-F(x)} / Z$.

        $$F(x) = -b \cdot x - \sum_j \operatorname{softplus}\Big(c_j + \sum_i W_{ij} x_i\Big) \qquad \text{(binary)},$$

        $$F(x) = \sum_i \frac{(x_i - b_i)^2}{2 \sigma_i^2} - \sum_j \operatorname{softplus}\Big(c_j + \sum_i W_{ij}
        \frac{x_i}{\sigma_i}\Big) \qquad \text{(real)}.$$

        As a penalty of activation maximization, `lambda x, *_: strength * expert.free_energy(x)` keeps a prototype
        close to the examples. Note that it should start from an example or from the mean of a class, not from noise or
        a black image, because F has minima that no chain visited during training, and the image with the lowest F need
        not look like an example. For digits it is the black image, whose density is e⁵⁰ times that of a digit.

        Arguments:
            x: One example, with the shape of `visible_bias`. For a batch: `jax.vmap(expert.free_energy)(images)`.

        Returns:
            A scalar, in nats. −F(x) − log Z is the log-likelihood, with log Z from `log_partition`.

        Guarantees:
            Exact: all hidden units are summed over. For binary pixels, F is also defined and smooth for x between 0 and
            1, where it is not a density. It is concave, so its minima over the box are corners: it drives pixels to
            black or white.

        Cost:
            O(d n_hidden): one product with the weights, and one more for the gradient.

        Raises:
            StructureError: x does not have the shape of `visible_bias`.
        """
        x = self._example(x)
        hidden = jnp.sum(jax.nn.softplus(self._inputs(x)))
        if self.sigma is None:
            return -jnp.sum(self.visible_bias * x) - hidden
        return jnp.sum(jnp.square((x - self.visible_bias) / self.sigma)) / 2 - hidden

    def hidden(self, x: ArrayLike) -> jax.Array:
        r"""Probabilities of the hidden units given x; σ = 1 for binary pixels.

        $$p(h_j = 1 \mid x) = \operatorname{sigmoid}\Big(c_j + \sum_i W_{ij} x_i / \sigma_i\Big).$$

        Arguments:
            x: One example, with the shape of `visible_bias`.

        Returns:
            Array (n_hidden,). The hidden units are independent given x.

        Raises:
            StructureError: x does not have the shape of an example.
        """
        return jax.nn.sigmoid(self._inputs(self._example(x)))

    def visible(self, h: ArrayLike) -> jax.Array:
        r"""The mean of x given h: $\operatorname{sigmoid}(b + W h)$ if binary, $b + \sigma\, W h$ if real.

        Arguments:
            h: Hidden units, (n_hidden,).

        Returns:
            Array with the shape of an example. The pixels are independent given h.

        Raises:
            StructureError: h does not have shape (n_hidden,).
        """
        if jnp.shape(h) != jnp.shape(self.hidden_bias):
            raise StructureError(
                explain_error(
                    "RBM: `h` must be the hidden units of one example.",
                    got=f"shape {jnp.shape(h)}",
                    need=f"{jnp.shape(self.hidden_bias)}",
                    fix="a batch: jax.vmap(expert.visible)(hs)",
                )
            )
        back = jnp.tensordot(self.weights, jnp.asarray(h, self.weights.dtype), 1)
        if self.sigma is None:
            return jax.nn.sigmoid(self.visible_bias + back)
        return self.visible_bias + self.sigma * back

    def gibbs(self, key: jax.Array, x: ArrayLike, n_steps: int = 1) -> jax.Array:
        """Gibbs sampling from x: `n_steps` rounds of drawing h given x, then x given h.

        Arguments:
            key: One random key. For many chains: `jax.vmap(lambda key, x: expert.gibbs(key, x, 1000))(keys, xs)`.
            x: Start of the chain, with the shape of `visible_bias`.
            n_steps: Number of rounds, a Python integer.

        Returns:
            An example, with pixels 0 or 1 if binary. `expert.visible(expert.hidden(x))` is a smoother version of it.

        Guarantees:
            A round leaves p(x) invariant: a chain that starts with a sample of p ends with one. From elsewhere, the
            required number of rounds is unknown; chains of a trained RBM move slowly between different kinds of
            examples.

        Cost:
            Two products with the weights per round.

        Raises:
            MissingKeyError: `key` is not one random key.
            StructureError: x does not have the shape of an example.
            SettingError: `n_steps` is not a positive integer.
        """
        positive_int("RBM.gibbs", "n_steps", n_steps)

        def around(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            hidden_key, visible_key = jax.random.split(key)
            return self._draw(visible_key, self.visible(_coins(hidden_key, self.hidden(x)))), None

        keys = jax.random.split(one_key("RBM.gibbs", key), n_steps)
        return lax.scan(around, jnp.asarray(self._example(x), self.weights.dtype), keys)[0]

    def _inputs(self, x: jax.Array) -> jax.Array:
        scaled = x if self.sigma is None else x / self.sigma
        return self.hidden_bias + jnp.tensordot(scaled, self.weights, scaled.ndim)

    def _draw(self, key: jax.Array, mean: jax.Array) -> jax.Array:
        if self.sigma is None:
            return _coins(key, mean)
        return mean + self.sigma * jax.random.normal(key, mean.shape, mean.dtype)

    def _example(self, x: ArrayLike) -> jax.Array:
        shape = jnp.shape(self.visible_bias)
        if jnp.shape(x) != shape:
            raise StructureError(
                explain_error(
                    "RBM: the example does not have the shape of the visible units.",
                    got=f"shape {jnp.shape(x)}",
                    need=f"{shape}",
                    fix="a batch: jax.vmap(expert.free_energy)(images)",
                )
            )
        return jnp.asarray(x)


def rbm(
    images: ArrayLike,
    *,
    key: jax.Array | None = None,
    n_hidden: int = 400,
    visible: Literal["bernoulli", "gaussian"] = "bernoulli",
    sigma: ArrayLike | None = None,
    epochs: int = 30,
    learning_rate: float | None = None,
    batch_size: int = 100,
    n_gibbs: int = 1,
    persistent: bool = True,
    n_chains: int | None = None,
    weight_decay: float = 1e-4,
    progress: bool = True,
) -> RBM:
    r"""A restricted Boltzmann machine trained on some images by persistent contrastive divergence.

    The gradient of the log-likelihood is that of a difference, where samples $\tilde x$ of the model are held fixed:

    $$\nabla_\theta\, \mathbb{E}_\text{data}[\log p(x)]
    = -\nabla_\theta \Big( \mathbb{E}_{x \sim \text{data}}[F(x)] - \mathbb{E}_{\tilde x \sim p}[F(\tilde x)] \Big).$$

    The samples come from Markov chains, which advance `n_gibbs` rounds at each step of the optimizer. Persistent chains
    continue from step to step (PCD, also called stochastic maximum likelihood) and explore the mass of the model. With
    `persistent=False` they restart from the batch (CD-k). Such chains never visit regions more than a few rounds away
    from the data, which is where activation maximization would go; on the digits this costs 19 nats of likelihood.

    Training takes a few thousand steps. Three choices avoid most of the tuning. The learning rate decreases linearly to
    zero, because the chains must move faster than the weights. The gradient is centered: the weights are learned for
    $(x - \mu)_i W_{ij} (h - \tfrac12)_j$ with the mean image μ, and the biases of the ordinary form are restored at the
    end; this is the same family of densities with a better conditioned gradient. The biases of pixels start at the
    log-odds of their means, clipped to [0.01, 0.99], and those of hidden units at 0.

    Arguments:
        images: Array (n, *shape). For Bernoulli pixels, probabilities in [0, 1], from which new binary pixels are drawn
            each time an image is used. For Gaussian pixels, real numbers of any range.
        key: One random key. Required.
        n_hidden: Number of hidden units.
        visible: `"bernoulli"` for pixels that are 0 or 1, or `"gaussian"` for real pixels.
        sigma: For Gaussian pixels only, the positive standard deviations of pixels given the hidden units, with the
            shape of an example or (). They are not learned. `None` uses half the standard deviation of each pixel in
            `images`, but at least a twentieth of the largest. This leaves three quarters of the variance for the hidden
            units to explain. A smaller σ allows finer detail and mixes more slowly.
        epochs: Number of passes over the images.
        learning_rate: Learning rate of the first step. `None` is 0.3 for Bernoulli and 0.03 for Gaussian pixels.
        batch_size: Images per step, at most all of them.
        n_gibbs: Rounds of Gibbs sampling per step.
        persistent: Whether chains continue from step to step or restart from the batch.
        n_chains: Number of persistent chains. `None` is `batch_size`.
        weight_decay: Factor λ of $\tfrac{\lambda}{2} \lVert W \rVert^2$, which is added to the negative log-likelihood.
        progress: Whether to show a progress bar. Its objective, F(data) − F(samples) plus the weight decay, is not a
            likelihood and stays near zero.

    Returns:
        An `RBM` in the dtype of the images, at least float32.

    Guarantees:
        Reproducible: the same key gives the same result. The gradient is biased, because the chains are not in
        equilibrium. Measure the likelihood with `log_partition`.

    Cost:
        (4 + 2 n_gibbs) products of a batch with the weights per step.

    Raises:
        MissingKeyError: `key` is missing or not one random key.
        StructureError: The images are not a batch of real numbers, or `sigma` does not match their shape.
        SettingError: A setting is out of range, or images for Bernoulli pixels exceed [0, 1].
        NonFiniteError: Training diverged, or the images contain NaN.

    Example:
        >>> import jax, jaxplain as jx
        >>> from jaxplain.experts import log_partition, rbm
        >>> digits = jx.datasets.mnist()
        >>> expert = rbm(digits.x_train[:1000], key=jax.random.key(0), n_hidden=16, epochs=5, progress=False)
        >>> x = (digits.x_test > 0.5).astype("float32")
        >>> log_z = log_partition(jax.random.key(1), expert, n_temperatures=200).estimate
        >>> log_likelihood = -jax.vmap(expert.free_energy)(x) - log_z
        >>> bool(log_likelihood.mean() > -206)  # the likelihood of independent pixels
        True

    References:
        Hinton: Training Products of Experts by Minimizing Contrastive Divergence. Neural Computation 14, 2002.
        Tieleman: Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient. ICML 2008.
        Montavon, Müller: Deep Boltzmann Machines and the Centering Trick. Neural Networks: Tricks of the Trade, 2012.
        Melchior, Fischer, Wiskott: How to Center Deep Boltzmann Machines. JMLR 17, 2016.
    """
    init_key, chain_key, fit_key = jax.random.split(one_key("rbm", key), 3)
    one_of("rbm", "visible", visible, ("bernoulli", "gaussian"))
    binary = visible == "bernoulli"
    examples = examples_of("rbm", images, binary_range=binary)
    examples = examples.astype(wide_dtype(examples))
    shape, dtype = examples.shape[1:], examples.dtype
    n_chains = batch_size if n_chains is None else n_chains
    learning_rate = (0.3 if binary else 0.03) if learning_rate is None else learning_rate
    counts = {
        "n_hidden": n_hidden,
        "epochs": epochs,
        "batch_size": batch_size,
        "n_gibbs": n_gibbs,
        "n_chains": n_chains,
    }
    for name, count in counts.items():
        positive_int("rbm", name, count)
    if not learning_rate > 0 or not weight_decay >= 0:
        raise SettingError(
            explain_error(
                "rbm: `learning_rate` must be positive and `weight_decay` not negative.",
                got=f"learning_rate={learning_rate!r}, weight_decay={weight_decay!r}",
            )
        )

    scale = _scale(sigma, examples, binary)
    # Real pixels are learned in units of sigma, so that one learning rate suits all of them.
    units = examples if scale is None else examples / jnp.broadcast_to(scale, examples.shape)
    mean = jnp.mean(units, 0)
    start = RBM(
        0.01 * jax.random.normal(init_key, (*shape, n_hidden), dtype),
        logit(jnp.clip(mean, 0.01, 0.99)) if binary else mean,
        jnp.zeros(n_hidden, dtype),
    )
    n_updates = epochs * max(len(examples) // batch_size, 1)
    optimizer = optax.sgd(optax.linear_schedule(learning_rate, 0.0, n_updates))

    def as_rbm(centered: RBM) -> RBM:
        # σ is added here, because it would be trained if it were one of the parameters.
        return _uncentered(centered, mean)._replace(sigma=None if binary else jnp.ones((), dtype))

    def loss(centered: RBM, data: jax.Array, samples: jax.Array) -> jax.Array:
        free_energy = jax.vmap(as_rbm(centered).free_energy)
        decay = weight_decay / 2 * jnp.sum(jnp.square(centered.weights))
        return jnp.mean(free_energy(data)) - jnp.mean(free_energy(samples)) + decay

    def update(carry: Any, batch: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        trained, chains = carry
        data_key, chain_key = jax.random.split(key)
        data = _coins(data_key, batch) if binary else batch
        chains = chains if persistent else data
        samples = jax.vmap(partial(as_rbm(trained[0]).gibbs, n_steps=n_gibbs))(
            jax.random.split(chain_key, len(chains)), chains
        )
        samples = lax.stop_gradient(samples)
        trained, value = minimizing(lambda centered, data, _: loss(centered, data, samples), optimizer)(
            trained, data, key
        )
        return (trained, samples if persistent else None), value

    chains = (
        jax.vmap(as_rbm(start)._draw, (0, None))(jax.random.split(chain_key, n_chains), mean) if persistent else None
    )
    carry = (start, optimizer.init(start)), chains
    (trained, _), _ = fit(
        "rbm", update, carry, units, epochs=epochs, batch_size=batch_size, key=fit_key, progress=progress
    )
    expert = as_rbm(trained)
    return expert if scale is None else expert._replace(visible_bias=scale * expert.visible_bias, sigma=scale)


class LogPartition(NamedTuple):
    r"""An estimate of the logarithm of a partition function, in nats.

    Attributes:
        estimate: The estimate of log Z.
        low: Lower bound of a 95 % interval.
        high: Upper bound of a 95 % interval.
        effective_chains: Effective number of chains, $(\sum w)^2 / \sum w^2$. If it is much smaller than `n_chains`,
            there are too few temperatures.
    """

    estimate: jax.Array
    low: jax.Array
    high: jax.Array
    effective_chains: jax.Array


def log_partition(key: jax.Array, rbm: RBM, *, n_chains: int = 100, n_temperatures: int = 1000) -> LogPartition:
    r"""The log Z of an RBM, $\log \sum_x e^{-F(x)}$ (an integral for real pixels), by annealed importance sampling.

    Each chain starts with a sample of the RBM without weights, whose log Z₀ is known, and moves to the RBM through

    $$F_\beta(x) = F_0(x;\, b_\beta)
    - \sum_j \operatorname{softplus}\big(\beta\, (c_j + \textstyle\sum_i W_{ij} x_i / \sigma_i)\big),
    \qquad 0 = \beta_1 < \dots < \beta_K = 1,$$

    with one round of Gibbs sampling at each (F₀ is the part of the pixels alone; σ = 1 if binary). The biases of the
    pixels change from $b_0 = b + \tfrac12 \sigma \sum_j W_j$, those of the centered form, which are close to the
    pixels' own means, to $b_1 = b$. Then

    $$\log \hat Z = \log Z_0 + \log \frac1N \sum_{n=1}^N w_n, \qquad
    \log w_n = \sum_{k=2}^{K} F_{\beta_{k-1}}\big(x_n^{(k-1)}\big) - F_{\beta_k}\big(x_n^{(k-1)}\big).$$

    Arguments:
        key: One random key.
        rbm: The RBM, binary or real.
        n_chains: Number N of independent chains, at least 2.
        n_temperatures: Number K of evenly spaced temperatures, at least 2.

    Returns:
        A `LogPartition`. The mean log-likelihood of examples is `-jax.vmap(rbm.free_energy)(x).mean() - estimate`.

    Guarantees:
        The mean of the weights is an unbiased estimate of Z. Its logarithm is therefore too low on average, and
        **log-likelihoods are too high**. The interval is that of the delta method: the estimate ± 1.96 relative
        standard errors of the mean weight. It does not account for modes that no chain has found. If estimates increase
        with `n_temperatures`, there are too few temperatures.

    Cost:
        Two products of N examples with the weights per temperature, in one compiled loop.

    Raises:
        MissingKeyError: `key` is not one.
        SettingError: fewer than 2 chains or temperatures.

    Example: see `rbm`.

    References:
        Neal: Annealed Importance Sampling. Statistics and Computing 11, 2001.
        Salakhutdinov, Murray: On the Quantitative Analysis of Deep Belief Networks. ICML 2008.
    """
    positive_int("log_partition", "n_chains", n_chains, minimum=2)
    positive_int("log_partition", "n_temperatures", n_temperatures, minimum=2)
    # In bfloat16, neighboring temperatures would coincide.
    rbm = jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf)), rbm)
    log_weights = _annealed(one_key("log_partition", key), rbm, n_chains, n_temperatures)
    if rbm.sigma is None:
        pixels = jnp.sum(jax.nn.softplus(rbm.visible_bias + _half(rbm)))
    else:
        pixels = jnp.sum(jnp.broadcast_to(jnp.log(rbm.sigma * jnp.sqrt(2 * jnp.pi)), rbm.visible_bias.shape))
    log_mean = jax.nn.logsumexp(log_weights) - jnp.log(n_chains)
    error = jnp.std(jnp.exp(log_weights - log_mean), ddof=1) / jnp.sqrt(n_chains)
    estimate = pixels + rbm.hidden_bias.size * jnp.log(2) + log_mean
    effective = jnp.exp(2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights))
    return LogPartition(estimate, estimate - 1.96 * error, estimate + 1.96 * error, effective)


@partial(jax.jit, static_argnums=(2, 3))
def _annealed(key: jax.Array, rbm: RBM, n_chains: int, n_temperatures: int) -> jax.Array:
    """The log-weights of the chains."""
    dtype = rbm.weights.dtype
    betas = jnp.linspace(0, 1, n_temperatures, dtype=dtype)
    half = _half(rbm)

    def at(beta: jax.Array) -> RBM:
        return rbm._replace(visible_bias=rbm.visible_bias + (1 - beta) * half)

    def chain(key: jax.Array) -> jax.Array:
        start_key, key = jax.random.split(key)

        def warmer(carry: Any, part: Any) -> tuple[Any, None]:
            x, log_weight = carry
            beta, after, key = part
            hidden_key, visible_key = jax.random.split(key)
            inputs, middle = rbm._inputs(x), at((beta + after) / 2).visible_bias
            # Term by term, because the sums are large and their differences small.
            away = x if rbm.sigma is None else (x - middle) / jnp.square(rbm.sigma)
            log_weight += jnp.sum(jax.nn.softplus(after * inputs) - jax.nn.softplus(beta * inputs))
            log_weight -= (after - beta) * jnp.sum(half * away)
            hidden = _coins(hidden_key, jax.nn.sigmoid(after * inputs))
            return (rbm._draw(visible_key, at(after).visible(after * hidden)), log_weight), None

        nothing = jnp.zeros_like(rbm.hidden_bias)
        start = rbm._draw(start_key, at(betas[0]).visible(nothing)), jnp.zeros((), dtype)
        parts = betas[:-1], betas[1:], jax.random.split(key, n_temperatures - 1)
        return lax.scan(warmer, start, parts)[0][1]

    return jax.vmap(chain)(jax.random.split(key, n_chains))


def _half(rbm: RBM) -> jax.Array:
    """The contribution of the hidden units to the visible biases if each is ½."""
    return jnp.sum(rbm.weights, -1) / 2 * (1.0 if rbm.sigma is None else rbm.sigma)


def _coins(key: jax.Array, probability: jax.Array) -> jax.Array:
    return jax.random.bernoulli(key, probability).astype(probability.dtype)


def _uncentered(centered: RBM, mean: jax.Array) -> RBM:
    """The RBM of energy −b·x − c·h − (x − mean)·W·(h − ½), in the ordinary form."""
    weights, b, c, sigma = centered
    return RBM(weights, b - jnp.sum(weights, -1) / 2, c - jnp.tensordot(mean, weights, mean.ndim), sigma)


def _scale(sigma: ArrayLike | None, examples: jax.Array, binary: bool) -> jax.Array | None:
    """The standard deviations of real pixels."""
    if binary:
        if sigma is not None:
            raise SettingError(explain_error("rbm: `sigma` is for real pixels.", got="sigma", fix='visible="gaussian"'))
        return None
    shape, dtype = examples.shape[1:], examples.dtype
    if sigma is None:
        deviation = jnp.std(examples, 0)
        scale = jnp.maximum(deviation, jnp.max(deviation) / 10) / 2
        if not float(jnp.min(scale)) > 0:
            raise SettingError(
                explain_error("rbm: the images are all the same.", fix="sigma=1.0, or images that differ")
            )
        return scale
    if jnp.shape(sigma) not in ((), shape):
        raise StructureError(
            explain_error(
                "rbm: `sigma` does not match the shape of an example.",
                got=f"shape {jnp.shape(sigma)}",
                need=f"() or {shape}",
            )
        )
    scale = jnp.asarray(sigma, dtype)
    if not bool(jnp.all((scale > 0) & jnp.isfinite(scale))):
        raise SettingError(
            explain_error("rbm: `sigma` must be positive.", got=f"a smallest value of {jnp.min(scale):.4g}")
        )
    return scale
