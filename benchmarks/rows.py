"""The registry of comparisons. A new peer is a `side_<peer>.py`, its requirement, and rows here."""

import itertools
from typing import Any, Literal, NamedTuple, TypeAlias

Settings: TypeAlias = tuple[dict[str, Any], ...]


class Row(NamedTuple):
    """One comparison. Each side gets its best settings out of the listed ones.

    Attributes:
        method: Name in `METHODS` of `side_jaxplain.py`.
        problem: Name in `PROBLEMS` of `problems.py`.
        peer: The other side.
        gradients: Number of floors for one example.
        ours: Settings of our side.
        theirs: Settings of the peer.
        ours_tuning: Smaller settings while ours are compared.
        theirs_tuning: Smaller settings while the peer's are compared.
        compare: "equal" for the same numbers, "noise" for estimates with independent draws, "draws" for their means.
        limit: Largest relative L2 distance ("equal"), ratio to the expected distance ("noise"), or distance of the
            means, relative above 1 ("draws").
        floor: One plain gradient of the input ("floor"), one forward pass, or our gradient.
    """

    method: str
    problem: str
    peer: str
    gradients: int
    ours: Settings
    theirs: Settings
    ours_tuning: dict[str, Any]
    theirs_tuning: dict[str, Any]
    compare: Literal["equal", "noise", "draws"]
    limit: float
    floor: Literal["floor", "forward", "gradient"] = "floor"

    @property
    def name(self) -> str:
        return f"{self.method} / {self.problem}"


N = 50  # steps and samples
LAYOUTS = ("contiguous", "channels_last")  # PyTorch's memory formats; ours is NHWC
CHUNKS = (1, 5)
PIECES: dict[str, tuple[int | None, ...]] = {  # batch sizes to choose from, None for all examples at once
    "mlp": (None, 64),
    "cnn_maxpool": (None, 16, 64),
    "cnn_maxpool-1": (None,),
    "vgg112": (None, 1),
    "separable224": (None, 1),
}


def _each(fixed: dict[str, Any] | None = None, **choices: tuple) -> Settings:
    """The fixed settings with every combination of the choices."""
    return tuple(
        (fixed or {}) | dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    )


def _one_gradient(method: str, problem: str, peer: str, limit: float) -> Row:
    pieces = PIECES[problem]
    theirs = _each(batch_size=pieces, layout=LAYOUTS)
    return Row(method, problem, peer, 1, _each(batch_size=pieces), theirs, {}, {}, "equal", limit)


def _integrated_gradients(problem: str, batch: int) -> Row:
    ours = _each({"n_steps": N}, chunk_size=CHUNKS, batch_size=PIECES[problem][:2])
    at_once = (batch, 2 * batch, 5 * batch, 10 * batch)
    theirs = _each({"n_steps": N, "method": "gausslegendre"}, internal_batch_size=at_once, layout=LAYOUTS)
    few = {"n_steps": 10}
    return Row("integrated_gradients", problem, "captum", N, ours, theirs, few, few, "equal", 5e-3)


def _smoothgrad(problem: str) -> Row:
    ours = _each({"n_samples": N}, chunk_size=CHUNKS)
    theirs = _each({"nt_samples": N}, nt_samples_batch_size=(1, 2, 5, 10), layout=LAYOUTS)
    few = {"n_samples": 10}, {"nt_samples": 10}
    return Row("smoothgrad", problem, "captum", N, ours, theirs, *few, "noise", 1.1)


# Limits: the median example of a gradient agrees to rounding. A path crosses so many kinks of ReLU and max that some
# fall on the other side in float32; on vgg112, Captum's own float32 maps are 8e-4 from float64. On separable224
# our float32 gradient is 2e-4 to 7e-3 from our float64 one, which agrees with jax.grad to 2e-15. Captum's rule for
# max-pooling differs from ours, and its sums miss f(x) − f(0) there, so only on mlp both DeepLIFTs must be equal. On
# separable224, Captum finds no nn.ReLU modules among ReLU6, and 50 gradients would take as long as all other rows.
_BY_GRADIENT = (
    _one_gradient("deeplift", "mlp", "captum", 1e-5),
    _one_gradient("gradient", "cnn_maxpool", "captum", 1e-5),
    _one_gradient("guided_backprop", "cnn_maxpool", "captum", 1e-5),
    _one_gradient("deeplift", "cnn_maxpool", "captum", 1.0),
    _one_gradient("lrp", "cnn_maxpool", "zennit", 1e-4),  # both with EpsilonPlusFlat
    _integrated_gradients("cnn_maxpool", 256),
    _smoothgrad("cnn_maxpool"),
    _one_gradient("gradient", "vgg112", "captum", 1e-5),
    _one_gradient("guided_backprop", "vgg112", "captum", 1e-5),
    _one_gradient("deeplift", "vgg112", "captum", 1.0),
    _one_gradient("lrp", "vgg112", "zennit", 1e-4),
    _integrated_gradients("vgg112", 4),
    _smoothgrad("vgg112"),
    _one_gradient("gradient", "separable224", "captum", 1e-2),
    _one_gradient("lrp", "separable224", "zennit", 1e-4),
)


