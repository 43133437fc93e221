"""Networks as plain modules; any `torch.nn.Module` of yours will do as well."""

from tegu.models.categories import category_pair, tables_of
from tegu.models.conv4 import Conv4
from tegu.models.convnet import ConvNet
from tegu.models.convolution import Conv
from tegu.models.experts import ExpertPair
from tegu.models.masked_mlps import MaskedMlps
from tegu.models.mixtures import mixture_pair
from tegu.models.mlc import StudyTransformer
from tegu.models.mlp import Mlp
from tegu.models.neural_process import NeuralProcess
from tegu.models.norm import BatchNorm
from tegu.models.pair import Pair
from tegu.models.resnet12 import ResNet12
from tegu.models.seq2seq import MemorySeq2Seq, Seq2Seq
from tegu.models.tables import TableTransformer
from tegu.models.tnp import TransformerProcess
from tegu.models.vit import ViT
from tegu.models.weighted import Weighted
from tegu.models.wrn import WideResNet

__all__ = [
    "BatchNorm",
    "Conv",
    "Conv4",
    "ConvNet",
    "ExpertPair",
    "MaskedMlps",
    "MemorySeq2Seq",
    "Mlp",
    "NeuralProcess",
    "Pair",
    "ResNet12",
    "Seq2Seq",
    "StudyTransformer",
    "TableTransformer",
    "TransformerProcess",
    "ViT",
    "Weighted",
    "WideResNet",
    "category_pair",
    "mixture_pair",
    "tables_of",
]
