"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.baseline import Baseline, BaselinePlusPlus
from tegu.learners.feat import Feat
from tegu.learners.finetune import FineTune
from tegu.learners.head import Head
from tegu.learners.joint import Joint
from tegu.learners.laplacianshot import LaplacianShot
from tegu.learners.learner import Learner
from tegu.learners.maml import Maml
from tegu.learners.matchingnet import MatchingNet
from tegu.learners.pretrained import Pretrained
from tegu.learners.protonet import ProtoNet
from tegu.learners.ptmap import PtMap
from tegu.learners.relationnet import RelationNet
from tegu.learners.reptile import Reptile
from tegu.learners.simpleshot import SimpleShot
from tegu.learners.tim import Tim

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Baseline,
        BaselinePlusPlus,
        Feat,
        Joint,
        LaplacianShot,
        Maml,
        MatchingNet,
        ProtoNet,
        PtMap,
        RelationNet,
        Reptile,
        SimpleShot,
        Tim,
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
    "LaplacianShot",
    "Learner",
    "Maml",
    "MatchingNet",
    "Pretrained",
    "ProtoNet",
    "PtMap",
    "RelationNet",
    "Reptile",
    "SimpleShot",
    "Tim",
]
