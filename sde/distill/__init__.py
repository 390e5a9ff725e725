"""Distillation: samples in one to four evaluations of a network.

`consistency` trains a network whose jump to t_min is the end of the probability flow, from a teacher or from data
alone; `progressive` halves the steps of a teacher's DDIM round by round. Both leave plain `ScoreModel`s, which
`sde.sample` takes with `Multistep` or `DDIM`, and which are saved and loaded as any other.
"""

from sde.distill.consistency import consistency
from sde.distill.jump import Multistep, flow_step, jump
from sde.distill.progressive import Stage, halved, progressive

__all__ = ["consistency", "progressive", "Stage", "Multistep", "jump", "flow_step", "halved"]
