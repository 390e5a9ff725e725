"""Data to learn from: toy distributions in the plane, pictures as densities, images in [-1, 1].

Each function returns a `Dataset`: `x` standardised by the population's own moments, `label` where there are
classes, `mean` and `scale` to go back. A leaf of the package: it needs torch, and scikit-learn or Pillow
where it reads with them.
"""

from sde.data.dataset import Dataset
from sde.data.images import digits, from_uint8, to_uint8
from sde.data.picture import from_picture
from sde.data.toy import checkerboard, circles, eight_gaussians, moons, pinwheel, s_curve, spirals, swiss_roll

__all__ = [
    "Dataset",
    "moons",
    "circles",
    "swiss_roll",
    "checkerboard",
    "pinwheel",
    "eight_gaussians",
    "spirals",
    "s_curve",
    "from_picture",
    "digits",
    "to_uint8",
    "from_uint8",
]
