"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.baseline import Baseline, BaselinePlusPlus
from tegu.learners.feat import Feat
from tegu.learners.finetune import FineTune
from tegu.learners.head import Head
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.maml import Maml
from tegu.learners.matchingnet import MatchingNet
from tegu.learners.pretrained import Pretrained
from tegu.learners.protonet import ProtoNet
from tegu.learners.relationnet import RelationNet
from tegu.learners.reptile import Reptile
from tegu.learners.simpleshot import SimpleShot

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Baseline,
        BaselinePlusPlus,
        Feat,
        Joint,
        Maml,
        MatchingNet,
        ProtoNet,
        RelationNet,
        Reptile,
        SimpleShot,
    )
}

__all__ = [
    "LEARNERS",
    "Baseline",
    "BaselinePlusPlus",
    "Feat",
    "FineTune",
    "Head",
    "Joint",
    "Learner",
    "Maml",
    "MatchingNet",
    "Pretrained",
    "ProtoNet",
    "RelationNet",
    "Reptile",
    "SimpleShot",
]
