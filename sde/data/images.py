"""The known sets of images, (n, channels, height, width): digits out of the box, three that are downloaded once.

    float32 in [-1, 1]          by default: what networks see
    uint8 in 0..255             with bytes=True: a quarter of the memory, for the trainer to normalise on the device

Publishers' files come through `sde.data.download` (the environment variable SDE_DATA names a folder for work without a
network) and are read by `sde.data.readers`.
"""

import hashlib

import numpy as np
import torch

from sde.data import readers
from sde.data.dataset import Dataset
from sde.data.download import Source, locate, offline
from sde.data.pixels import HALF, flip, from_uint8, to_uint8

__all__ = ["cifar10", "digits", "fashion_mnist", "flip", "from_uint8", "mnist", "to_uint8"]


def _idx_sources(folder: str, mirrors: tuple[str, ...], files: dict[str, tuple[int, str]]) -> dict[str, Source]:
    return {name: Source(f"{folder}/{name}-ubyte.gz", size, sha256, mirrors) for name, (size, sha256) in files.items()}


MNIST = _idx_sources(
    "mnist",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    {
        "train-images-idx3": (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        "train-labels-idx1": (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        "t10k-images-idx3": (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        "t10k-labels-idx1": (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    },
)
FASHION_MNIST = _idx_sources(
    "fashion_mnist",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    {
        "train-images-idx3": (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        "train-labels-idx1": (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        "t10k-images-idx3": (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        "t10k-labels-idx1": (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    },
)
CIFAR10 = Source(
    "cifar10/cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    (
        "https://www.cs.toronto.edu/~kriz/",
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    ),
)
CIFAR10_STRIPS = {
    True: {"cifar10_train_a.zip": 25_000, "cifar10_train_b.zip": 25_000},
    False: {"cifar10_test.zip": 10_000},
}
"""The same pixels as lossless WebP, a little over half the size: looked for in SDE_DATA alone."""
CIFAR10_RECORDS = {
    True: "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
    False: "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
"""The sha256 of the batches of the archive, one after the other."""


def digits(*, bytes: bool = False) -> Dataset:
    """Real handwritten digits out of the box: 1797 images of 8 × 8 pixels, labels 0 to 9, no download.

    x is (1797, 1, 8, 8); raw grey levels are 0 to 16, 0 being the background, so `mean` = `scale` = 8.

    Args:
        bytes: uint8, the 17 levels spread over 0..255, instead of float32 in [-1, 1].

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI; in scikit-learn's wheel as
        `load_digits`.

    Example:
        >>> digits()
        Dataset('digits', x=(1797, 1, 8, 8), classes=10)
    """
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    x = to_uint8(x) if bytes else x
    return Dataset(x, torch.as_tensor(label, dtype=torch.int64), mean=8.0, scale=8.0, name="digits")


def mnist(train: bool = True, *, bytes: bool = False) -> Dataset:
    """MNIST: 60 000 handwritten digits of 28 × 28 pixels to train on, 10 000 to test; white on black.

    Labels 0 to 9. 12 MB, downloaded once. Usually given as CC BY-SA 3.0.

    Args:
        train: the training images, or the test images.
        bytes: uint8 in 0..255 instead of float32 in [-1, 1].

    References:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition.

    Example:
        >>> mnist()  # doctest: +SKIP
        Dataset('mnist', x=(60000, 1, 28, 28), classes=10)
    """
    return _from_idx("mnist", MNIST, train, bytes)


def fashion_mnist(train: bool = True, *, bytes: bool = False) -> Dataset:
    """Fashion-MNIST: 60 000 photographs of clothes, 28 × 28 pixels, to train on, 10 000 to test; in ten classes.

    T-shirt, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot. 31 MB, downloaded once.
    MIT licence.

    Args:
        train: the training images, or the test images.
        bytes: uint8 in 0..255 instead of float32 in [-1, 1].

    References:
        Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.

    Example:
        >>> fashion_mnist(train=False)  # doctest: +SKIP
        Dataset('fashion_mnist', x=(10000, 1, 28, 28), classes=10)
    """
    return _from_idx("fashion_mnist", FASHION_MNIST, train, bytes)


def cifar10(train: bool = True, *, bytes: bool = False) -> Dataset:
    """CIFAR-10: 50 000 colour photographs of 32 × 32 pixels to train on, 10 000 to test; in ten classes.

    Aeroplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck. 170 MB, downloaded once. No licence is
    stated. As floats the training images take 614 MB, as bytes 154 MB.

    Args:
        train: the training images, or the test images.
        bytes: uint8 in 0..255 instead of float32 in [-1, 1].

    References:
        Krizhevsky (2009), Learning multiple layers of features from tiny images.

    Example:
        >>> cifar10(bytes=True)  # doctest: +SKIP
        Dataset('cifar10', x=(50000, 3, 32, 32) uint8, classes=10)
    """
    strips = [offline(f"cifar10/{name}") for name in CIFAR10_STRIPS[train]]
    found = [path for path in strips if path]
    if offline(CIFAR10.path) is None and len(found) == len(strips):
        records = np.concatenate([readers.read_strips(path, CIFAR10_STRIPS[train][path.name]) for path in found])
    else:
        names = [f"data_batch_{k}.bin" for k in range(1, 6)] if train else ["test_batch.bin"]
        found = [locate(CIFAR10)]
        records = readers.read_cifar(found[0], names)
    if hashlib.sha256(records.data).hexdigest() != CIFAR10_RECORDS[train]:
        raise ValueError(f"{found[0]}: it does not hold CIFAR-10's own pixels and labels: replace it")
    return images_dataset(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], bytes, "cifar10")


def images_dataset(pixels: np.ndarray, label: np.ndarray | None, bytes: bool, name: str) -> Dataset:
    """Bytes (n, C, H, W) and classes as a `Dataset` whose raw units are 0..255."""
    x = torch.as_tensor(np.require(pixels, requirements=["C", "W"]))
    classes = None if label is None else torch.as_tensor(label.astype(np.int64))
    return Dataset(x if bytes else from_uint8(x), classes, mean=HALF, scale=HALF, name=name)


def _from_idx(name: str, sources: dict[str, Source], train: bool, bytes: bool) -> Dataset:
    part, n = ("train", 60_000) if train else ("t10k", 10_000)
    where = locate(sources[f"{part}-labels-idx1"])
    label = readers.read_idx(where, (n,))
    readers.check_labels(where, label, 10)
    pixels = readers.read_idx(locate(sources[f"{part}-images-idx3"]), (n, 28, 28))
    return images_dataset(pixels[:, None], label, bytes, name)
