"""Parts of activation maximization, each a plain function.

| | |
| --- | --- |
| parametrizations | `pixels`, `box`, `fourier`, `fixed_magnitude` (MACO), `decoder`, `Parametrization(decode, encode)`
|
| penalties, `(x, *args) -> scalar` | `l2`, `lp`, `total_variation`, `blur`, `expert`, `shell` (of a code), `diversity`
|
| transforms, `(key, x) -> x` | `jitter`, `rotate`, `scale`, `crop`, `noise` |
"""

from jaxplain.prototypes._parametrizations import Parametrization, box, decoder, fixed_magnitude, fourier, pixels
from jaxplain.prototypes._penalties import blur, diversity, expert, l2, lp, shell, total_variation
from jaxplain.prototypes._transforms import crop, jitter, noise, rotate, scale

# fmt: off
__all__ = [
    "Parametrization", "blur", "box", "crop", "decoder", "diversity", "expert", "fixed_magnitude", "fourier",
    "jitter", "l2", "lp", "noise", "pixels", "rotate", "scale", "shell", "total_variation",
]
# fmt: on
