r"""What measures samples: distances between two samples, and the floor below which a distance says nothing.

Points: `sliced_wasserstein` and `wasserstein` transport, `mmd` and `energy_distance` compare pairs; each takes
tensors (n, \*D) and (m, \*D), works in float64 and gives a scalar on their device. `floor` says what the same
metric reads between two draws of the truth.

Images: `features` or `moments` of them in the eyes of a network (`inception` for the FID's own, `RandomConv` as a
stand-in), then `frechet_distance`, `kernel_distance`, `precision_recall`. `memorisation` and `neighbours` look for
copies of training data. `shard` and `gather` spread all of it over processes. Likelihoods: `sde.bits_per_dim`.
"""

from sde.metrics.distributed import gather, gather_moments, shard
from sde.metrics.features import RandomConv, feature_batches, features, moments
from sde.metrics.frechet import Moments, frechet_distance
from sde.metrics.inception import Inception, inception
from sde.metrics.kernel import KernelDistance, energy_distance, kernel_distance, median_distance, mmd
from sde.metrics.nearest import Coverage, Memorisation, Neighbours, memorisation, neighbours, precision_recall
from sde.metrics.sampling_floor import Floor, floor
from sde.metrics.transport import sliced_wasserstein, wasserstein

__all__ = [
    # points
    "sliced_wasserstein", "wasserstein", "mmd", "energy_distance", "median_distance", "floor", "Floor",
    # images
    "features", "moments", "feature_batches", "Moments", "RandomConv", "Inception", "inception",
    "frechet_distance", "kernel_distance", "KernelDistance", "precision_recall", "Coverage",
    "neighbours", "Neighbours", "memorisation", "Memorisation",
    # several processes
    "shard", "gather", "gather_moments",
]  # fmt: skip
