"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.anil import Anil
from tegu.learners.anp import Anp
from tegu.learners.baseline import Baseline, BaselinePlusPlus
from tegu.learners.boil import Boil
from tegu.learners.causal_graph import CausalGraph
from tegu.learners.causal_transfer import CausalTransfer
from tegu.learners.cavia import Cavia
from tegu.learners.cnp import Cnp
from tegu.learners.dsn import DSN
from tegu.learners.feat import Feat
from tegu.learners.finetune import FineTune
from tegu.learners.fomaml import Fomaml
from tegu.learners.head import Head
from tegu.learners.imaml import IMaml
from tegu.learners.incontext import InContext
from tegu.learners.joint import Joint
from tegu.learners.laplacianshot import LaplacianShot
from tegu.learners.latentnp import Np
from tegu.learners.learner import Learner
from tegu.learners.lrd2 import LRD2
from tegu.learners.lstm import Lstm
from tegu.learners.maml import Maml
from tegu.learners.mamlpp import MamlPlusPlus
from tegu.learners.matchingnet import MatchingNet
from tegu.learners.metacurvature import MetaCurvature
from tegu.learners.metaoptnet import MetaOptNetRidge, MetaOptNetSVM
from tegu.learners.metasgd import MetaSgd
from tegu.learners.mlc import Mlc
from tegu.learners.pfn import PFN
from tegu.learners.pretrained import Pretrained
from tegu.learners.process import Process
from tegu.learners.protomaml import ProtoMaml
from tegu.learners.protonet import ProtoNet
from tegu.learners.ptmap import PtMap
from tegu.learners.r2d2 import R2D2
from tegu.learners.reader import Reader
from tegu.learners.relationnet import RelationNet
from tegu.learners.reptile import Reptile
from tegu.learners.seq2seq import MetaSeq2Seq
from tegu.learners.simpleshot import SimpleShot
from tegu.learners.snail import Snail
from tegu.learners.tim import Tim
from tegu.learners.tnp import Tnp

LEARNERS: dict[str, type[Learner]] = {
    cls.name: cls
    for cls in (
        Anil,
        Anp,
        Baseline,
        BaselinePlusPlus,
        Boil,
        CausalTransfer,
        CausalGraph,
        Cavia,
        Cnp,
        DSN,
        Feat,
        Fomaml,
        IMaml,
        InContext,
        Joint,
        LaplacianShot,
        LRD2,
        Lstm,
        Maml,
        MamlPlusPlus,
        MatchingNet,
        MetaCurvature,
        MetaOptNetRidge,
        MetaOptNetSVM,
        MetaSeq2Seq,
        MetaSgd,
        Mlc,
        Np,
        PFN,
        ProtoMaml,
        ProtoNet,
        PtMap,
        R2D2,
        RelationNet,
        Reptile,
        SimpleShot,
        Snail,
        Tim,
        Tnp,
    )
}

__all__ = [
    "DSN",
    "LEARNERS",
    "LRD2",
    "PFN",
    "R2D2",
    "Anil",
    "Anp",
    "Baseline",
    "BaselinePlusPlus",
    "Boil",
    "CausalGraph",
    "CausalTransfer",
    "Cavia",
    "Cnp",
    "Feat",
    "FineTune",
    "Fomaml",
    "Head",
    "IMaml",
    "InContext",
    "Joint",
    "LaplacianShot",
    "Learner",
    "Lstm",
    "Maml",
    "MamlPlusPlus",
    "MatchingNet",
    "MetaCurvature",
    "MetaOptNetRidge",
    "MetaOptNetSVM",
    "MetaSeq2Seq",
    "MetaSgd",
    "Mlc",
    "Np",
    "Pretrained",
    "Process",
    "ProtoMaml",
    "ProtoNet",
    "PtMap",
    "Reader",
    "RelationNet",
    "Reptile",
    "SimpleShot",
    "Snail",
    "Tim",
    "Tnp",
]
