"""One row per JAX primitive: everything that the analysis, the rules and the layers need to know about it.

Rows are keyed by the primitive object, so that a misspelled name is an error and not a row that never matches. A row
has

- traits: what the primitive does to elements, as flags. For example `lax.add_p` is a SUM, and therefore AFFINE and
  ELEMENTWISE;
- interval: the interval of the output from those of the operands, which finds nonnegative values;
- axes: how the axes of the operands become those of the output (`_layers/axes.py` has one function for each word);
- degree: the degree of homogeneity of the output from those of the operands, which distinguishes a normalization from a
  product;
- kind: the kind of node that a contraction with weights makes;
- winner: for DeepLIFT, whether a maximum copies its largest or its smallest operand.

A primitive that is not in KNOWN is unknown: propagation refuses it, and a test fails when JAX gains a primitive that
has neither a row nor an entry in that test's list of refused ones. To support a new primitive, add its row here and a
test of it.
"""

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jax import lax

from jaxplain import _compat

Interval: TypeAlias = tuple[float, float]
IntervalRule: TypeAlias = Callable[[Sequence[Interval]], Interval]
ANY: Interval = (-math.inf, math.inf)
NONNEGATIVE: Interval = (0.0, math.inf)


class Trait(enum.Flag):
    """Effects of a primitive on the elements of its operands."""

    # Equations with a program inside.
    CALL = enum.auto()  # replaced by its body
    CUSTOM = enum.auto()  # a function with a derivative of its own
    LOOP = enum.auto()
    BRANCH = enum.auto()
    CHECKPOINT = enum.auto()
    BODIES = LOOP | BRANCH | CHECKPOINT  # kept; the body is analyzed, and rebuilt when it runs

    # An output element depends only on the operands' elements at the same position.
    ELEMENTWISE = enum.auto()
    _AFFINE = enum.auto()
    _SUM = enum.auto()
    _PRODUCT = enum.auto()
    _CURVED = enum.auto()
    AFFINE = ELEMENTWISE | _AFFINE  # affine in each operand, the others held
    SUM = AFFINE | _SUM
    PRODUCT = AFFINE | _PRODUCT  # includes division
    CURVED = ELEMENTWISE | _CURVED  # any other function
    ELEMENTARY = enum.auto()  # part of written-out formulas: adjacent literals belong to the function, not to a layer
    NO_DERIVATIVE = enum.auto()  # the output depends on the input, without a derivative

    # An output element is a copy of at most one element of the operands.
    STRUCTURAL = enum.auto()
    _IDENTITY = enum.auto()
    _MOVE = enum.auto()
    _FORM = enum.auto()
    IDENTITY = STRUCTURAL | _IDENTITY  # the same array under another type or placement
    MOVE = STRUCTURAL | _MOVE  # every element occurs exactly once in the output
    FORM = STRUCTURAL | _FORM  # only the axes change
    CAST = enum.auto()  # the same numbers in another precision
    PICK = enum.auto()  # keeps a part of its operand
    REORDER = enum.auto()  # the values themselves determine the order of elements
    LOOK_UP = enum.auto()  # reads a table at integers, or multiplies it by a one-hot code

    # An output element sums over elements of the operand.
    CONTRACTION = enum.auto()
    _WEIGHTED = enum.auto()
    _SUMMING = enum.auto()
    WEIGHTED = CONTRACTION | _WEIGHTED  # linear in one operand, the other held
    SUMMING = CONTRACTION | _SUMMING  # with weights 0 and 1
    REDUCING = enum.auto()  # removes axes

    MAXIMUM = enum.auto()  # or minimum
    JOINTLY_LINEAR = enum.auto()  # linear in all of its operands together


T = Trait
NO_TRAIT = Trait(0)
# fmt: off
AxisRule: TypeAlias = Literal[
    "elementwise", "same", "transpose", "reshape", "broadcast", "contract", "convolve", "window", "along", "reduce",
    "slice", "dynamic_slice", "pad", "concatenate", "gather",
]
# fmt: on
# "keep": the degree of the one varying operand. "sum": the common degree of all terms. "add", "subtract": as for × and
# ÷.
Degree: TypeAlias = Literal["keep", "sum", "add", "subtract", "exponent"] | float


@dataclass(frozen=True)
class Row:
    """The facts about a primitive; see the module's docstring."""

    traits: Trait = NO_TRAIT
    interval: IntervalRule | None = None
    axes: AxisRule | None = None
    degree: Degree | None = None
    kind: Literal["dense", "convolution"] | None = None
    winner: Literal["largest", "smallest"] | None = None

    def has(self, trait: Trait) -> bool:
        """Whether the primitive has all flags of a trait."""
        return trait in self.traits

    def has_any(self, traits: Trait) -> bool:
        """Whether the primitive has some flag of several."""
        return bool(self.traits & traits)


