"""Experts: density models log p(x) that measure how typical an input is.

| expert | density | trained by |
| --- | --- | --- |
| `Gaussian` | exact | `gaussian`: probabilistic principal components, closed form |
| `RBM` | unnormalized; see `log_partition` | `rbm`: restricted Boltzmann machine, contrastive divergence |
| `VAE` | lower bounds | `vae`: variational autoencoder; its decoder turns codes into inputs |
| `MADE` | exact, for binary inputs | `made`: masked autoencoder |

Each is a pytree of arrays whose methods take one example, as in `jax.vmap(expert.log_prob)(images)`. To use one as a
penalty of `activation_maximization`: `jx.prototypes.expert(strength, log_prob)`. `jx.zoo.load_expert` loads trained
ones.
"""

from jaxplain.experts._gaussian import Gaussian, gaussian
from jaxplain.experts._made import MADE, made
from jaxplain.experts._rbm import RBM, LogPartition, log_partition, rbm
from jaxplain.experts._vae import VAE, Posterior, vae

# fmt: off
__all__ = [
    "MADE", "RBM", "VAE", "Gaussian", "LogPartition", "Posterior", "gaussian", "log_partition", "made", "rbm",
    "vae",
]
# fmt: on
