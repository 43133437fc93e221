"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.anil import Anil
from tegu.learners.boil import Boil
from tegu.learners.cavia import Cavia
from tegu.learners.finetune import FineTune
from tegu.learners.fomaml import Fomaml
from tegu.learners.head import Head
from tegu.learners.imaml import IMaml
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.maml import Maml
from tegu.learners.mamlpp import MamlPlusPlus
from tegu.learners.metacurvature import MetaCurvature
from tegu.learners.metasgd import MetaSgd
from tegu.learners.protomaml import ProtoMaml
from tegu.learners.protonet import ProtoNet
from tegu.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Anil,
        Boil,
        Cavia,
        Fomaml,
        IMaml,
        Joint,
        Maml,
        MamlPlusPlus,
        MetaCurvature,
        MetaSgd,
        ProtoMaml,
        ProtoNet,
        Reptile,
    )
}

__all__ = [
    "LEARNERS",
    "Anil",
    "Boil",
    "Cavia",
    "FineTune",
    "Fomaml",
    "Head",
    "IMaml",
    "Joint",
    "Learner",
    "Maml",
    "MamlPlusPlus",
    "MetaCurvature",
    "MetaSgd",
    "ProtoMaml",
    "ProtoNet",
    "Reptile",
]
