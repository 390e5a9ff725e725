"""Score-based generative models by stochastic differential equations: forward SDE, score model, solver."""

__version__ = "0.1.0"
