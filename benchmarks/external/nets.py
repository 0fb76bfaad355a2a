"""The nets of the zoo: shapes that other people deploy, each with the recipe that trains it in minutes.

All map images in [0, 1] to logits and normalize them inside. Two need a *twin*, the same weights behind a forward pass
that the package's own training and its release fa40f86 can run: a convolution followed by ``.view``, and an output with
``.logits``.

Invariant: a net and its twin have the same state dict and the same logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zspag.profiles import TrainConfig

DEVELOPMENT, CONFIRMATION = "development", "confirmation"

MNIST = ((0.1307,), (0.3081,))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
GREY = ((0.5,), (0.25,))


class Scaled(nn.Module):
    """Normalization as the first layer, so that everybody's images lie in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalize ``images`` of shape (n, C, H, W)."""
        return (images - self.mean) / self.std


class LeNet(nn.Module):
    """Two convolutions and two linear layers, as every tutorial has it: ``.view`` in between, no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled(MNIST)
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def flat(self, maps: Tensor) -> Tensor:
        """Return the maps (n, 64, 7, 7) as rows; refuses maps whose channels lie innermost in memory."""
        return maps.view(-1, 64 * 7 * 7)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        x = F.max_pool2d(F.relu(self.conv1(self.scaled(images))), 2)
        x = self.flat(F.max_pool2d(F.relu(self.conv2(x)), 2))
        return self.fc2(F.relu(self.fc1(x)))


class LeNetTwin(LeNet):
    """The same net, whatever the layout in memory."""

    def flat(self, maps: Tensor) -> Tensor:
        """Return the maps (n, 64, 7, 7) as rows."""
        return maps.flatten(1)


class AttentionBlock(nn.Module):
    """``nn.MultiheadAttention`` and an MLP, each behind layer norm and added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (n, t, width) to tokens."""
        x = self.norm1(tokens)
        tokens = tokens + self.attention(x, x, x, need_weights=False)[0]
        return tokens + self.mlp(self.norm2(tokens))


class AttentionNet(nn.Module):
    """Patches of 7 pixels, two attention blocks, the mean token."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.scaled = Scaled(MNIST)
        self.patches = nn.Conv2d(1, width, 7, stride=7)
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(AttentionBlock(width), AttentionBlock(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 1, 28, 28) to logits (n, 10)."""
        tokens = self.patches(self.scaled(images)).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class HuggingFace(nn.Module):
    """A small ``ViTForImageClassification``; answers with an object that has ``.logits``."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        sizes: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 192, "image_size": 32, "patch_size": 4}
        depths: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": 10}
        config = ViTConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes, **depths)
        self.scaled = Scaled(CIFAR10)
        self.vit = ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Any:
        """Map images (n, 3, 32, 32) to an ``ImageClassifierOutput``."""
        return self.vit(pixel_values=self.scaled(images))


class HuggingFaceTwin(HuggingFace):
    """The same net with plain logits."""

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, 32, 32) to logits (n, 10)."""
        return super().forward(images).logits


def mlp() -> nn.Module:
    """Return 784-256-128-10."""
    return nn.Sequential(
        Scaled(MNIST),
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mlp_layer_norm() -> nn.Module:
    """Return 784-256-256-10 with layer norm and GELU."""
    return nn.Sequential(
        Scaled(MNIST),
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.LayerNorm(256),
        nn.GELU(),
        nn.Linear(256, 256),
        nn.LayerNorm(256),
        nn.GELU(),
        nn.Linear(256, 10),
    )


def conv_group_norm() -> nn.Module:
    """Return three convolutions with group norm and a pooled head."""
    return nn.Sequential(
        Scaled(MNIST),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def depthwise_batch_norm() -> nn.Module:
    """Return depthwise and grouped convolutions with batch norm (MobileNet's and ResNeXt's way)."""
    return nn.Sequential(
        Scaled(MNIST),
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU6(),
        nn.Conv2d(48, 48, 3, stride=2, padding=1, groups=4, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU6(),
        nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU6(),
        nn.Conv2d(48, 64, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def vit_tiny() -> nn.Module:
    """Return timm's tiny vision transformer, cut to four blocks of width 96 for 28 pixels."""
    import timm

    body = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=28,
        patch_size=7,
        in_chans=1,
        num_classes=10,
        embed_dim=96,
        depth=4,
        num_heads=3,
    )
    return nn.Sequential(Scaled(MNIST), body)


