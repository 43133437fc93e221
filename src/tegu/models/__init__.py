"""Networks as plain modules; any `torch.nn.Module` of yours will do as well."""

from tegu.models.conv4 import Conv4
from tegu.models.mlp import Mlp
from tegu.models.norm import BatchNorm

__all__ = ["BatchNorm", "Conv4", "Mlp"]
