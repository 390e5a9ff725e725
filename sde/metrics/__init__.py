r"""What measures samples: distances between two samples, and the floor below which a distance says nothing.

`sliced_wasserstein` and `wasserstein` transport, `mmd` and `energy_distance` compare pairs; each takes
tensors (n, \*D) and (m, \*D), works in float64 and gives a scalar on their device. `floor` says what the same
metric reads between two draws of the truth.
"""

from sde.metrics.kernel import energy_distance, median_distance, mmd
from sde.metrics.sampling_floor import Floor, floor
from sde.metrics.transport import sliced_wasserstein, wasserstein

__all__ = ["sliced_wasserstein", "wasserstein", "mmd", "energy_distance", "median_distance", "floor", "Floor"]