def vgg_without_norm() -> nn.Module:
    """Return six convolutions and two linear layers without any norm, as VGG was first published."""
    layers: list[nn.Module] = [Scaled(CIFAR10)]
    channels = 3
    for width in (24, 48, 96):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU(), nn.Linear(128, 10))


def conv7() -> nn.Module:
    """Return the package's own net, whose checkpoint the repository holds."""
    from zspag.lab.models import build

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the checkpoint brings its own
    return build("conv7", num_classes=10, in_channels=3, image_size=32, width=20, mean=mean, std=std)


def from_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a builder of a timm model for ten classes of 32-pixel images."""

    def make() -> nn.Module:
        import timm

        return nn.Sequential(Scaled(CIFAR10), timm.create_model(name, num_classes=10, **options))

    return make


def upsampled_mobilenet() -> nn.Module:
    """Return timm's mobilenetv3_small_050 on images enlarged to 64 pixels: it halves its input five times."""
    import timm

    enlarge = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(Scaled(CIFAR10), enlarge, timm.create_model("mobilenetv3_small_050", num_classes=10))


def torchvision_resnet18() -> nn.Module:
    """Return torchvision's resnet18 as it is, stem of 7x7 and stride 2 included."""
    from torchvision.models import resnet18

    return nn.Sequential(Scaled(CIFAR10), resnet18(num_classes=10))


def face_net() -> nn.Module:
    """Return four strided convolutions with batch norm for 39 people, 48 grey pixels square."""
    layers: list[nn.Module] = [Scaled(GREY)]
    channels = 1
    for width in (16, 32, 64, 64):
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 9, 39))


def digits_conv() -> nn.Module:
    """Return conv-conv-fc-fc without norm for 8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def digits_mlp_layer_norm() -> nn.Module:
    """Return 64-64-64-10 with layer norm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Net:
    """One trained net of the zoo.

    Attributes:
        title: Its name in tables.
        build: Makes the untrained net.
        norm: Kind of norm, "none" where it has none.
        data: Name of the data set.
        role: "development" where somebody looked at it while the method was made, else "confirmation".
        train: Training recipe; None where the repository holds the checkpoint.
        images: Training images, evenly spaced over each class; None takes all. Forget images are among them.
        twin: Makes the same net with plain logits in any layout; None where ``build`` does.
        mended: Why there is a twin.
        counts: Sizes of the forget sets; None means all training images of the class.
        classes: Forget classes, each in turn.
        image_size: Side that an image folder is resized to, in pixels; None leaves images alone.
        seed: Seed of weights and order.
    """

    title: str
    build: Callable[[], nn.Module]
    norm: str
    data: str
    role: str
    train: TrainConfig | None
    images: int | None = None
    twin: Callable[[], nn.Module] | None = None
    mended: str = ""
    counts: tuple[int | None, ...] = (20, 200)
    classes: tuple[int, ...] = (1, 4, 8)
    image_size: int | None = None
    seed: int = 0

    @property
    def test_half(self) -> str | None:
        """Half of the test images that a net is judged on: CIFAR-10's second half is kept for confirmation."""
        if self.data != "cifar10":
            return None
        return "first" if self.role == DEVELOPMENT else "second"


_SEEN: dict[str, Any] = {"role": DEVELOPMENT, "classes": (0, 3, 7)}
_FOUR = (20, 50, 200, None)
_MNIST = TrainConfig(epochs=4, batch_size=128, lr=0.05, augment="shift", pad=2)
_MNIST_ADAM = replace(_MNIST, epochs=8, lr=2e-3, optimizer="adamw", weight_decay=0.02)
_CIFAR = TrainConfig(epochs=8, batch_size=128, lr=0.05, augment="shift_flip", pad=4)
_CIFAR_ADAM = replace(_CIFAR, epochs=12, lr=2e-3, optimizer="adamw", weight_decay=0.05)

# A minute on a GPU, a quarter of an hour and more on two cores.
_CIFAR_LONG, _CIFAR_ADAM_LONG = replace(_CIFAR, epochs=16), replace(_CIFAR_ADAM, epochs=24)

