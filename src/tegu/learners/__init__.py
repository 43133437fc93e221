"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.finetune import FineTune
from tegu.learners.head import Head
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.lrd2 import LRD2
from tegu.learners.maml import Maml
from tegu.learners.protonet import ProtoNet
from tegu.learners.r2d2 import R2D2
from tegu.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Joint,
        LRD2,
        Maml,
        ProtoNet,
        R2D2,
        Reptile,
    )
}

__all__ = [
    "LEARNERS",
    "LRD2",
    "R2D2",
    "FineTune",
    "Head",
    "Joint",
    "Learner",
    "Maml",
    "ProtoNet",
    "Reptile",
]
