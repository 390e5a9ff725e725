"""What each command can be told: frozen dataclasses with their defaults.

A configuration is made from four layers, each over the one before: the defaults here, a recipe in TOML, `key=value`,
and flags (`--steps 500`), which tyro reads off the same dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sde.cli.choice import Choice

_by_name = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="NAME",
    instance_from_str=lambda words: Choice(words[0]),
    is_instance=lambda x: x is None or isinstance(x, Choice),
    str_from_instance=lambda x: ["none" if x is None else x.name],
)
Named = Annotated[Choice, _by_name]
MaybeNamed = Annotated[Choice | None, _by_name]


@dataclass(frozen=True)
class Train:
    """Train a score network; the run can be interrupted, and the same command goes on with it."""

    data: Named = field(default=Choice("moons", {"n": 20_000}))
    """Data set; its arguments as data.n=20000."""
    sde: Named = field(default=Choice("VP"))
    """Forward SDE; its arguments as sde.beta_max=20."""
    model: Named = field(default=Choice("MLP"))
    """Network; its arguments as model.width=128 model.depth=3."""
    param: str = "edm"
    """What the network's output means: edm, eps, x0, v, velocity, score."""
    conditional: bool = False
    """Tell the network the class of each datum."""
    steps: int = 5000
    """Optimizer steps in all."""
    batch: int = 256
    """Samples in a step."""
    lr: float = 2e-3
    """Peak learning rate of Adam."""
    warmup: int = 100
    """Steps over which it rises."""
    decay: str = "cosine"
    """How it falls: cosine, linear, inverse_sqrt, constant."""
    ema: float = 0.999
    """Decay of the average of the weights."""
    clip: float | None = None
    """Largest norm of the gradient; any without one."""
    loss: Named = field(default=Choice("denoising"))
    """What is learned; its arguments as loss.probes=2."""
    weight: MaybeNamed = None
    """Weight over noise levels; the loss's own without one."""
    times: MaybeNamed = None
    """Distribution of training times; the loss's or the SDE's own without one."""
    coupling: MaybeNamed = None
    """Which noise goes with which datum: the loss's without one. A coupled model has a velocity and no score."""
    flip: bool = False
    """Show half of the images in their mirror."""
    drop: float = 0.0
    """Share of classes that the network is not told, so that it learns to do without, too."""
    dequantize: float = 0.0
    """Width in bytes of the cell that each byte of an image is spread over: 1 for bits per dimension of photographs."""
    precision: str = "float32"
    """Of the network's arithmetic: float32, bfloat16, float16."""
    accumulate: int = 1
    """Parts in which a batch goes through the network, where it is too large for the device."""
    compile: bool = False
    """Compile the network; half a minute and more at the start."""
    seed: int = 0
    """Of weights, data, times and noise."""
    every: int = 100
    """Steps between two entries of the history."""
    save_every: int | None = None
    """Steps between two checkpoints; as often as entries without one."""
    samples_every: int | None = None
    """Steps between two pictures of samples on the way; none without one."""
    tensorboard: bool = False
    """Log to the folder's `tensorboard`, too."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    resume: bool = True
    """Go on with the run that is in the folder; resume=false starts anew."""
    out: Path | None = None
    """Folder of the run; out/train/NAME without one."""


@dataclass(frozen=True)
class Sample:
    """Draw from a trained model: a file of samples, and a picture of them."""

    n: int = 1000
    """How many."""
    steps: int = 32
    """Solver steps."""
    solver: MaybeNamed = None
    """Solver; its arguments as solver.snr=0.1. Without one, the default of sde.sample."""
    eta: float | None = None
    """Noise of the reverse SDE: 0 the probability-flow ODE, 1 the reverse SDE; the solver's own without one."""
    grid: Named = field(default=Choice("data_scaled"))
    """Times at which the solver stops."""
    label: int | None = None
    """Class to draw from, where the network knows classes; all in turn without one."""
    seed: int = 0
    """Of the noise: each sample has a generator of its own, of this seed and its number."""
    batch: int = 1000
    """Samples drawn at a time; what a sample is does not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps; under `accelerate launch` cuda is the GPU of each process."""
    precision: str = "float32"
    """Of the network: float32, bfloat16, float16."""
    compile: bool = False
    """Record each batch as CUDA graphs."""
    resume: bool = True
    """Go on with a draw that was stopped; resume=false begins anew."""
    out: Path | None = None
    """File .npz or .safetensors, with a .png beside it; .png alone; or a folder, for one PNG an image. Without one,
    samples.npz beside the model."""


@dataclass(frozen=True)
class Restore:
    """Restore a damaged image, several times: answers, their mean and standard deviation, beside what was seen."""

    model: str = "fashion-mnist"
    """Network that comes with the package, or a checkpoint."""
    data: MaybeNamed = None
    """Data set to take a clean image from, in place of a file."""
    index: int = 0
    """Which of its images."""
    degrade: bool = False
    """The image is clean: damage it first, and show the truth beside the answers."""
    noise: float | None = None
    """Standard deviation of the image's noise, in grey levels from -1 to 1: none without it; denoise estimates it."""
    box: str | None = None
    """inpaint: top,left,height,width of what is hidden, in pixels; the middle without any key."""
    hidden: str | None = None
    """inpaint: the half that is hidden: top, bottom, left, right."""
    share: float | None = None
    """inpaint: share of the pixels that are seen, here and there."""
    mask: Path | None = None
    """inpaint: picture that is white where the image is to be filled in."""
    factor: int = 4
    """super-resolve: how many times smaller the image is."""
    pool: bool = False
    """super-resolve: pixels are means of blocks, and not bicubic."""
    width: float = 1.5
    """deblur: standard deviation of a Gaussian blur, in pixels."""
    length: float | None = None
    """deblur: length of a motion blur in pixels, in place of the Gaussian."""
    angle: float = 0.0
    """deblur: of the motion, in degrees anticlockwise from the rows."""
    method: MaybeNamed = None
    """Method of sde.inverse, its arguments as method.iterations=5; DDRM without one, the reverse SDE for denoise."""
    n: int = 8
    """Answers."""
    steps: int = 50
    """Solver steps."""
    solver: MaybeNamed = None
    """Solver under the method; Ancestral without one, or the method's own."""
    eta: float | None = None
    """Noise of the reverse SDE; the solver's own without one."""
    label: int | None = None
    """Class of the image, where it is known and the network knows classes."""
    resize: bool = False
    """Bring an image of another size, or in colour, to what the model takes."""
    seed: int = 0
    """Of the damage and of the answers: each has a generator of its own, of this seed and its number."""
    batch: int = 64
    """Answers drawn at a time; what an answer is does not depend on it."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """Folder; out/restore/IMAGE-TASK without one."""


@dataclass(frozen=True)
class Plot:
    """Draw a trained model (its score field, paths, history, a film), or a file of samples."""

    what: str = "all"
    """score, paths, snapshots, samples, history or movie; "all" is all of them but the movie."""
    n: int = 1000
    """Samples to draw, or to show."""
    steps: int = 64
    """Solver steps of each run."""
    seed: int = 0
    """Of the noise."""
    out: Path | None = None
    """Folder of the pictures; that of the file without one."""


@dataclass(frozen=True)
class Demo:
    """Train, sample and draw two moons, then handwritten digits."""

    digits: bool = True
    """The second part: digits by the same lines."""
    seed: int = 0
    """Of everything."""
    smoke: bool = False
    """A few steps of everything, to see that it runs; SDE_SMOKE=1 in the environment says the same."""
    out: Path = Path("out/demo")
    """Folder of figures and page."""
