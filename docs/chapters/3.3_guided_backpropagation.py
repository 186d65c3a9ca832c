# %% [markdown]
# # 3.3 Guided back-propagation
#
# Guided back-propagation and [deconvolution](3.1_deconvolution.ipynb) change what a ReLU does on the way back. Let $a$
# be the input of a ReLU and $g$ what arrives from above:
#
# $$\text{back-propagation: } 1_{a > 0}\, g, \qquad \text{deconvolution: } \max(g, 0), \qquad \text{guided: } 1_{a > 0} \max(g, 0).$$
#
# The library applies them at every *activation*, however it is written; libraries that look for ReLU modules silently
# return a plain gradient for a model with `relu6` or a functional ReLU.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxplain as jx
from jaxplain import datasets, zoo

plt.rcParams["figure.dpi"] = 90

digits = datasets.mnist()
images, labels = digits.x_test, digits.y_test
ten = np.array([np.flatnonzero(labels == c)[0] for c in range(10)])
x, y = images[ten], labels[ten]

# %% [markdown]
# ## The table
#
# Inputs positive and negative, arriving gradients positive and negative, in four spellings of the ReLU:

# %%
a = jnp.array([2.0, 2.0, -2.0, -2.0])
g = jnp.array([1.0, -1.0, 1.0, -1.0])
spellings = {
    "jax.nn.relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "x * (x > 0)": lambda x: x * (x > 0),
}
print("input            ", a, "\narriving         ", g)
for relu in spellings.values():
    score = lambda x, relu=relu: relu(x) @ g
    found = [explain(score)(a) for explain in (jx.gradient, jx.deconvnet, jx.guided_backprop)]
    for got, want in zip(found, ([1, -1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]), strict=True):
        np.testing.assert_array_equal(got, want)
for name, got in zip(("back-propagation", "deconvolution", "guided"), found, strict=True):
    print(f"{name:17}", got)

# %% [markdown]
# ## Guided back-propagation and its sanity check
#
# The picture that made the method famous, and the control that it fails: the same map after the last layer's weights,
# or all weights, were re-initialized. Then nothing that was learned about classes is left, and a map that explains the
# decision should be gone.

# %%
network = zoo.load("all_conv")
redrawn = zoo.randomized(network, jax.random.key(0))
last = "conv4"

top_random = dataclasses.replace(network, params={**network.params, last: redrawn.params[last]})
models = {"trained": network, f"{last} redrawn": top_random, "all redrawn": redrawn}
methods = {"gradient": jx.gradient, "deconvolution": jx.deconvnet, "guided": jx.guided_backprop}
maps = {
    f"{method},\n{model}": jax.jit(jax.vmap(make(jx.logit(which))))(x, y)
    for method, make in methods.items()
    for model, which in models.items()
}
jx.plot.grid(maps, x, titles=[f"digit {c}" for c in y], suptitle="Each method on the trained and on redrawn networks")
plt.show()

# %%
some, truth = images[:100], labels[:100]


def cosine(a, b):
    a, b = (np.reshape(m, (len(m), -1)) for m in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / np.maximum(norms, 1e-30)))


print(f"{'':15} {'cosine of |maps|: ' + last + ' redrawn':>32} {'all redrawn':>13} {'other class':>13}")
kept = {}
for method, make in methods.items():
    run = {model: jax.jit(jax.vmap(make(jx.logit(which)))) for model, which in models.items()}
    trained = np.abs(run["trained"](some, truth))
    kept[method] = cosine(trained, np.abs(run[f"{last} redrawn"](some, truth)))
    others = [
        cosine(trained, np.abs(run["all redrawn"](some, truth))),
        cosine(trained, np.abs(run["trained"](some, (truth + 1) % 10))),
    ]
    print(f"{method:15} {kept[method]:32.2f} {others[0]:13.2f} {others[1]:13.2f}")
assert kept["guided"] > kept["gradient"]

# %% [markdown]
# ## When to use it, and when it misleads
#
# Guided back-propagation draws the strokes that the lower layers respond to, crisply. It does not explain a decision:
# when the top layer is re-initialized, its maps change less than gradients do. Show the control next to the picture.
#
# ## References
#
# * J. Springenberg et al. *Striving for simplicity: the all convolutional net.* ICLR workshop 2015.
# * J. Adebayo et al. *Sanity checks for saliency maps.* NeurIPS 2018.
# * W. Nie, Y. Zhang, A. Patel. *A theoretical explanation for perplexing behaviors of backpropagation-based
#   visualizations.* ICML 2018.
