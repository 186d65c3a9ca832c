"""Parts of activation maximisation: how the input is written, what is penalised, how it is shaken. Each is a plain function.

| | |
| --- | --- |
| parametrisations | `pixels`, `box`, `fourier`, `fixed_magnitude` (MACO), `decoder`, or your own `Parametrization(decode, encode)` |
| penalties, `(x, *args) -> scalar` | `l2` (to a centre), `lp`, `total_variation`, `blur`, `expert` (−log p of `jx.experts`), `shell` (of a code), `diversity` |
| transforms, `(key, x) -> x` | `jitter`, `rotate`, `scale`, `crop`, `noise` |
"""

from jaxplain.prototypes.parametrizations import Parametrization as Parametrization
from jaxplain.prototypes.parametrizations import box as box
from jaxplain.prototypes.parametrizations import decoder as decoder
from jaxplain.prototypes.parametrizations import fixed_magnitude as fixed_magnitude
from jaxplain.prototypes.parametrizations import fourier as fourier
from jaxplain.prototypes.parametrizations import pixels as pixels
from jaxplain.prototypes.penalties import blur as blur
from jaxplain.prototypes.penalties import diversity as diversity
from jaxplain.prototypes.penalties import expert as expert
from jaxplain.prototypes.penalties import l2 as l2
from jaxplain.prototypes.penalties import lp as lp
from jaxplain.prototypes.penalties import shell as shell
from jaxplain.prototypes.penalties import total_variation as total_variation
from jaxplain.prototypes.transforms import crop as crop
from jaxplain.prototypes.transforms import jitter as jitter
from jaxplain.prototypes.transforms import noise as noise
from jaxplain.prototypes.transforms import rotate as rotate
from jaxplain.prototypes.transforms import scale as scale
