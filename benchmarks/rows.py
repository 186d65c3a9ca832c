"""The registry: what is compared with whom. A new peer is a `side_<peer>.py`, its requirement and rows here."""

import itertools
from typing import Any, Literal, NamedTuple

Settings = tuple[dict[str, Any], ...]


class Row(NamedTuple):
    """One comparison. Each side is given its best settings out of those listed."""

    method: str
    problem: str
    peer: str
    gradients: int  # score gradients per example, for the floor (or forward passes: see `floor`)
    ours: Settings
    theirs: Settings
    ours_tuning: dict[str, Any]  # what is smaller while the settings are compared
    theirs_tuning: dict[str, Any]
    compare: Literal[
        "equal", "noise", "draws"
    ]  # the same numbers; two estimates with independent draws; means of other draws
    limit: float  # relative L2 ("equal"), ratio to the expected distance ("noise"), distance of the means ("draws"; relative above 1)
    floor: Literal["floor", "forward", "gradient"] = (
        "floor"  # one gradient of the input, one forward pass, or our gradient
    )

    @property
    def name(self) -> str:
        return f"{self.method} / {self.problem}"


def _each(fixed: dict[str, Any], **choices: tuple) -> Settings:
    """Every combination of the choices, with what is fixed."""
    return tuple(fixed | dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


N = 50  # steps and samples
LAYOUTS = ("contiguous", "channels_last")  # PyTorch's memory formats; ours is NHWC
CHUNKS = (1, 5)

# Limits of equality: a gradient's median example agrees to rounding. A path crosses so many kinks of ReLU and max that some
# fall on the other side in float32: on vgg112, Captum's own float32 maps are 8e-4 from float64.
# On separable224 our own float32 gradient is 2e-4 to 7e-3 from float64, which agrees with jax.grad to 2e-15.
# Captum's rule for max-pooling is another one than ours, and its sums miss f(x) − f(0) there: on mlp, both must be equal.
DEEPLIFT_LIMIT = {"mlp": 1e-5, "cnn_maxpool": 1.0, "vgg112": 1.0}
GRADIENT_LIMIT = {"cnn_maxpool": 1e-5, "vgg112": 1e-5, "separable224": 1e-2}
_BY_GRADIENT = tuple(
    row
    for problem, batch, pieces in (
        ("mlp", 256, (None, 64)),
        ("cnn_maxpool", 256, (None, 16, 64)),
        ("vgg112", 4, (None, 1)),
        ("separable224", 4, (None, 1)),
    )
    for row in (
        *(
            Row(
                method,
                problem,
                peer,
                1,
                _each({}, batch_size=pieces),
                _each({}, batch_size=pieces, layout=LAYOUTS),
                {},
                {},
                "equal",
                limit,
            )
            for method, peer, limit in (
                ("gradient", "captum", GRADIENT_LIMIT.get(problem)),
                ("guided_backprop", "captum", 1e-5),
                ("deeplift", "captum", DEEPLIFT_LIMIT.get(problem)),
                ("lrp", "zennit", 1e-4),  # both under EpsilonPlusFlat
            )
            if limit is not None
        ),
        Row(
            "integrated_gradients",
            problem,
            "captum",
            N,
            _each({"n_steps": N}, chunk_size=CHUNKS, batch_size=pieces[:2]),
            _each(
                {"n_steps": N, "method": "gausslegendre"},
                internal_batch_size=(batch, 2 * batch, 5 * batch, 10 * batch),
                layout=LAYOUTS,
            ),
            {"n_steps": 10},
            {"n_steps": 10},
            "equal",
            5e-3,
        ),
        Row(
            "smoothgrad",
            problem,
            "captum",
            N,
            _each({"n_samples": N}, chunk_size=CHUNKS),
            _each({"nt_samples": N}, nt_samples_batch_size=(1, 2, 5, 10), layout=LAYOUTS),
            {"n_samples": 10},
            {"nt_samples": 10},
            "noise",
            1.1,
        ),
    )
    # Captum looks for nn.ReLU modules, which a net of ReLU6 has none of; 50 gradients of that net would take the time of all others.
    if (problem != "separable224" or row.method in ("gradient", "lrp"))
    and (problem != "mlp" or row.method == "deeplift")
)

# Class activation maps need no gradient of the input: their floor is the least that there is to do, the forward passes
# (what comes after the layer is not counted: one gradient of it, and for Ablation-CAM one pass of it for each channel).
# Captum returns the map of the layer, which is compared as it is. pytorch-grad-cam returns it at the size of the input and scaled
# to [0, 1], so ours does both as well. Its Grad-CAM++ adds 1e-6 to a denominator: 2e-4 here, up to 1e-2 in tests/golden/cam,
# where leaving that out gives equality. Its Score-CAM is patched in one place: see side_pytorch_grad_cam.py.
CHANNELS = 128  # of the layer that cnn_maxpool's maps are made of
AT_ONCE = (8, 32, 128)
AS_SHIPPED = {"graph": "whole"}  # as users run it: the weights need gradients, and backward() computes all of them
_MAPS = (
    *(
        Row(
            method,
            problem,
            peer,
            1,
            _each({"upsample": peer != "captum"}, batch_size=pieces),
            _each(fixed, batch_size=pieces, layout=LAYOUTS),
            {},
            {},
            "equal",
            limit,
            "forward",
        )
        for method, problem, peer, pieces, limit, fixed in (
            ("grad_cam", "cnn_maxpool", "captum", (None, 16, 64), 1e-5, {}),
            ("grad_cam", "cnn_maxpool-1", "captum", (None,), 1e-5, {}),
            ("grad_cam", "vgg112", "captum", (None, 1), 1e-5, {}),
            ("grad_cam", "cnn_maxpool", "pytorch_grad_cam", (None, 16, 64), 1e-4, {}),
            ("grad_cam", "cnn_maxpool", "pytorch_grad_cam", (None, 16, 64), 1e-4, AS_SHIPPED),
            ("grad_cam", "cnn_maxpool-1", "pytorch_grad_cam", (None,), 1e-4, {}),
            ("grad_cam", "cnn_maxpool-1", "pytorch_grad_cam", (None,), 1e-4, AS_SHIPPED),
            ("grad_cam", "vgg112", "pytorch_grad_cam", (None, 1), 1e-4, {}),
            ("grad_cam_plus_plus", "cnn_maxpool", "pytorch_grad_cam", (None, 16, 64), 1e-3, {}),
        )
    ),
    *(
        Row(
            method,
            "cnn_maxpool-16",
            "pytorch_grad_cam",
            passes,
            _each({"upsample": True}, batch_size=(None, 1), chunk_size=AT_ONCE),
            _each({}, at_once=AT_ONCE, layout=LAYOUTS),
            {},
            {},
            "equal",
            limit,
            "forward",
        )
        for method, passes, limit in (("score_cam", CHANNELS, 1e-4), ("ablation_cam", 1, 1e-4))
    ),
)

# Measures of explanations: their floor is what they ask of the model. Quantus is given functions that return arrays at once
# (`explain="torch"`), which is faster than its own. Other draws give other numbers, which are compared by their means here, and one
# by one, with the same draws, in tests/test_golden_quantus_*.py.
_MEASURES = tuple(
    Row(
        method,
        "cnn_maxpool-100",
        "quantus",
        calls,
        _each(ours, at_once=(None, 10, 25), **({"chunk_size": (1, 4)} if chunked else {})),
        _each(theirs, batch_size=(None, 64), layout=LAYOUTS),
        {},
        {},
        compare,
        limit,
        floor,
    )
    for method, calls, ours, chunked, theirs, compare, limit, floor in (
        ("pixel_flipping", 50, {"steps": 49}, True, {}, "equal", 1e-4, "forward"),
        ("road", 9, {}, False, {}, "equal", 0.02, "forward"),
        ("max_sensitivity", 11, {}, True, {"explain": "torch"}, "draws", 0.1, "gradient"),
        (
            "mprt",
            6,
            {},
            False,
            {"explain": "torch"},
            "draws",
            2.0,
            "gradient",
        ),  # other weights, other correlations: nothing to check
    )
)
ROWS = _BY_GRADIENT + _MAPS + _MEASURES
