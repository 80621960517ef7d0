"""Models for tests of how models are run or trained, and not of what they find."""

import torch
from torch import Tensor, nn

from cropscore_ray.jobs import recipes
from cropscore_ray.models.bundle import LOCALIZER, SCORER, Bundle, classifier_part, save_part
from cropscore_ray.models.googlenet import Network, make_network
from cropscore_ray.schema import ImageClass
from cropscore_ray.training.localizer.regressor import ScoredImages, ScoredShares, train_localizer


class Linear(Network):
    """The mean colour through one layer: no batch norm, so that shares add up exactly."""

    stride = 1

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def features(self, x_N3HW: Tensor) -> Tensor:
        return x_N3HW


def random_model(uri: str, num_classes: int = 8) -> Bundle:
    """Save a small model whose networks are as they began."""
    config = recipes.smoke()
    classes = [ImageClass(id=str(i), name=str(i)) for i in range(num_classes)]
    torch.manual_seed(7)
    network = make_network(config.network, num_classes).eval()
    scores_NF, corners_N2 = torch.randn(40, 140), torch.rand(40, 2) * 0.5
    scored = ScoredImages(
        scores_NF=scores_NF,
        classes_N=torch.arange(40) % num_classes,
        boxes_NM4=torch.cat([corners_N2, corners_N2 + 0.4], 1)[:, None],
    )
    localizer, _ = train_localizer(
        ScoredShares(*(scored.take(some) for some in torch.arange(40).split([34, 3, 3]))),
        num_classes=num_classes,
        config=config.localizer,
        seed=7,
        progress=lambda *_: None,
    )
    made = Bundle(uri=uri, config=config, classes=classes, parts={}, baselines={})
    for part in (classifier_part(0), SCORER):
        made = save_part(made, part, dict(network.state_dict()), metrics={})
    return save_part(made, LOCALIZER, localizer.to_tensors(), metrics={})
