"""Data to learn from: toy distributions in the plane, pictures as densities, images in [-1, 1] or as bytes.

Each function returns a `Dataset`: `x` standardised by the population's own moments, `label` where there are
classes, `mean` and `scale` to go back. A leaf of the package: it needs torch, and scikit-learn, Pillow or pooch
where it reads with them.
"""

from sde.data.dataset import Dataset
from sde.data.folder import image_folder
from sde.data.images import cifar10, digits, fashion_mnist, mnist
from sde.data.picture import from_picture
from sde.data.pixels import flip, from_uint8, to_uint8
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
    "mnist",
    "fashion_mnist",
    "cifar10",
    "image_folder",
    "to_uint8",
    "from_uint8",
    "flip",
]