UNKNOWN = Row()
ROWS: dict[Any, Row] = {}


def row_of(primitive: Any) -> Row:
    """The row of a primitive object."""
    return ROWS.get(primitive, UNKNOWN)


def having(trait: Trait) -> frozenset[Any]:
    """The primitives with a trait."""
    return frozenset(primitive for primitive, row in ROWS.items() if row.has(trait))


def _add(primitives: Iterable[Any], traits: Trait, **facts: Any) -> None:
    for primitive in primitives:
        if primitive is not None:  # it exists in this release of JAX
            assert primitive not in ROWS, primitive  # noqa: S101 - a second row would hide the first
            ROWS[primitive] = Row(traits, **facts)


def _hidden(*names: str) -> list[Any]:
    return [_compat.primitive(name) for name in names]


# Interval arithmetic


def _first(intervals: Sequence[Interval]) -> Interval:
    return intervals[0]


def _hull(intervals: Sequence[Interval]) -> Interval:
    numbers = [(low, high) for low, high in intervals if low == low] or [ANY]  # NaN stands for a missing value
    return min(low for low, _ in numbers), max(high for _, high in numbers)


def _hull_of_cases(intervals: Sequence[Interval]) -> Interval:
    return _hull(intervals[1:])


def _hull_of_ends(intervals: Sequence[Interval]) -> Interval:
    return _hull([intervals[0], intervals[-1]])


def _total(intervals: Sequence[Interval]) -> Interval:
    return NONNEGATIVE if all(low >= 0 for low, _ in intervals) else ANY


def _times(x: float, y: float) -> float:
    return 0.0 if x == 0 or y == 0 else x * y


