"""What learners share whose head does not start from the model's: any ways, and no outer training.

`ProtoMAML` starts from prototypes, and `Baseline` from a head that is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metalearn.engine.labels import check_classes
from metalearn.episodes import Examples
from metalearn.network.functional import Functional
from metalearn.network.layers import is_inside

from .features import check_stack_classes
from .gradient_learner import GradientLearner


class FreshHead(GradientLearner):
    """A learner that makes a head with an output for every class of the task.

    A subclass writes `first_weights`. The weights of the model's own head are neither used nor
    trained.
    """

    needs_head = True

    def check_head(self, head: str | None) -> str:
        """The path of the head, if it is a Linear."""
        path = super().check_head(head)
        module = self.model.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise ValueError(
                f"{type(self).__name__} makes the weights of a Linear head, and {path!r} is"
                f" {module}; name a Linear with head="
            )
        return path

    def ways(self, network: Functional, support: Examples) -> int:
        """The number of classes of a support set, which has an example of each."""
        if network.classes is not None:  # checked already
            return network.classes
        ways = int(support.targets.max()) + 1
        check_classes(support.targets, ways)
        return ways

    def check_stack(self, targets: Tensor, first: int = 0) -> None:
        """Check that the support sets of a stack have examples of all their classes."""
        check_stack_classes(targets, first)

    def check_targets(
        self, network: Functional, support: Tensor, query: Tensor | None, logits: torch.Size
    ) -> None:
        """Check the labels of a stack before recorded operations run on it (see `Learner`)."""
        self.check_stack(support)
        super().check_targets(network, support, query, logits)

    def meta_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the outer loop trains: all but the head's."""
        return {
            name: parameter
            for name, parameter in super().meta_parameters().items()
            if not is_inside(name.removeprefix("model."), self.head)
        }
