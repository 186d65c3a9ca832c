"""An expert made of parts that are on or off: the restricted Boltzmann machine."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.scipy.special import logit
from jax.typing import ArrayLike

from jaxplain._checks import positive_int
from jaxplain._errors import SettingError, StructureError, explain_error
from jaxplain._leaves import wide_dtype
from jaxplain.experts._fit import examples_of, fit, minimizing, one_key


class RBM(NamedTuple):
    r"""A restricted Boltzmann machine: a density of examples x with hidden binary units h, summed out in closed form.

    Binary pixels (`sigma` is None), $x \in \{0, 1\}^d$:

    $$p(x, h) \propto e^{-E(x, h)}, \qquad E(x, h) = -b \cdot x - c \cdot h - \sum_{ij} x_i W_{ij} h_j.$$

    Real pixels (`sigma` = σ), $x \in \mathbb{R}^d$: each h is a Gaussian of covariance $\operatorname{diag} \sigma^2$, and p(x) a
    mixture of $2^{n_\text{hidden}}$ of them:

    $$E(x, h) = \sum_i \frac{(x_i - b_i)^2}{2 \sigma_i^2} - c \cdot h - \sum_{ij} \frac{x_i}{\sigma_i} W_{ij} h_j.$$

    A pytree of arrays: pass it to `jit`, take gradients through it. `rbm(images, key=key)` trains one.

    Attributes:
        weights: W, (*shape, n_hidden), shape being that of an example.
        visible_bias: b, of that shape.
        hidden_bias: c, (n_hidden,).
        sigma: None, or the standard deviations of x given h, of that shape or a scalar.
    """

    weights: jax.Array
    visible_bias: jax.Array
    hidden_bias: jax.Array
    sigma: jax.Array | None = None

    def free_energy(self, x: ArrayLike) -> jax.Array:
        r"""F(x), which is −log p(x) up to the constant log Z: $p(x) = e^{-F(x)} / Z$.

        $$F(x) = -b \cdot x - \sum_j \operatorname{softplus}\Big(c_j + \sum_i W_{ij} x_i\Big) \qquad \text{(binary)},$$

        $$F(x) = \sum_i \frac{(x_i - b_i)^2}{2 \sigma_i^2} - \sum_j \operatorname{softplus}\Big(c_j + \sum_i W_{ij}
        \frac{x_i}{\sigma_i}\Big) \qquad \text{(real)}.$$

        `lambda x, *_: strength * expert.free_energy(x)` is the penalty of activation maximization that keeps a prototype among
        the examples. Start it from an example or from the mean of a class, not from noise or a black image: F has valleys that no
        chain of the training saw, and the image of least F need not look like an example. For digits it is the black one, e⁵⁰
        times denser than a digit is and yet one image among far more digits.

        Arguments:
            x: one example, of the shape of `visible_bias`. Many: `jax.vmap(expert.free_energy)(images)`.

        Returns:
            A scalar, in nats. −F(x) − log Z is the log-likelihood, with log Z from `log_partition`.

        Guarantees:
            Exact: all hidden units are summed over. Binary: x between 0 and 1 is accepted and F is smooth there, but no
            density. It is concave, so that its minima over the box are at corners: it drives pixels to black or white.

        Cost:
            O(d n_hidden), one product with the weights; as much again for the gradient.

        Raises:
            StructureError: x has another shape than `visible_bias`.
        """
        x = self._example(x)
        hidden = jnp.sum(jax.nn.softplus(self._inputs(x)))
        if self.sigma is None:
            return -jnp.sum(self.visible_bias * x) - hidden
        return jnp.sum(jnp.square((x - self.visible_bias) / self.sigma)) / 2 - hidden

    def hidden(self, x: ArrayLike) -> jax.Array:
        r"""The probabilities of the hidden units, $p(h_j = 1 \mid x) = \operatorname{sigmoid}(c_j + \sum_i W_{ij} x_i / \sigma_i)$, σ = 1 if binary.

        Arguments:
            x: one example, of the shape of `visible_bias`.

        Returns:
            (n_hidden,), the hidden units being independent given x.

        Raises:
            StructureError: x has another shape.
        """
        return jax.nn.sigmoid(self._inputs(self._example(x)))

    def visible(self, h: ArrayLike) -> jax.Array:
        r"""The mean of x given the hidden units: $\operatorname{sigmoid}(b + W h)$ if binary, $b + \sigma\, W h$ if real.

        Arguments:
            h: (n_hidden,).

        Returns:
            Of the shape of an example, the pixels being independent given h.

        Raises:
            StructureError: h has another shape.
        """
        if jnp.shape(h) != jnp.shape(self.hidden_bias):
            raise StructureError(
                explain_error(
                    "RBM: these are not the hidden units of one example.",
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
        """The example that a Markov chain reaches from x in `n_steps` rounds of drawing h given x, then x given h.

        Arguments:
            key: a random key. Many chains: `jax.vmap(lambda key, x: expert.gibbs(key, x, 1000))(keys, xs)`.
            x: where the chain starts, of the shape of `visible_bias`.
            n_steps: how many rounds, a Python integer.

        Returns:
            An example, pixels 0 or 1 if binary. `expert.visible(expert.hidden(x))` is a smoother picture of it.

        Guarantees:
            p(x) does not change under a round: a chain that starts with an example of p ends with one. From elsewhere that
            takes a number of rounds which nothing tells; a trained RBM is slow to leave one kind of example for another.

        Cost:
            Two products with the weights for each round.

        Raises:
            MissingKeyError: `key` is not one.
            StructureError: x has another shape.
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
                    "RBM: the example has another shape than the visible units.",
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

    The gradient of the log-likelihood is that of a difference, the second mean over samples $\tilde x$ of the model held fixed:

    $$\nabla_\theta\, \mathbb{E}_\text{data}[\log p(x)]
    = -\nabla_\theta \Big( \mathbb{E}_{x \sim \text{data}}[F(x)] - \mathbb{E}_{\tilde x \sim p}[F(\tilde x)] \Big).$$

    The samples are those of Markov chains, `n_gibbs` rounds for each step of the optimizer. Persistent chains go on from step to
    step (PCD, also called stochastic maximum likelihood) and go where the model puts its mass. With `persistent=False` they
    start anew from the batch (CD-k), which leaves unseen what the model believes a few rounds away from it, just where activation
    maximization would go: on the digits that costs 19 nats of likelihood.

    It needs a few thousand steps. Three choices spare most of the tuning. The learning rate falls to zero in a straight line, as the chains must be faster
    than the weights. The gradient is centered: weights are learned for $(x - \mu)_i W_{ij} (h - \tfrac12)_j$, μ the mean image, and the
    biases of the ordinary form restored at the end; that is the same family of densities, with a better conditioned gradient.
    And the biases of pixels start at the log-odds of their means, clipped to [0.01, 0.99], those of hidden units at 0.

    Arguments:
        images: (n, *shape). Bernoulli: in [0, 1], taken for probabilities: each time an image is used its pixels are drawn anew,
            1 with these probabilities. Gaussian: real numbers of any range.
        key: a random key. Required.
        n_hidden: how many hidden units.
        visible: `"bernoulli"`, pixels that are 0 or 1, or `"gaussian"`, pixels that are real numbers.
        sigma: Gaussian only: the standard deviations of pixels given the hidden units, positive, of the shape of an example or a
            scalar. It is not learned. `None`: half of those of the pixels in `images`, or a tenth of the largest for pixels that vary less: three
            quarters of the variance are left for the hidden units to explain (σ at a pixel's own deviation would leave nothing). A smaller
            σ allows finer detail and mixes more slowly.
        epochs: how often every image is used.
        learning_rate: that of the first step of gradient descent. `None`: 0.3 for Bernoulli pixels, 0.03 for Gaussian ones.
        batch_size: images for each step; all of them if there are fewer.
        n_gibbs: rounds of Gibbs sampling for each step.
        persistent: go on with the same chains, or start them from the batch.
        n_chains: how many persistent chains; `None` is `batch_size`.
        weight_decay: λ of $\tfrac{\lambda}{2} \lVert W \rVert^2$, added to the negative log-likelihood.
        progress: show a progress bar. Its objective, F(data) − F(samples) and the weight decay, is no likelihood: it stays near zero.

    Returns:
        An `RBM`, in the dtype of the images, at least float32.

    Guarantees:
        A function of its arguments, the key included. The gradient is biased, as the chains are not in equilibrium: measure
        the likelihood with `log_partition`.

    Cost:
        (4 + 2 n_gibbs) products of a batch with the weights for each step.

    Raises:
        MissingKeyError: `key` is missing or no random key.
        StructureError: the images are not a batch of real numbers, or `sigma` fits no example.
        SettingError: a setting is out of its range, or the images are outside of [0, 1] and Bernoulli.
        NonFiniteError: training broke, or the images hold NaN.

    Example:
        >>> import jax, jaxplain as jx
        >>> from jaxplain.experts import log_partition, rbm
        >>> digits = jx.datasets.mnist()
        >>> expert = rbm(digits.x_train[:1000], key=jax.random.key(0), n_hidden=16, epochs=5, progress=False)
        >>> x = (digits.x_test > 0.5).astype("float32")
        >>> log_z = log_partition(jax.random.key(1), expert, n_temperatures=200).estimate
        >>> log_likelihood = -jax.vmap(expert.free_energy)(x) - log_z
        >>> bool(log_likelihood.mean() > -206)  # that of independent pixels
        True

    References:
        Hinton: Training Products of Experts by Minimizing Contrastive Divergence. Neural Computation 14, 2002.
        Tieleman: Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient. ICML 2008.
        Montavon, Müller: Deep Boltzmann Machines and the Centering Trick. Neural Networks: Tricks of the Trade, 2012.
        Melchior, Fischer, Wiskott: How to Center Deep Boltzmann Machines. JMLR 17, 2016.
    """
    init_key, chain_key, fit_key = jax.random.split(one_key("rbm", key), 3)
    if visible not in ("bernoulli", "gaussian"):
        raise SettingError(
            explain_error(
                "rbm: there are two kinds of visible units.", got=repr(visible), need="'bernoulli', 'gaussian'"
            )
        )
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
    # Real pixels are learned in units of sigma, or one learning rate could not fit them all.
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
        # σ joins here, since it would be trained if it were among the parameters.
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
    r"""The logarithm of a partition function, in nats, as estimated.

    Attributes:
        estimate: log Z.
        low: of a 95 % interval.
        high: of the same.
        effective_chains: $(\sum w)^2 / \sum w^2$, of `n_chains`: a small share says that there are too few temperatures.
    """

    estimate: jax.Array
    low: jax.Array
    high: jax.Array
    effective_chains: jax.Array


def log_partition(key: jax.Array, rbm: RBM, *, n_chains: int = 100, n_temperatures: int = 1000) -> LogPartition:
    r"""The log Z of an RBM, $\log \sum_x e^{-F(x)}$ (an integral for real pixels), by annealed importance sampling.

    Each chain starts with a sample of the RBM without weights, whose log Z₀ is known, and is led to the RBM through those of

    $$F_\beta(x) = F_0(x;\, b_\beta) - \sum_j \operatorname{softplus}\big(\beta\, (c_j + \textstyle\sum_i W_{ij} x_i / \sigma_i)\big),
    \qquad 0 = \beta_1 < \dots < \beta_K = 1,$$

    one round of Gibbs sampling at each (F₀: the part of the pixels alone; σ = 1 if binary). The biases of the pixels go from
    $b_0 = b + \tfrac12 \sigma \sum_j W_j$, which are those of the centered form and so close to the pixels' own means, to $b_1 = b$. Then

    $$\log \hat Z = \log Z_0 + \log \frac1N \sum_{n=1}^N w_n, \qquad
    \log w_n = \sum_{k=2}^{K} F_{\beta_{k-1}}\big(x_n^{(k-1)}\big) - F_{\beta_k}\big(x_n^{(k-1)}\big).$$

    Arguments:
        key: a random key.
        rbm: the machine, binary or real.
        n_chains: N, how many independent chains, at least 2.
        n_temperatures: K, evenly spaced, at least 2.

    Returns:
        A `LogPartition`. The mean log-likelihood of examples is `-jax.vmap(rbm.free_energy)(x).mean() - estimate`.

    Guarantees:
        The mean of the weights is an unbiased estimate of Z. Its logarithm is therefore too low on average, and
        **log-likelihoods are too high**. The interval is that of the delta method: the estimate ± 1.96 standard errors of the mean
        weight, relative to it. It knows nothing of a mode that no chain has found. Estimates that go up with `n_temperatures`
        say that there are too few.

    Cost:
        Two products of N examples with the weights for each temperature, in one compiled loop.

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
    # In bfloat16 neighboring temperatures would be one.
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
            # Term by term, as the sums are large and their differences small.
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
    """What the hidden units add to the visible biases when each is on by half."""
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
            explain_error("rbm: `sigma` fits no example.", got=f"shape {jnp.shape(sigma)}", need=f"() or {shape}")
        )
    scale = jnp.asarray(sigma, dtype)
    if not bool(jnp.all((scale > 0) & jnp.isfinite(scale))):
        raise SettingError(
            explain_error("rbm: `sigma` must be positive.", got=f"a least value of {jnp.min(scale):.4g}")
        )
    return scale