NETS: dict[str, Net] = {
    "mnist-lenet": Net(
        "LeNet with .view",
        LeNet,
        "none",
        "mnist",
        train=_MNIST,
        images=30000,
        twin=LeNetTwin,
        mended="fa40f86 cannot run .view behind a convolution: it got .flatten(1) instead",
        counts=_FOUR,
        **_SEEN,
    ),
    "cifar10-vgg": Net("VGG without norm", vgg_without_norm, "none", "cifar10", train=_CIFAR, images=20000, **_SEEN),
    "mnist-mlp": Net("MLP", mlp, "none", "mnist", train=_MNIST, images=30000, **_SEEN),
    "digits-conv": Net(
        "conv-conv-fc-fc",
        digits_conv,
        "none",
        "digits",
        counts=(20, None),
        train=TrainConfig(epochs=20, batch_size=64, lr=0.05),
        **_SEEN,
    ),
    "digits-mlp": Net(
        "MLP",
        digits_mlp_layer_norm,
        "layer",
        "digits",
        counts=(20, None),
        train=TrainConfig(epochs=30, batch_size=64, lr=0.05),
        **_SEEN,
    ),
    "cifar10-conv7": Net("the package's conv7", conv7, "batch", "cifar10", train=None, **_SEEN),
    "mnist-group": Net(
        "conv net",
        conv_group_norm,
        "group",
        "mnist",
        CONFIRMATION,
        train=replace(_MNIST, epochs=8),
        images=20000,
        counts=_FOUR,
    ),
    "mnist-mlp-layer": Net("MLP", mlp_layer_norm, "layer", "mnist", CONFIRMATION, train=_MNIST, images=30000),
    "mnist-depthwise": Net(
        "depthwise and grouped conv net",
        depthwise_batch_norm,
        "batch",
        "mnist",
        CONFIRMATION,
        train=_MNIST,
        images=30000,
        counts=_FOUR,
    ),
    "mnist-attention": Net(
        "nn.MultiheadAttention",
        AttentionNet,
        "layer",
        "mnist",
        CONFIRMATION,
        train=_MNIST_ADAM,
        images=30000,
        counts=_FOUR,
    ),
    "mnist-vit-tiny": Net(
        "timm vit_tiny (4 blocks)",
        vit_tiny,
        "layer",
        "mnist",
        CONFIRMATION,
        train=replace(_MNIST_ADAM, epochs=12),
        images=20000,
    ),
    "orl-conv": Net(
        "conv net, 39 people",
        face_net,
        "batch",
        "orl-faces",
        CONFIRMATION,
        counts=(None,),
        classes=(4, 17, 30),
        image_size=48,
        train=TrainConfig(epochs=80, batch_size=32, lr=0.05, augment="shift_flip", pad=3),
    ),
    "cifar10-resnet10t": Net(
        "timm resnet10t",
        from_timm("resnet10t"),
        "batch",
        "cifar10",
        CONFIRMATION,
        train=_CIFAR_LONG,
        images=20000,
    ),
    "cifar10-mobilenetv3": Net(
        "timm mobilenetv3_small_050",
        upsampled_mobilenet,
        "batch",
        "cifar10",
        CONFIRMATION,
        train=_CIFAR_ADAM_LONG,
        images=20000,
    ),
    "cifar10-convnext": Net(
        "timm convnext_atto",
        from_timm("convnext_atto"),
        "layer",
        "cifar10",
        CONFIRMATION,
        train=_CIFAR_ADAM_LONG,
        images=20000,
    ),
    "cifar10-resnet18": Net(
        "torchvision resnet18",
        torchvision_resnet18,
        "batch",
        "cifar10",
        CONFIRMATION,
        train=_CIFAR_LONG,
        images=20000,
    ),
    "cifar10-hf-vit": Net(
        "Hugging Face ViT",
        HuggingFace,
        "layer",
        "cifar10",
        CONFIRMATION,
        train=_CIFAR_ADAM_LONG,
        images=20000,
        twin=HuggingFaceTwin,
        mended="fa40f86 takes plain tensors only: it got .logits",
    ),
}