CHANNELS = 128  # of the layer whose maps cnn_maxpool's are made of
AT_ONCE = (8, 32, 128)
AS_SHIPPED = {"graph": "whole"}  # as users run it: the weights need gradients, and backward() computes all of them


def _class_activation_map(
    method: str, problem: str, peer: str, limit: float, theirs: dict[str, Any] | None = None
) -> Row:
    pieces = PIECES[problem]
    ours = _each({"upsample": peer != "captum"}, batch_size=pieces)
    settings = _each(theirs, batch_size=pieces, layout=LAYOUTS)
    return Row(method, problem, peer, 1, ours, settings, {}, {}, "equal", limit, "forward")


def _map_by_channel(method: str, n_passes: int) -> Row:
    ours = _each({"upsample": True}, batch_size=(None, 1), chunk_size=AT_ONCE)
    theirs, problem = _each(at_once=AT_ONCE, layout=LAYOUTS), "cnn_maxpool-16"
    return Row(method, problem, "pytorch_grad_cam", n_passes, ours, theirs, {}, {}, "equal", 1e-4, "forward")


# Class activation maps do not need the gradient of the input. Their floor is the least work there is, the forward
# passes; what follows the layer is not counted (one gradient of it, and for Ablation-CAM one pass of it per channel).
# Captum returns the map of the layer, which is compared as it is. pytorch-grad-cam returns it at the size of the input,
# scaled to [0, 1], so ours does both as well. Its Grad-CAM++ adds 1e-6 to a denominator, a distance of 2e-4 here and up
# to 1e-2 in tests/golden/cam, where leaving it out gives equality. Its Score-CAM is patched (side_pytorch_grad_cam.py).
_MAPS = (
    _class_activation_map("grad_cam", "cnn_maxpool", "captum", 1e-5),
    _class_activation_map("grad_cam", "cnn_maxpool-1", "captum", 1e-5),
    _class_activation_map("grad_cam", "vgg112", "captum", 1e-5),
    _class_activation_map("grad_cam", "cnn_maxpool", "pytorch_grad_cam", 1e-4),
    _class_activation_map("grad_cam", "cnn_maxpool", "pytorch_grad_cam", 1e-4, AS_SHIPPED),
    _class_activation_map("grad_cam", "cnn_maxpool-1", "pytorch_grad_cam", 1e-4),
    _class_activation_map("grad_cam", "cnn_maxpool-1", "pytorch_grad_cam", 1e-4, AS_SHIPPED),
    _class_activation_map("grad_cam", "vgg112", "pytorch_grad_cam", 1e-4),
    _class_activation_map("grad_cam_plus_plus", "cnn_maxpool", "pytorch_grad_cam", 1e-3),
    _map_by_channel("score_cam", CHANNELS),
    _map_by_channel("ablation_cam", 1),
)


_TORCH = {"explain": "torch"}  # functions that return arrays at once, which is faster than Quantus' own


def _measure(
    method: str, calls: int, compare: Literal["equal", "draws"], limit: float, floor: Literal["forward", "gradient"],
    *, ours: Settings, theirs: dict[str, Any] | None = None,
) -> Row:  # fmt: skip
    settings = _each(theirs, batch_size=(None, 64), layout=LAYOUTS)
    return Row(method, "cnn_maxpool-100", "quantus", calls, ours, settings, {}, {}, compare, limit, floor)


_GROUPS: dict[str, tuple] = {"at_once": (None, 10, 25)}
_CHUNKED: dict[str, tuple] = _GROUPS | {"chunk_size": (1, 4)}

# The floor of measures of explanations is what they ask of the model. Different draws give different numbers, whose
# means are compared here; tests/test_golden_quantus_*.py compares them one by one, with the same draws. Other weights
# give other correlations, so there is nothing to check for mprt.
_MEASURES = (
    _measure("pixel_flipping", 50, "equal", 1e-4, "forward", ours=_each({"steps": 49}, **_CHUNKED)),
    _measure("road", 9, "equal", 0.02, "forward", ours=_each(**_GROUPS)),
    _measure("max_sensitivity", 11, "draws", 0.1, "gradient", ours=_each(**_CHUNKED), theirs=_TORCH),
    _measure("mprt", 6, "draws", 2.0, "gradient", ours=_each(**_GROUPS), theirs=_TORCH),
)

ROWS = _BY_GRADIENT + _MAPS + _MEASURES
