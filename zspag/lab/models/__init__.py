"""Networks for small images, one family per file, and any network from somebody's own file.

``width`` is the number of channels of the first block; every network takes any image size from its smallest on, with
any number of channels.

Invariant: the first layer normalizes, so every model takes images in [0, 1] and a radius ``eps`` is in pixel units.
"""

from zspag.lab.models.building import ARCHITECTURES, build, from_file
from zspag.lab.models.layers import Normalize

__all__ = ["ARCHITECTURES", "Normalize", "build", "from_file"]
