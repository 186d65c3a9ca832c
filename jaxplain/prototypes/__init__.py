"""Parts of activation maximization, each a plain function.

| | |
| --- | --- |
| parametrizations | `pixels`, `box`, `fourier`, `fixed_magnitude` (MACO), `decoder`, `Parametrization(decode, encode)`
|
| penalties, `(x, *args) -> scalar` | `l2`, `lp`, `total_variation`, `blur`, `expert`, `shell` (of a code), `diversity`
|
| transforms, `(key, x) -> x` | `jitter`, `rotate`, `scale`, `crop`, `noise` |
"""

from jaxplain.prototypes._parametrizations import Parametrization as Parametrization
from jaxplain.prototypes._parametrizations import box as box
from jaxplain.prototypes._parametrizations import decoder as decoder
from jaxplain.prototypes._parametrizations import fixed_magnitude as fixed_magnitude
from jaxplain.prototypes._parametrizations import fourier as fourier
from jaxplain.prototypes._parametrizations import pixels as pixels
from jaxplain.prototypes._penalties import blur as blur
from jaxplain.prototypes._penalties import diversity as diversity
from jaxplain.prototypes._penalties import expert as expert
from jaxplain.prototypes._penalties import l2 as l2
from jaxplain.prototypes._penalties import lp as lp
from jaxplain.prototypes._penalties import shell as shell
from jaxplain.prototypes._penalties import total_variation as total_variation
from jaxplain.prototypes._transforms import crop as crop
from jaxplain.prototypes._transforms import jitter as jitter
from jaxplain.prototypes._transforms import noise as noise
from jaxplain.prototypes._transforms import rotate as rotate
from jaxplain.prototypes._transforms import scale as scale
