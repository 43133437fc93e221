"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.feat import Feat
from tegu.learners.finetune import FineTune
from tegu.learners.head import Head
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.maml import Maml
from tegu.learners.matchingnet import MatchingNet
from tegu.learners.protonet import ProtoNet
from tegu.learners.relationnet import RelationNet
from tegu.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Feat,
        Joint,
        Maml,
        MatchingNet,
        ProtoNet,
        RelationNet,
        Reptile,
    )
}

__all__ = [
    "LEARNERS",
    "Feat",
    "FineTune",
    "Head",
    "Joint",
    "Learner",
    "Maml",
    "MatchingNet",
    "ProtoNet",
    "RelationNet",
    "Reptile",
]
