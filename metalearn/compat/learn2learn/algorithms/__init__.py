"""learn2learn's algorithms: a network, its clones, and steps on a loss that the script computes."""

from metalearn.compat.learn2learn._missing import nearest

from .base_learner import BaseLearner
from .gbml import GBML
from .maml import MAML, maml_update
from .meta_sgd import MetaSGD, meta_sgd_update

__all__ = ["GBML", "MAML", "BaseLearner", "MetaSGD", "maml_update", "meta_sgd_update"]

_LIGHTNING = (
    "PyTorch Lightning is not covered; train metalearn's {} with metalearn.meta_train and score it "
    "with metalearn.evaluate, on tasks from metalearn.compat.from_learn2learn"
)
__getattr__ = nearest(
    __name__,
    __all__,
    instead={
        "LightningANIL": _LIGHTNING.format("ANIL"),
        "LightningEpisodicModule": _LIGHTNING.format("learners (MAML, ANIL, ProtoNet, ...)"),
        "LightningMAML": _LIGHTNING.format("MAML"),
        "LightningMetaOptNet": (
            "PyTorch Lightning and support vector machines are not covered; metalearn's ProtoNet "
            "and l2l.nn.PrototypicalClassifier classify features too"
        ),
        "LightningPrototypicalNetworks": _LIGHTNING.format("ProtoNet"),
        "lightning": _LIGHTNING.format("learners (MAML, ANIL, ProtoNet, ...)"),
    },
)
