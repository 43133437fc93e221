"""Networks as plain modules; any `torch.nn.Module` of yours will do as well."""

from tegu.models.conv4 import Conv4
from tegu.models.convolution import Conv
from tegu.models.masked_mlps import MaskedMlps
from tegu.models.mlp import Mlp
from tegu.models.norm import BatchNorm
from tegu.models.resnet12 import ResNet12
from tegu.models.wrn import WideResNet

__all__ = ["BatchNorm", "Conv", "Conv4", "MaskedMlps", "Mlp", "ResNet12", "WideResNet"]
