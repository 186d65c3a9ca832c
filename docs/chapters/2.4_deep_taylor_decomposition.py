# %% [markdown]
# # 2.4 Deep Taylor decomposition
#
# [Simple Taylor decomposition](2.2_simple_taylor_decomposition.ipynb) expands the whole network around one root point,
# and a good root is hard to find. **The idea here**: expand each *layer* around a root of its own, where it can be
# written down. Let a neuron $x_j = \max(0, \sum_i x_i w_{ij} + b_j)$, $b_j \le 0$, have relevance $R_j$ in proportion
# to its activation. Moving from x against a direction $v^{(j)}$ until the neuron dies, the first-order term of each
# input is
#
# $$R_{i \leftarrow j} = \frac{v_i^{(j)} w_{ij}}{\sum_{i'} v_{i'}^{(j)} w_{i'j}} R_j ,$$
#
# and the domain of the inputs tells which direction stays inside of it:
#
# | inputs | direction $v_i^{(j)}$ | rule |
# | --- | --- | --- |
# | any real numbers | $w_{ij}$, to the nearest root | $w^2$: $\; w_{ij}^2$ |
# | $x \ge 0$, behind a ReLU | $x_i 1_{w_{ij} > 0}$ | $z^+$: $\; x_i w_{ij}^+$ |
# | $l \le x \le h$, pixels | $x_i - l_i 1_{w_{ij} > 0} - h_i 1_{w_{ij} < 0}$ | $z^B$: $\; x_i w_{ij} - l_i w_{ij}^+ - h_i w_{ij}^-$ |

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import composites, datasets, rules, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]

# %% [markdown]
# ## Part 1: the three roots, found and checked
#
# For one neuron the root can simply be computed: walk from x along $-v$ until the pre-activation is zero. Expanding
# there, $(x_i - \tilde x_i)\, \partial_i$, must give the rule, and the root must lie in the domain.

# %%
w = jnp.array([[2.0], [-1.0], [0.5], [-0.2]])
b = jnp.array([-0.1])
point = jnp.array([0.9, 0.95, 0.9, 0.1])
neuron = lambda x: jnp.sum(jax.nn.relu(x @ w + b))


def root(direction):
    return point - direction * (point @ w + b)[0] / (direction @ w)[0]


directions = {
    "w²": (w[:, 0], jx.deep_taylor(neuron)),
    "z⁺": (point * (w[:, 0] > 0), jx.lrp(neuron, rules=rules.zplus(absorb_bias=False))),
    "z^B": (point - 1.0 * (w[:, 0] < 0), jx.deep_taylor(neuron, low=0.0, high=1.0)),
}
print(f"the neuron: {neuron(point):.2f}")
for name, (direction, explain) in directions.items():
    there = root(direction)
    first_order = (point - there) * w[:, 0]
    R = explain(point)
    print(f"{name:4} root {np.round(there, 2)}, R = {np.round(R, 3)}, Σ R = {R.sum():.2f}")
    assert abs(float((there @ w + b)[0])) < 1e-5
    np.testing.assert_allclose(R, first_order, atol=1e-4)
    if name == "w²":
        assert there.max() > 1  # it does not
    else:
        assert there.min() >= -1e-6  # it stays in the box
        assert there.max() <= 1 + 1e-6

# %% [markdown]
# The nearest root of w² has left the box: a pixel darker than black ink. That is why the first layer of an image
# network gets z^B.
#
# ### Depth, by a closed form
#
# $\max(x_1, x_2)$ as a network of ReLUs, $\tfrac12 (|x_1 - x_2| + x_1 + x_2)$, for $x_1 > x_2 > 0$: z⁺ gives $x_1 -
# x_2$ to the winner and divides the rest, $(x_1 - \tfrac12 x_2,\ \tfrac12 x_2)$, whereas the gradient gives all to the
# winner. Both sum to the maximum.

# %%
fold = jnp.array([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
maximum = lambda x: jnp.sum(jax.nn.relu(x @ fold)) / 2
pair = jnp.array([3.0, 1.0])
R = jx.lrp(maximum, rules=rules.zplus(epsilon=1e-9))(pair)
print("max(3, 1): deep Taylor", R, "  input × gradient", jx.input_x_gradient(maximum)(pair))
np.testing.assert_allclose(R, [2.5, 0.5], atol=1e-5)

# %% [markdown]
# ## Part 2: digits
#
# The library finds the layers; `low` and `high` are the box of the pixels. Max-pooling gets the winner, or, as in the
# authors' tutorials, is treated as if it had been a sum.

# %%
cnn = jx.logit(zoo.load("cnn_maxpool"))
boxed = jx.deep_taylor(cnn, low=0.0, high=1.0)
for row in jx.plan(cnn, rules=composites.deep_taylor(0.0, 1.0))(x[0], 0):
    print(f"{row.kind:12} {row.shape!s:18} {row.position:6} {row.rule}")

# %%
sets = {
    "simple Taylor,\nroot at 0": jx.input_x_gradient(cnn),
    "first layer w²": jx.deep_taylor(cnn),
    "first layer z^B": boxed,
    "z^B, sum-pooling": jx.deep_taylor(cnn, low=0.0, high=1.0, pooling="sum"),
}
maps = {name: jax.jit(jax.vmap(explain))(x, y) for name, explain in sets.items()}
jx.plot.grid(maps, x, titles=[f"digit {c}" for c in y], suptitle="Deep Taylor decomposition of the logit")
plt.show()

# %% [markdown]
# ### Proof: positive, conservative, and how specific?
#
# For a positive score the decomposition promises $R \ge 0$ and $\sum R = f(x)$. On 200 digits:

# %%
some, truth = images[:200], labels[:200]
net = zoo.load("cnn_maxpool")
runner_up = np.where(np.arange(10) == truth[:, None], -np.inf, jax.jit(net)(some)).argmax(1)


def cosine(a, b):
    a, b = (np.reshape(m, (len(m), -1)) for m in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


print("                     smallest R   largest |Σ R − f| / f   cosine with the runner-up's map")
for name, explain in list(sets.items())[1:]:
    run = jax.jit(jax.vmap(jx.with_info(explain)))
    R, info = run(some, truth)
    positive = info.value > 0
    gap = np.abs(info.gap / info.value)[positive].max()
    apart = cosine(R, run(some, runner_up)[0])
    print(f"{name:20} {R[positive].min():10.1e} {gap:23.1e} {apart.mean():32.2f}")
    assert R[positive].min() > -1e-6
    assert gap < 1e-2
signed = jax.jit(jax.vmap(jx.input_x_gradient(cnn)))
print(f"{'input × gradient':55} {cosine(signed(some, truth), signed(some, runner_up)).mean():29.2f}")

# %% [markdown]
# ## When to use it, and when it misleads
#
# Deep Taylor decomposition is the reason why z⁺ is what it is, and its maps are as clean as maps get: positive,
# conserved, no choice left but the box. The last column is the price. What speaks *against* a class leaves no trace, so
# the map of the runner-up looks much like the map of the winner: it shows where the network looks, rather than why it
# decides. For the latter use a composite with both signs ([chapter 2.3](2.3_layer-wise_relevance_propagation.ipynb)) or
# explain a margin. The derivation wants $f > 0$ and biases $\le 0$; here biases take no relevance, whatever their sign.
#
# ## References
#
# * G. Montavon et al. *Explaining nonlinear classification decisions with deep Taylor decomposition.* Pattern
#   Recognition 65, 2017.
# * L. Sixt, M. Granz, T. Landgraf. *When explanations lie: why many modified BP attributions fail.* ICML 2020.
