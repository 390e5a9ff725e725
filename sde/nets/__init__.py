"""Networks: plain torch modules called as net(x, c, **cond). A leaf: nothing here knows of diffusion."""

from sde.nets.cast import Cast
from sde.nets.embed import Fourier, Sinusoidal
from sde.nets.mlp import MLP

__all__ = ["MLP", "Cast", "Fourier", "Sinusoidal"]
