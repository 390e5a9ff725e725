"""Pictures of samples, fields, runs, images and training: one line each, returning the matplotlib object.

They take tensors, or a trajectory: anything with times `t` (N,) and states `x` (N, B, ...). `ax` or `axes` say where to
draw, further keyword arguments go to matplotlib. matplotlib itself is imported when a picture is drawn.
"""

from sde.plot.animation import animate
from sde.plot.fields import density, density_strip, score_field, score_strip
from sde.plot.images import birth, grid, neighbours
from sde.plot.line import marginals, space_time
from sde.plot.points import compare, scatter
from sde.plot.style import COLOURS, style
from sde.plot.training import history, variances
from sde.plot.trajectories import compare_paths, paths, snapshots

__all__ = [
    "scatter",
    "compare",
    "density",
    "density_strip",
    "score_field",
    "score_strip",
    "paths",
    "compare_paths",
    "snapshots",
    "marginals",
    "space_time",
    "grid",
    "birth",
    "neighbours",
    "history",
    "variances",
    "animate",
    "style",
    "COLOURS",
]