def _product(intervals: Sequence[Interval]) -> Interval:
    a, b = intervals
    corners = [_times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _quotient(intervals: Sequence[Interval]) -> Interval:
    a, (low, high) = intervals
    if low < 0:
        return ANY
    # 1/b, with 1/0 = ∞
    inverse = (0.0 if math.isinf(high) else 1 / high if high else math.inf, math.inf if low == 0 else 1 / low)
    return _product((a, inverse))


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _log1p(intervals: Sequence[Interval]) -> Interval:
    ((low, _),) = intervals
    return math.log1p(low) if 0 <= low < math.inf else -math.inf, math.inf


def _always(low: float, high: float) -> IntervalRule:
    return lambda _: (low, high)


# Programs inside

_add((_compat.JIT, *_compat.OLD_CALLS), T.CALL)
_add((_compat.CUSTOM_JVP, _compat.CUSTOM_VJP), T.CUSTOM)
_add((lax.scan_p,), T.LOOP)
_add((lax.cond_p,), T.BRANCH)
_add((_compat.CHECKPOINT,), T.CHECKPOINT)

# Elementwise: sums, products, and functions that are linear in one operand

_linear = {"axes": "elementwise", "degree": "keep"}
_SUMS = T.SUM | T.ELEMENTARY | T.JOINTLY_LINEAR
_add((lax.add_p, _compat.ADD_ANY), _SUMS, interval=lambda i: (i[0][0] + i[1][0], i[0][1] + i[1][1]),
     axes="elementwise", degree="sum")  # fmt: skip
_add((lax.sub_p,), _SUMS, interval=lambda i: (i[0][0] - i[1][1], i[0][1] - i[1][0]), axes="elementwise", degree="sum")
_add((lax.mul_p,), T.PRODUCT | T.ELEMENTARY, interval=_product, axes="elementwise", degree="add")
_add((lax.div_p,), T.PRODUCT | T.ELEMENTARY, interval=_quotient, axes="elementwise", degree="subtract")
_add((lax.neg_p,), T.AFFINE | T.ELEMENTARY | T.JOINTLY_LINEAR, interval=lambda i: (-i[0][1], -i[0][0]), **_linear)
_add((lax.real_p, lax.imag_p), T.AFFINE | T.ELEMENTARY, axes="elementwise")
_add((lax.convert_element_type_p, lax.reduce_precision_p), T.AFFINE | T.ELEMENTARY | T.CAST, interval=_first, **_linear)
_add((lax.copy_p,), T.AFFINE | T.ELEMENTARY | T.IDENTITY | T.MOVE | T.CAST | T.JOINTLY_LINEAR,
     interval=_first, axes="same", degree="keep")  # fmt: skip

# Elementwise: other functions

_NAMES = "acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cos cosh digamma erf_inv igamma igamma_grad_a"
_curved = [getattr(lax, f"{name}_p") for name in _NAMES.split()]
_curved += [lax.igammac_p, lax.lgamma_p, lax.polygamma_p, lax.regularized_incomplete_beta_p, lax.rem_p]
_curved += [lax.sin_p, lax.sinh_p, lax.tan_p, lax.zeta_p]
_add((*_curved, *_hidden("one_minus_square", "polynomial", "random_gamma_grad")), T.CURVED, axes="elementwise")
_add((lax.expm1_p, lax.log_p, lax.cbrt_p, *_hidden("log2")), T.CURVED | T.ELEMENTARY, axes="elementwise")
_add((lax.exp_p,), T.CURVED | T.ELEMENTARY, interval=lambda i: (_exp(i[0][0]), _exp(i[0][1])), axes="elementwise")
_add((lax.exp2_p,), T.CURVED | T.ELEMENTARY, interval=_always(*NONNEGATIVE), axes="elementwise")
_add((lax.log1p_p,), T.CURVED | T.ELEMENTARY, interval=_log1p, axes="elementwise")
_add((lax.pow_p,), T.CURVED | T.ELEMENTARY, axes="elementwise", degree="exponent")
_add((lax.integer_pow_p,), T.CURVED | T.ELEMENTARY, axes="elementwise", degree="exponent")
_add((lax.square_p,), T.CURVED | T.ELEMENTARY, interval=_always(*NONNEGATIVE), axes="elementwise", degree=2.0)
_add((lax.sqrt_p,), T.CURVED | T.ELEMENTARY, interval=_always(*NONNEGATIVE), axes="elementwise", degree=0.5)
_add((lax.rsqrt_p,), T.CURVED | T.ELEMENTARY, interval=_always(*NONNEGATIVE), axes="elementwise", degree=-0.5)
_add((lax.logistic_p,), T.CURVED, interval=_always(0.0, 1.0), axes="elementwise")
_add((lax.tanh_p, lax.erf_p), T.CURVED, interval=_always(-1.0, 1.0), axes="elementwise")
_add((lax.erfc_p,), T.CURVED, interval=_always(0.0, 2.0), axes="elementwise")
_add((lax.abs_p,), T.CURVED, interval=lambda i: (0.0, max(abs(i[0][0]), abs(i[0][1]))), **_linear)
_add((lax.clamp_p,), T.CURVED, interval=lambda i: (min(i[0][0], i[2][0]), i[2][1]), axes="elementwise")
_add((lax.select_n_p,), T.CURVED | T.PICK | T.JOINTLY_LINEAR, interval=_hull_of_cases, **_linear)
_add((lax.max_p,), T.CURVED | T.MAXIMUM, interval=lambda i: (max(i[0][0], i[1][0]), max(i[0][1], i[1][1])),
     winner="largest", **_linear)  # fmt: skip
_add((lax.min_p,), T.CURVED | T.MAXIMUM, interval=lambda i: (min(i[0][0], i[1][0]), min(i[0][1], i[1][1])),
     winner="smallest", **_linear)  # fmt: skip
_add(
    (lax.ceil_p, lax.floor_p, lax.round_p, lax.sign_p, lax.nextafter_p), T.CURVED | T.NO_DERIVATIVE, axes="elementwise"
)
_add((lax.stop_gradient_p,), T.CURVED | T.NO_DERIVATIVE, interval=_first, **_linear)
_NAMES = "and or not xor eq ne lt le gt ge eq_to lt_to le_to is_finite population_count clz"
_NAMES += " shift_left shift_right_arithmetic shift_right_logical"
_add((getattr(lax, f"{name}_p") for name in _NAMES.split()), T.ELEMENTWISE | T.NO_DERIVATIVE, axes="elementwise")

# Data movement

_identity = {"interval": _first, "axes": "same", "degree": "keep"}
_SAME = T.IDENTITY | T.CAST | T.JOINTLY_LINEAR
_add((lax.device_put_p, lax.sharding_constraint_p, _compat.NAME), _SAME, **_identity)
_add(_hidden("layout_constraint", "pvary", "reshard"), _SAME, **_identity)
_add((lax.optimization_barrier_p,), T.STRUCTURAL, axes="same", degree="keep")  # of several values at once
_moved = {"interval": _first, "degree": "keep"}
_MOVES = T.MOVE | T.JOINTLY_LINEAR
_add((lax.reshape_p,), _MOVES | T.FORM, axes="reshape", **_moved)
_add((lax.squeeze_p,), _MOVES | T.FORM | T.PICK, axes="reshape", **_moved)
_add((lax.transpose_p,), _MOVES | T.FORM, axes="transpose", **_moved)
_add((lax.rev_p,), _MOVES, **_moved)
_COPIES = T.STRUCTURAL | T.JOINTLY_LINEAR
_add((lax.broadcast_in_dim_p,), _COPIES | T.FORM, axes="broadcast", **_moved)
_add((lax.slice_p,), _COPIES | T.PICK, axes="slice", **_moved)
_add((lax.dynamic_slice_p,), _COPIES | T.PICK | T.LOOK_UP, axes="dynamic_slice", **_moved)
_add((lax.gather_p,), _COPIES | T.PICK | T.LOOK_UP, axes="gather", **_moved)
_add((lax.split_p,), _COPIES | T.PICK, **_moved)
_add((lax.unstack_p,), _COPIES | T.PICK, degree="keep")
_add((lax.dynamic_update_slice_p,), _COPIES, axes="same", degree="keep")
_add((lax.pad_p,), _COPIES, interval=_hull, axes="pad", degree="keep")
_add((lax.concatenate_p,), _COPIES, interval=_hull, axes="concatenate", degree="keep")
_add((lax.stack_p, lax.tile_p), _COPIES, degree="keep")
_add((lax.scatter_p,), T.STRUCTURAL, degree="keep")
_add((lax.sort_p, lax.select_and_gather_add_p), T.STRUCTURAL | T.REORDER, degree="keep")
_add((lax.top_k_p,), T.STRUCTURAL | T.REORDER, degree="keep", winner="largest")

# Contractions

_add((lax.dot_general_p,), T.WEIGHTED | T.LOOK_UP, axes="contract", degree="add", kind="dense")
_add(_hidden("ragged_dot_general"), T.WEIGHTED, kind="dense")
_add((lax.conv_general_dilated_p,), T.WEIGHTED, axes="convolve", degree="add", kind="convolution")
_summed = {"interval": _total, "degree": "keep"}
_SUMMING = T.SUMMING | T.JOINTLY_LINEAR
_add((lax.reduce_sum_p,), _SUMMING | T.REDUCING, axes="reduce", **_summed)
_add((lax.reduce_window_sum_p,), _SUMMING, axes="window", **_summed)
_add((lax.cumsum_p,), _SUMMING, axes="along", **_summed)
_add((lax.psum_p, lax.scatter_add_p, *_hidden("psum_invariant")), _SUMMING, **_summed)
_add((lax.fft_p,), T.CONTRACTION | T.JOINTLY_LINEAR, degree="keep")
_add((lax.scatter_sub_p,), NO_TRAIT)  # an addition of two values, not a sum over one

# Maxima

_maximum = {"interval": _first, "degree": "keep"}
_add((lax.reduce_max_p,), T.MAXIMUM | T.REDUCING, axes="reduce", winner="largest", **_maximum)
_add((lax.reduce_min_p,), T.MAXIMUM | T.REDUCING, axes="reduce", winner="smallest", **_maximum)
_add((lax.reduce_window_max_p,), T.MAXIMUM, axes="window", winner="largest", **_maximum)
_add((lax.reduce_window_min_p,), T.MAXIMUM, axes="window", winner="smallest", **_maximum)
_add((lax.cummax_p,), T.MAXIMUM, axes="along", winner="largest", **_maximum)
_add((lax.cummin_p,), T.MAXIMUM, axes="along", winner="smallest", **_maximum)
_add((lax.pmax_p, lax.pmin_p), T.MAXIMUM, **_maximum)
_add((lax.scatter_max_p,), T.MAXIMUM, interval=_hull_of_ends, degree="keep", winner="largest")
_add((lax.scatter_min_p,), T.MAXIMUM, interval=_hull_of_ends, degree="keep", winner="smallest")

KNOWN = frozenset(ROWS)

# Unknown all the same: primitives of which only the axes are known, for values before a default layer of a CAM.

_reducing = (lax.argmax_p, lax.argmin_p, lax.reduce_prod_p, lax.reduce_and_p, lax.reduce_or_p)
_add(_reducing, T.REDUCING, axes="reduce")
_add((lax.cumprod_p, lax.cumlogsumexp_p), NO_TRAIT, axes="along")
_add((lax.reduce_window_p,), NO_TRAIT, axes="window")
