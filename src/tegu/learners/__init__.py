"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.anil import Anil
from tegu.learners.baseline import Baseline, BaselinePlusPlus
from tegu.learners.boil import Boil
from tegu.learners.causal_graph import CausalGraph
from tegu.learners.cavia import Cavia
from tegu.learners.dsn import DSN
from tegu.learners.feat import Feat
from tegu.learners.finetune import FineTune
from tegu.learners.fomaml import Fomaml
from tegu.learners.head import Head
from tegu.learners.imaml import IMaml
from tegu.learners.joint import Joint
from tegu.learners.laplacianshot import LaplacianShot
from tegu.learners.learner import Learner
from tegu.learners.lrd2 import LRD2
from tegu.learners.maml import Maml
from tegu.learners.mamlpp import MamlPlusPlus
from tegu.learners.matchingnet import MatchingNet
from tegu.learners.metacurvature import MetaCurvature
from tegu.learners.metaoptnet import MetaOptNetRidge, MetaOptNetSVM
from tegu.learners.metasgd import MetaSgd
from tegu.learners.pretrained import Pretrained
from tegu.learners.protomaml import ProtoMaml
from tegu.learners.protonet import ProtoNet
from tegu.learners.ptmap import PtMap
from tegu.learners.r2d2 import R2D2
from tegu.learners.relationnet import RelationNet
from tegu.learners.reptile import Reptile
from tegu.learners.simpleshot import SimpleShot
from tegu.learners.tim import Tim

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Anil,
        Baseline,
        BaselinePlusPlus,
        Boil,
        CausalGraph,
        Cavia,
        DSN,
        Feat,
        Fomaml,
        IMaml,
        Joint,
        LaplacianShot,
        LRD2,
        Maml,
        MamlPlusPlus,
        MatchingNet,
        MetaCurvature,
        MetaOptNetRidge,
        MetaOptNetSVM,
        MetaSgd,
        ProtoMaml,
        ProtoNet,
        PtMap,
        R2D2,
        RelationNet,
        Reptile,
        SimpleShot,
        Tim,
    )
}

__all__ = [
    "DSN",
    "LEARNERS",
    "LRD2",
    "R2D2",
    "Anil",
    "Baseline",
    "BaselinePlusPlus",
    "Boil",
    "CausalGraph",
    "Cavia",
    "Feat",
    "FineTune",
    "Fomaml",
    "Head",
    "IMaml",
    "Joint",
    "LaplacianShot",
    "Learner",
    "Maml",
    "MamlPlusPlus",
    "MatchingNet",
    "MetaCurvature",
    "MetaOptNetRidge",
    "MetaOptNetSVM",
    "MetaSgd",
    "Pretrained",
    "ProtoMaml",
    "ProtoNet",
    "PtMap",
    "RelationNet",
    "Reptile",
    "SimpleShot",
    "Tim",
]
