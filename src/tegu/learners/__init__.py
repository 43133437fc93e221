"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.anil import Anil
from tegu.learners.boil import Boil
from tegu.learners.finetune import FineTune
from tegu.learners.fomaml import Fomaml
from tegu.learners.head import Head
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.maml import Maml
from tegu.learners.mamlpp import MamlPlusPlus
from tegu.learners.protonet import ProtoNet
from tegu.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Anil,
        Boil,
        Fomaml,
        Joint,
        Maml,
        MamlPlusPlus,
        ProtoNet,
        Reptile,
    )
}

__all__ = [
    "LEARNERS",
    "Anil",
    "Boil",
    "FineTune",
    "Fomaml",
    "Head",
    "Joint",
    "Learner",
    "Maml",
    "MamlPlusPlus",
    "ProtoNet",
    "Reptile",
]
