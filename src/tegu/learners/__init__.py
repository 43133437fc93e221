"""One file per algorithm. `LEARNERS` maps the names that recipes use."""

from tegu.learners.finetune import FineTune
from tegu.learners.joint import Joint
from tegu.learners.learner import Learner
from tegu.learners.reptile import Reptile

LEARNERS: dict[str, type[Learner]] = {cls.name: cls for cls in (Joint, Reptile)}

__all__ = ["LEARNERS", "FineTune", "Joint", "Learner", "Reptile"]
