"""The settings of a training, section by section: frozen dataclasses that check themselves.

A training is a complete config: recipes (jobs/recipes.py) return it, `--set a.b=VALUE`
changes a field of it, and the resolved config is written into the bundle.
"""

from dataclasses import dataclass, field

from cropscore_ray.config.modes import LOCALIZER_KINDS, MODES, SCORE_MODES, LocalizerKind
from cropscore_ray.config.rules import check, one_of, require
from cropscore_ray.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_MEGAPIXELS = 100.0
"""Of an image that is decoded: so many take 0.7 GB, Pillow's copy counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessConfig:
    """How pixels enter a network; stored in the bundle, so that no stage can drift."""

    input_px: int = 224
    """Side of every crop that a network sees, in pixels."""
    frame_px: int = 256
    """Side to which the 10-crop view scales the whole image before cutting input_px windows."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """RGB mean of values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """RGB standard deviation of values in [0, 1]."""

    def __post_init__(self) -> None:
        side, frame = self.input_px, self.frame_px
        require(32 <= side <= 1024, "preprocess.input_px", side, "from 32 to 1024")
        rule = f"at least preprocess.input_px ({side})"
        require(frame >= side, "preprocess.frame_px", frame, rule)
        require(min(self.std) > 0, "preprocess.std", self.std, "above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Which GoogLeNet."""

    architecture: str = "googlenet"
    """googlenet (torchvision's), inception-bn, or googlenet-small (narrow, for small inputs)."""
    width: float = 1.0
    """Channel multiplier of googlenet-small; the others have fixed widths."""

    def __post_init__(self) -> None:
        known = ("googlenet", "inception-bn", "googlenet-small")
        one_of(known, "network.architecture", self.architecture)
        require(0 < self.width <= 4, "network.width", self.width, "above 0 and at most 4")


@dataclass(frozen=True, kw_only=True, slots=True)
class SgdConfig:
    """One stochastic training, by SGD or AdamW, with decay on all weights."""

    epochs: int = 8
    """Passes over the training images; 0 takes the initial weights as they are."""
    batch_size: int = 64
    """Images a step, over all workers together."""
    pass_size: int | None = None
    """Most images that a worker takes at once; it adds up the gradients of as many passes as its
    share of a step needs, alike in size. None: its whole share in one pass."""
    learning_rate: float = 0.01
    """Peak rate, after 5 % linear warm-up."""
    schedule: str = "cosine"
    """cosine: half a cosine down to 0; step: 4 % less every 8 epochs (the GoogLeNet paper)."""
    ema_decay: float = 0.0
    """Keep the moving average of the weights with this decay a step; 0: the last weights."""
    weight_decay: float = 1e-4
    """L2 decay of weights."""
    optimizer: str = "sgd"
    """sgd: momentum 0.9; adamw: with gradients cut to length 1."""

    def check(self, name: str) -> None:
        """Raise ConfigError if a field breaks its rule; `name` is the dotted prefix."""
        check(self, name, "0 or more", "epochs", "weight_decay")
        check(self, name, "1 or more", "batch_size")
        check(self, name, "above 0", "learning_rate")
        check(self, name, "from 0 to below 1", "ema_decay")
        check(self, name, "1 or more, or null", "pass_size")
        one_of(("cosine", "step"), f"{name}.schedule", self.schedule)
        one_of(("sgd", "adamw"), f"{name}.optimizer", self.optimizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig(SgdConfig):
    """The image-level networks; their probabilities are averaged."""

    init: str | None = None
    """torchvision:NAME, FILE.pth, inception-bn:FILE.npz, or None for random weights."""
    init_members: int | None = None
    """Members that begin from init, the first ones; None: all. The others begin at random."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    num_members: int = 3
    """Networks, trained one after the other with different seeds."""
    min_area_fraction: float = 0.08
    """Smallest part of the image that a training crop covers (GoogLeNet paper: 0.08)."""
    photometric: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share; 0: none."""
    aux_weight: float = 0.0
    """Weight of each auxiliary head's loss while training (GoogLeNet paper: 0.3); 0: no heads."""

    def __post_init__(self) -> None:
        self.check("classifier")
        check(self, "classifier", "from 0 to below 1", "label_smoothing")
        check(self, "classifier", "from 0 to 1", "photometric", "aux_weight")
        check(self, "classifier", "above 0 and at most 1", "min_area_fraction")
        members = self.num_members
        require(1 <= members <= 9, "classifier.num_members", members, "from 1 to 9")
        first, rule = self.init_members, f"from 1 to classifier.num_members ({members}), or null"
        fits = first is None or 1 <= first <= members
        require(fits, "classifier.init_members", first, rule)
        if self.epochs == 0 and self.num_members > 1:  # all would be the given network
            raise ConfigError(
                f"classifier.num_members is {self.num_members}, but it must be 1 with "
                "classifier.epochs 0",
                hint="give it --set classifier.num_members=1, or epochs to train for",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig(SgdConfig):
    """The object scoring network: classifier 0 fine-tuned on crops around true boxes."""

    learning_rate: float = 0.003
    """Peak rate; lower than the classifier's, since this is fine-tuning."""
    label_smoothing: float = 0.0
    """Off: it asks for flat logits, and undoes a confident classifier in the first steps."""
    context_fraction: float = 0.1
    """Margin around an object's box, as a share of its sides."""
    jitter_fraction: float = 0.1
    """Largest random shift of each side of a box crop, as a share of its length."""
    grid_fraction: float = 0.5
    """Share of training crops that are squares of the 7x7 grid instead of box crops.

    Their target is not a class but the overlap sqrt(coverage * purity) with the object,
    by binary cross-entropy on the class's logit: the poster's fine-tuning alone never
    shows the network a crop as partial as the grid's (METHOD sections 7 and 9). 0 gives
    the poster's fine-tuning; in pyramid mode on the cells of objects, at any zoom.
    """
    overlap_width: int = 0
    """Channels of a head that predicts a square's overlap from its embedding; 0: no head.

    With a head, the overlap is the score. The network stays as the classifier is, and the head
    alone is trained, on squares of the grid (METHOD section 9).
    """
    level_shares: tuple[float, float, float] = (0.1, 0.6, 0.3)
    """Pyramid mode: shares of the steps at its three levels, which cost 1, 4 and 16 crops."""

    def __post_init__(self) -> None:
        self.check("scorer")
        check(self, "scorer", "from 0 to below 1", "label_smoothing")
        check(self, "scorer", "0 or more", "overlap_width")
        learns = self.epochs > 0 or not self.overlap_width
        require(learns, "scorer.epochs", self.epochs, "1 or more with scorer.overlap_width")
        fractions = ("context_fraction", "jitter_fraction", "grid_fraction")
        check(self, "scorer", "from 0 to 1", *fractions)
        shares, rule = self.level_shares, "three numbers from 0 that add up to 1"
        whole = min(shares) >= 0 and abs(sum(shares) - 1) < 1e-9
        require(whole, "scorer.level_shares", shares, rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizerConfig:
    """The regressor from 140 scores to a box, shared and then per class."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers, each followed by ReLU."""
    num_regressors: int = 1
    """Regressors from other first weights and orders; the box is the mean of theirs."""
    normalization: str = "zscore"
    """Of each image's 140 scores: zscore, l2 or raw."""
    loss: str = "euclidean"
    """euclidean (the poster's), l2 (its square), l1 or giou; of corners as fractions."""
    epochs: int = 60
    """Passes of the shared training; the best epoch on images held back to choose is kept."""
    batch_size: int = 128
    """Images a step."""
    learning_rate: float = 1e-3
    """Peak rate of Adam, cosine schedule."""
    weight_decay: float = 1e-3
    """Decoupled decay (AdamW)."""
    dropout: float = 0.1
    """After each hidden layer, in the shared training."""
    held_back_fraction: float = 0.15
    """Share of the localizer's images that no network learns from, classifiers included: a half
    chooses the epoch and the class-wise steps, the other only fits the confidence and judges."""
    classwise_epochs: int = 30
    """Full-batch steps of the class-wise fine-tuning; 0 leaves the shared regressor."""
    classwise_learning_rate: float = 3e-4
    """Rate of Adam in class-wise fine-tuning."""
    classwise_pull: float = 1e-2
    """Weight of the squared distance to the shared weights (L2-SP)."""
    classwise_min_images: int = 20
    """Classes with fewer training images keep the shared regressor."""

    def __post_init__(self) -> None:
        widths = bool(self.hidden) and min(self.hidden) >= 1
        require(widths, "localizer.hidden", self.hidden, "one width or more, each above 0")
        one_of(("zscore", "l2", "raw"), "localizer.normalization", self.normalization)
        one_of(("euclidean", "l2", "l1", "giou"), "localizer.loss", self.loss)
        counts = ("num_regressors", "epochs", "batch_size", "classwise_min_images")
        check(self, "localizer", "1 or more", *counts)
        check(self, "localizer", "0 or more", "weight_decay", "classwise_epochs", "classwise_pull")
        check(self, "localizer", "above 0", "learning_rate", "classwise_learning_rate")
        check(self, "localizer", "from 0 to below 1", "dropout")
        check(self, "localizer", "above 0 and below 1", "held_back_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class VoterConfig(SgdConfig):
    """The localizer of votes mode: heads on the scorer's maps, whose cells vote for boxes."""

    epochs: int = 16
    """Passes over the localizer's images."""
    batch_size: int = 32
    """Images a step, over all workers together."""
    learning_rate: float = 1e-3
    """Peak rate, after 5 % linear warm-up."""
    weight_decay: float = 0.05
    """Decoupled decay."""
    optimizer: str = "adamw"
    """adamw: with gradients cut to length 1; sgd: momentum 0.9."""
    num_heads: int = 3
    """Heads that vote together; they learn from the same maps, which cost far more."""
    width: int = 128
    """Channels of a head."""
    dropout: float = 0.3
    """Of a head's channels."""
    smallest_window: float = 0.5
    """Every second image is seen through a window whose sides are at least this share of its."""
    held_back_fraction: float = 0.1
    """Share of the localizer's images, 5,000 at most, that no network learns from.

    They fit the confidence and give the held-back error, and nothing else.
    """

    def __post_init__(self) -> None:
        self.check("voter")
        check(self, "voter", "1 or more", "num_heads", "width")
        check(self, "voter", "from 0 to below 1", "dropout")
        check(self, "voter", "above 0 and at most 1", "smallest_window")
        check(self, "voter", "above 0 and below 1", "held_back_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A whole training: what a recipe returns."""

    recipe: str
    """Name of the recipe that this config began as."""
    mode: str = "exact"
    """What the scorer and the localizer learn from.

    exact: 140 separate crops, as the poster. pyramid: the same squares as means of three
    maps of the whole image, at a sixth of the cost. votes: no scores of squares; the cells of
    two of these maps vote for boxes.
    """
    seed: int = 0
    """Of weights, crops and splits."""
    num_workers: int = 1
    """Ray Train workers."""
    min_workers: int | None = None
    """The fewest workers to go on with while nodes are missing; None: num_workers."""
    checkpoint_steps: int = 200
    """Steps from one checkpoint to the next, besides those at the ends of epochs; 0: none."""
    use_gpu: bool | None = None
    """None: a GPU a worker where the cluster has one."""
    localizer_fraction: float = 0.5
    """Share of the boxed training images that the scorer never sees; some are held back.

    The localizer trains on the scores of these: on images that the scorer has learnt,
    scores are cleaner than they will ever be again (METHOD row 15).
    """
    max_localizer_images: int | None = None
    """Cap on the localizer's images, those held back among them; None: all of them."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    localizer: LocalizerConfig = field(default_factory=LocalizerConfig)
    voter: VoterConfig = field(default_factory=VoterConfig)

    def __post_init__(self) -> None:
        one_of(MODES, "mode", self.mode)
        check(self, "", "0 or more", "seed", "checkpoint_steps")
        check(self, "", "1 or more", "num_workers")
        check(self, "", "1 or more, or null", "max_localizer_images")
        fewest, rule = self.min_workers, f"from 1 to num_workers ({self.num_workers}), or null"
        require(fewest is None or 1 <= fewest <= self.num_workers, "min_workers", fewest, rule)
        # A scorer that is taken as it is needs no images.
        share, rule = self.localizer_fraction, "above 0 and below 1, or 1 with scorer.epochs 0"
        all_of_them = share == 1 and self.scorer.epochs == 0
        require(0 < share < 1 or all_of_them, "localizer_fraction", share, rule)

        width = self.scorer.overlap_width
        require(self.mode in SCORE_MODES or not width, "scorer.overlap_width", width, "0 for votes")

    @property
    def localizer_kind(self) -> LocalizerKind:
        """What makes the boxes of this mode."""
        return LOCALIZER_KINDS[self.mode]

    @property
    def held_back_fraction(self) -> float:
        """Share of the localizer's images that is held back, in this mode."""
        settings: LocalizerConfig | VoterConfig = getattr(self, self.localizer_kind.section)
        return settings.held_back_fraction
