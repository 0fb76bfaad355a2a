"""The named profiles, and how each pair of data set and architecture is trained under them.

Every knob of scale hangs on the profile. ``CHOICE:`` the paper gives no recipe for any of its sixteen pairs. Those of
``paper`` are guesses that no GPU has tried yet; those of ``cpu`` were set by the time they take, and judged by the
accuracy of *original* models alone.

Invariant: a profile is a constant; what the command line changes is another profile.
"""

from dataclasses import dataclass, field, replace

from zspag.config import ProxyConfig, RemovalConfig, UnlearnConfig, UpdateConfig, require


@dataclass(frozen=True)
class TrainConfig:
    """Training of the original and of the retrained reference, with a one-cycle rate."""

    epochs: int  # passes over the training set
    batch_size: int  # samples per step
    lr: float  # peak learning rate
    optimizer: str = "sgd"  # "sgd" with Nesterov momentum, or "adamw", which transformers need
    momentum: float = 0.9  # Nesterov momentum, or the first beta of AdamW
    weight_decay: float = 5e-4  # decay of weights (not of norm affine parameters, biases or embeddings)
    label_smoothing: float = 0.0  # share of the target spread over all classes
    # "none", "shift" (random crop with reflect padding of pad pixels), "shift_flip", or "hint": what the images bear
    augment: str = "none"
    pad: int = 0  # padding of the random crop, in pixels
    mixup: float = 0.0  # largest share of a second image mixed into each (uniform per batch), labels likewise
    rand_augment: int = 0  # magnitude of RandAugment's two random distortions, 1 to 30; 0 is none

    def __post_init__(self) -> None:
        require(self.optimizer in ("sgd", "adamw"), f"optimizer must be 'sgd' or 'adamw', got {self.optimizer!r}")
        require(0 <= self.mixup <= 0.5, f"mixup must lie in [0, 0.5], got {self.mixup}")
        require(0 <= self.rand_augment <= 30, f"rand_augment must lie in 0..30, got {self.rand_augment}")
        require(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        require(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        require(self.lr > 0, f"lr must be positive, got {self.lr}")
        known = ("none", "shift", "shift_flip", "hint")
        require(self.augment in known, f"augment must be one of {known}, got {self.augment!r}")


@dataclass(frozen=True)
class Ladders:
    """Learning rates of a grid, the same number for every method, placed where the method's useful rates lie.

    A projected gradient has lost nearly all of its length, so its useful rates lie two decades above those of a whole
    one. One ladder for all methods would cut off some safe windows, and so decide the comparison.

    Attributes:
        low: For updates along whole gradients, smallest rate first, a factor of about 3 apart.
        middle: For updates of the last layer only, along a good part of the gradient, or of another kind.
        high: For projected updates.
    """

    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("low", "middle", "high"):
            rates = getattr(self, name)
            increasing = len(rates) > 0 and min(rates) > 0 and list(rates) == sorted(set(rates))
            require(increasing, f"{name} must hold positive rates in increasing order, got {rates}")
        counts = {len(self.low), len(self.middle), len(self.high)}
        require(len(counts) == 1, f"every ladder must have the same number of rates, got {sorted(counts)}")


# Wide enough that no safe window reached an end on digits or CIFAR-10; one that does is marked by tables.window_text.
LADDERS = Ladders(
    low=(0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03),
    middle=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    high=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
)

_CORE = (
    "zs_pag",
    "zs_pag_fixed",
    "unprojected",
    "process_labels",
    "second_best_labels",
    "random_labels",
    "gradient_ascent",
    "random_relabeling",
    "delete",
    "rehearsal",
    "head_only",
)


@dataclass(frozen=True)
class FolderConfig:
    """How an image folder of the user's is read; None leaves an option to ``zspag.lab.data``, which checks them all."""

    image_size: int | None = None
    test_share: float | None = None
    split_seed: int | None = None
    min_per_class: int | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How large the experiments are: every knob of scale hangs here."""

    name: str  # name on the command line and in every path
    dataset: str  # name known to ``zspag.lab.data``, or the path of an image folder
    arch: str  # name known to ``zspag.lab.models``, or ``file.py:factory``
    width: int  # channels of the first block
    classes: tuple[int, ...]  # forget classes, each in turn
    seeds: tuple[int, ...] = (0,)  # a seed is a new original and new retrained models
    train: TrainConfig
    unlearn: UnlearnConfig = UnlearnConfig()  # configuration of ZS-PAG
    ladders: Ladders = LADDERS  # learning rates a method is run at
    rates_of: str | None = None  # a recorded sweep, below the root: what it took per method and class is run alone
    methods: tuple[str, ...] = _CORE  # names known to ``zspag.lab.methods``
    forget_samples: int | None = None  # forget images of a class handed to a method; None: all of its training images
    retain_samples: int | None = None  # images of every retained class handed to an oracle alone; None: all
    workers: int = 2  # processes of the grid
    threads: int = 1  # threads per process; part of every key, since different counts give different bits
    demonstration: bool = False  # marked on every figure; a demonstration supports no claim of the paper's scale
    recorded_models: bool = False  # take committed checkpoints of the same recipe instead of training
    trial: bool = False  # proves that every line runs; its nets are hardly trained and its numbers mean nothing
    share: float = 1.0  # share of every class's images, in both splits
    folder: FolderConfig = field(default_factory=FolderConfig)  # how an image folder is read
    test_half: str | None = None  # models are judged on the "first" or "second" half of the test set; None: on all
    retrained: bool = True  # train retrained references; without them what compares with them stays empty

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, f"share must lie in (0, 1], got {self.share}")
        for name in ("forget_samples", "retain_samples"):
            count = getattr(self, name)
            require(count is None or count >= 1, f"{name} must be at least 1 image or None, got {count}")
        half = self.test_half
        require(half in (None, "first", "second"), f"test_half must be 'first', 'second' or None, got {half!r}")


_DIGITS_TRAINING = TrainConfig(epochs=15, batch_size=64, lr=0.3)

PAPER_DATA = ("facescrub", "svhn", "cifar10", "cifar100")
PAPER_NETS = ("alexnet", "vgg16", "resnet18", "vit")


@dataclass(frozen=True)
class Recipe:
    """How one architecture is built and trained, and what it needs to be made to forget."""

    width: int  # channels of the first block (hidden dimension of a transformer)
    train: TrainConfig
    held_out: float = 0.0  # of ``UpdateConfig``; above 0 the net is handed the whole forget set of the profile


# Large nets on a GPU: SGD with Nesterov momentum for convolutions, AdamW with mixup for the transformer.
_RESNET = TrainConfig(epochs=30, batch_size=512, lr=0.8, label_smoothing=0.1, augment="hint", pad=4)
_VGG = replace(_RESNET, epochs=40, lr=0.2)
_ALEXNET = replace(_RESNET, epochs=60, lr=0.1)
_VIT = TrainConfig(
    epochs=100,
    batch_size=512,
    lr=1e-3,
    optimizer="adamw",
    weight_decay=0.05,
    label_smoothing=0.1,
    augment="hint",
    pad=4,
    mixup=0.4,
)
# Small ones on two cores.
_SMALL = TrainConfig(epochs=6, batch_size=128, lr=0.1, augment="hint", pad=4)
_SMALL_VIT = TrainConfig(
    epochs=12, batch_size=128, lr=1e-3, optimizer="adamw", weight_decay=0.05, augment="hint", pad=4
)
_MNIST = TrainConfig(epochs=2, batch_size=128, lr=0.05, augment="hint", pad=2)
_FACES = TrainConfig(epochs=60, batch_size=32, lr=0.05, augment="hint", pad=3)  # eight photographs of each person
_MNIST_VIT = replace(_SMALL_VIT, lr=2e-3, pad=2)

# "any" stands for every data set that has no line of its own.
RECIPES: dict[str, dict[tuple[str, str], Recipe]] = {
    "cpu": {
        # This net forgets the images it is fitted to long before the rest of their class. Test images of horses gave
        # that away; held-out forget images show it without them.
        ("any", "allcnn"): Recipe(48, _SMALL, held_out=0.1),
        ("any", "vit"): Recipe(96, _SMALL_VIT),
        ("any", "resnet18"): Recipe(16, _SMALL),
        ("mnist", "alexnet"): Recipe(16, _MNIST),
        ("mnist", "vgg11"): Recipe(16, _MNIST),
        ("mnist", "resnet18"): Recipe(8, _MNIST),
        ("mnist", "vit"): Recipe(64, _MNIST_VIT),
        ("orl-faces", "conv7"): Recipe(16, _FACES),
    },
    "paper": {
        ("any", "alexnet"): Recipe(64, _ALEXNET),
        ("any", "vgg11"): Recipe(64, _VGG),
        ("any", "vgg16"): Recipe(64, _VGG),
        ("any", "resnet18"): Recipe(64, _RESNET),
        ("any", "allcnn"): Recipe(96, _VGG),
        ("any", "vit"): Recipe(192, _VIT),
    },
}

PROFILES: dict[str, Profile] = {
    "smoke": Profile(
        name="smoke",
        dataset="digits",
        arch="digits",
        width=8,
        classes=(3,),
        train=replace(_DIGITS_TRAINING, epochs=4),
        unlearn=UnlearnConfig(
            proxies=ProxyConfig(per_class=12, steps=10),
            update=UpdateConfig(epochs=3, layers="all"),  # one search of rates in place of three
            removal=RemovalConfig(steps=30, lr=3e-3, per_class=12, shares=(0.5, 1.0)),
        ),
        ladders=Ladders(low=(0.001, 0.01), middle=(0.03, 0.3), high=(0.03, 0.3)),
        workers=1,
        demonstration=True,
        trial=True,
    ),
    "digits": Profile(
        name="digits",
        dataset="digits",
        arch="digits",
        width=24,
        classes=tuple(range(10)),
        seeds=(0, 1, 2),
        train=_DIGITS_TRAINING,
        demonstration=True,
    ),
    "cpu": Profile(
        name="cpu",
        dataset="cifar10",
        arch="conv7",
        width=20,
        classes=(3, 7),
        train=TrainConfig(epochs=16, batch_size=128, lr=0.2, augment="shift_flip", pad=4),
        forget_samples=1000,
    ),
    "paper": Profile(
        name="paper",
        dataset="cifar10",
        arch="resnet18",
        width=64,
        classes=(3, 0, 7),
        train=_RESNET,
        workers=1,
        threads=4,
    ),
}


def trial(profile: Profile) -> Profile:
    """Return a profile that does the same on 1 % of the images, with small nets: every line runs without a GPU."""
    unlearn = profile.unlearn
    # A net that has seen few images is hard to fool: a wide ball, small steps, and a third of the attacks may fail.
    proxies = replace(unlearn.proxies, eps=1.0, steps=30, step_share=0.05, per_class=4, oversample=3.0)
    # The quickest way to a net that knows a little of every class. A narrow VGG, with dropout, needs more steps.
    batch_size = 16 if profile.arch.startswith("vgg") else 32
    train = TrainConfig(epochs=30, batch_size=batch_size, lr=3e-3, optimizer="adamw")
    update = replace(unlearn.update, epochs=4, min_steps=4, layers="all")  # one search of rates in place of three
    removal = replace(unlearn.removal, steps=6, per_class=4, shares=(0.5, 1.0))
    ladders = Ladders(*(rates[3:5] for rates in (profile.ladders.low, profile.ladders.middle, profile.ladders.high)))
    return replace(
        profile,
        name=f"{profile.name}-trial",
        width=max(8, profile.width // 8),
        classes=profile.classes[:1],
        seeds=profile.seeds[:1],
        train=train,
        ladders=ladders,
        unlearn=replace(unlearn, proxies=proxies, update=update, removal=removal, views=40),
        workers=1,
        threads=1,
        share=0.01,
        trial=True,
    )


PROFILES |= {made.name: made for made in map(trial, (PROFILES["cpu"], PROFILES["paper"]))}


def for_pair(profile: Profile, *, dataset: str | None = None, arch: str | None = None) -> Profile:
    """Return the profile for another data set or architecture, with the recipe that RECIPES has for the pair.

    A pair without a recipe of its own is trained as the profile's own net is. None keeps the profile's.
    """
    if (whole := profile.name.removesuffix("-trial")) != profile.name:
        return trial(for_pair(PROFILES[whole], dataset=dataset, arch=arch))
    changed = replace(profile, dataset=dataset or profile.dataset, arch=arch or profile.arch)
    if (changed.dataset, changed.arch) == (profile.dataset, profile.arch):
        return profile
    table = RECIPES.get(profile.name, {})
    found = table.get((changed.dataset, changed.arch)) or table.get(("any", changed.arch))
    train = replace(profile.train, augment="hint") if profile.train.augment != "none" else profile.train
    if found is None:
        return replace(changed, train=train)
    unlearn = replace(profile.unlearn, update=replace(profile.unlearn.update, held_out=found.held_out))
    samples = None if found.held_out else profile.forget_samples
    return replace(changed, width=found.width, train=found.train, unlearn=unlearn, forget_samples=samples)
