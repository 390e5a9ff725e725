"""Networks: plain torch modules called as net(x, c, **cond). A leaf: nothing here knows of diffusion."""

from sde.nets.cast import Cast
from sde.nets.classifier import MLPClassifier, UNetClassifier
from sde.nets.dit import DiT
from sde.nets.embed import Conditioning, Fourier, Sinusoidal
from sde.nets.mlp import MLP
from sde.nets.unet import UNet

__all__ = ["MLP", "Cast", "Conditioning", "DiT", "Fourier", "MLPClassifier", "Sinusoidal", "UNet", "UNetClassifier"]
