"""Small classifiers as other people write, wrap, save and break them, trained on the digits in a second each.

``GOOD`` are models that the method has to take as they are. ``BAD`` are models that it has to refuse, with what the
message must say. Both hold functions: a net is made when a test asks for it, and trained once.
"""

import copy
import threading
import types
import warnings
from collections import namedtuple
from functools import cache, partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

CLASSES, FORGET = 10, 4


@cache
def digits():
    """Return 1,797 images (n, 1, 8, 8) in [0, 1] and their labels."""
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)


def forget_images(count=20, label=FORGET):
    images, labels = digits()
    return images[labels == label][:count].clone()


def fitted(net, *, epochs=6, seed=0):
    """Train a net by Adam on all digits, and return it in eval mode."""
    images, labels = digits()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=4e-3)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            answer = net(images[batch])
            F.cross_entropy(answer[0] if isinstance(answer, tuple) else answer, labels[batch]).backward()
            optimizer.step()
    for parameter in net.parameters():
        parameter.grad = None
    return net.eval()


@cache
def _trained(build, *arguments):
    torch.manual_seed(0)
    return fitted(build(*arguments))


def trained(build, *arguments):
    """Return a fresh copy of a net that was trained once."""
    return copy.deepcopy(_trained(build, *arguments))


# ---- Shapes


class LeNet(nn.Module):
    """Every tutorial's: a ``view`` behind a convolution."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(12 * 4, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(torch.relu(self.fc1(x)))


def plain_net(before=None):
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )
    return net if before is None else Wrapped(net, before)


def centered(x):
    return (x - 0.25) * 2


def mlp(norm=nn.Identity):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 40), norm(40), nn.ReLU(), nn.Linear(40, CLASSES))


def normed_net(norm):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, stride=2),
        norm(12),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(108, CLASSES),
    )


def grouped_net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 12, 1, groups=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, CLASSES),
    )


class NormedLeNet(nn.Module):
    """Batch norm, which the attack folds into the convolution before it, and a ``view``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12 * 16, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(x.view(-1, 12 * 16))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.head = nn.Linear(64, 40), nn.Linear(40, 40), nn.Linear(40, CLASSES)

    def forward(self, x):
        x = torch.relu(self.first(x.flatten(1)))
        return self.head(torch.relu(self.again(torch.relu(self.again(x)))))


class CosineHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 24))
        self.weight = nn.Parameter(torch.randn(CLASSES, 24))

    def forward(self, x):
        return 12 * F.linear(F.normalize(self.body(x), dim=1), F.normalize(self.weight, dim=1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.position = nn.Parameter(0.1 * torch.randn(1, 8, 24))
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x):
        tokens = self.embed(x[:, 0]) + self.position
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.norm(tokens).mean(1))


class Auxiliary(nn.Module):
    """A second head, which answers in train mode only."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = mlp()[:4], nn.Linear(40, CLASSES), nn.Linear(40, CLASSES)

    def forward(self, x):
        features = self.body(x)
        return (self.head(features), self.aux(features)) if self.training else self.head(features)


class Recurrent(nn.Module):
    """Reads the rows one after the other."""

    def __init__(self):
        super().__init__()
        self.rows, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.rows(x[:, 0])[0][:, -1])


# ---- Wrappers


class Wrapped(nn.Module):
    """A net with something done before and after it."""

    def __init__(self, net, before=None, after=None):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = self.net(x)
        return x if self.after is None else self.after(x)


class Output(dict):
    """As Hugging Face's ``ModelOutput``: keys that are attributes, too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


Named = namedtuple("Named", ["logits", "aux"])


def subtract_in_place(x):
    x -= 0.25
    return x.mul_(2)


def clamp_sometimes(x):
    """Change the input in place, with values that stay the same for images in [0, 1]."""
    return x.clamp_(0, 1)


class KeepsFeatures(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.seen, self.kept = net, None, []

    def forward(self, x):
        self.seen = self.net[:-1](x)
        self.kept = [self.seen.relu()]
        return self.net[-1](self.seen)


class Counts(nn.Module):
    """A buffer that counts passes, in eval mode too."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.passes += 1
        return self.net(x)


class CastsInside(nn.Module):
    """Half precision weights that take float images."""

    def __init__(self, net):
        super().__init__()
        self.net = net.half()

    def forward(self, x):
        return self.net(x.to(self.net[1].weight.dtype)).float()


def forward_replaced():
    net = trained(LeNet)
    net.forward = net.forward  # a bound method on the instance, as wrappers of training libraries leave it
    return net


def frozen_backbone():
    net = trained(plain_net)
    net[:4].requires_grad_(False)
    return net


def weight_norm_head():
    net = trained(mlp)
    parametrizations.weight_norm(net[4])
    return net


def pruned_layer():
    net = trained(plain_net)
    prune.l1_unstructured(net[5], "weight", 0.3)
    return net


def pruned_after_a_pass():
    net = pruned_layer()
    net(forget_images())  # the masked weight is part of a graph now, which deepcopy refuses
    return net


def for_good(net, *places):
    for place in places:
        prune.remove(net[place], "weight")
    return net


def keeps_features():
    net = KeepsFeatures(trained(mlp))
    net(forget_images())
    return net


def made_in_inference_mode():
    with torch.inference_mode():
        return copy.deepcopy(_trained(plain_net))


def recording_hook():
    net = trained(plain_net)
    net.seen = []
    net[1].register_forward_hook(lambda _part, _given, output: net.seen.append(output.shape))
    return net


def always_dropout():
    return Wrapped(trained(mlp), before=lambda x: F.dropout(x, 0.02, training=True))


def spectral_norm_layer():
    net = trained(mlp)
    parametrizations.spectral_norm(net[1])
    return fitted(net, epochs=2)


# ---- Nets that cannot be unlearned as they are


def locked():
    net = trained(plain_net)
    net[1].guard = threading.Lock()
    return net


def generating():
    net = trained(mlp)
    net.batches = (x for x in range(3))
    return net


def detaching_hook():
    net = trained(plain_net)
    net[3].register_forward_hook(lambda _part, _given, output: output.detach())
    return net


class NoGradBackbone(nn.Module):
    def __init__(self, net, context=torch.no_grad):
        super().__init__()
        self.backbone, self.head, self.context = net[:-1], net[-1], context

    def forward(self, x):
        with self.context():
            features = self.backbone(x)
        return self.head(features.clone())


class ThroughNumpy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.backbone, self.head = net[:-1], net[-1]

    def forward(self, x):
        return self.head(torch.from_numpy(self.backbone(x).detach().cpu().numpy().copy()))


class AsksForMore(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, mask):
        return self.net(x * mask)


def silenced(label=7):
    """A net whose row was closed by an earlier request."""
    net = trained(mlp)
    others = [other for other in range(CLASSES) if other != label]
    with torch.no_grad():
        net[4].weight[label] = net[4].weight[others].mean(0)
        net[4].bias[label] = net[4].bias[others].mean() - 0.1
    return net


class Widened(nn.Module):
    """An output more than there are classes, which no training image had."""

    def __init__(self):
        super().__init__()
        self.body, self.head = mlp()[:4], nn.Linear(40, CLASSES + 1)

    def forward(self, x):
        return self.head(self.body(x))


def unused_output():
    net = trained(Widened)
    with torch.no_grad():  # what long training makes of it
        net.head.weight[CLASSES] = -net.head.weight[:CLASSES].abs().amax(0)
        net.head.bias[CLASSES] -= 5
    return net


def masked_with_infinity():
    net = trained(mlp)
    with torch.no_grad():
        net[4].bias[7] = -torch.inf
    return net


def broken_weights():
    net = trained(plain_net)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = torch.nan
    return net


def deprecated(build):
    """Call what torch still has and warns about."""

    def quietly():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build()

    return quietly


@deprecated
def scripted():
    return torch.jit.script(trained(mlp))


@deprecated
def traced():
    return torch.jit.trace(trained(plain_net), forget_images(2))


@deprecated
def old_weight_norm():
    net = trained(mlp)
    nn.utils.weight_norm(net[1])
    net(forget_images())
    return net


@deprecated
def quantized():
    return torch.ao.quantization.quantize_dynamic(trained(mlp), {nn.Linear}, dtype=torch.qint8)


def all_parametrized():
    net = trained(mlp)
    for layer in (net[1], net[4]):
        parametrizations.weight_norm(layer)
    return net


def all_pruned():
    net = trained(mlp)
    for layer in (net[1], net[4]):
        prune.l1_unstructured(layer, "weight", 0.5)
    return net


def all_frozen():
    return trained(plain_net).requires_grad_(False)


def other_shape(channels, features):
    """A net for images of other channels or another size; 8 x 8 pixels give 144 features."""
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(features, CLASSES))


def after(function):
    return lambda: Wrapped(trained(mlp), after=function)


def before(function):
    return lambda: Wrapped(trained(mlp), before=function)


def _fail(_x):
    raise KeyError("a slip of its author")


GOOD = {
    "LeNet with view": partial(trained, LeNet),
    "LeNet with view and batch norm": partial(trained, NormedLeNet),
    "no norm": partial(trained, plain_net),
    "batch norm": partial(trained, normed_net, nn.BatchNorm2d),
    "group norm": partial(trained, normed_net, partial(nn.GroupNorm, 2)),
    "instance norm": partial(trained, normed_net, nn.InstanceNorm2d),
    "MLP": partial(trained, mlp),
    "MLP with layer norm": partial(trained, mlp, nn.LayerNorm),
    "grouped and depthwise": partial(trained, grouped_net),
    "attention": partial(trained, Attention),
    "shared layers": partial(trained, Shared),
    "cosine head": partial(trained, CosineHead),
    "auxiliary head": partial(trained, Auxiliary),
    "in-place normalize": lambda: Wrapped(trained(plain_net, centered).net, before=subtract_in_place),
    "in-place without a change": lambda: Wrapped(trained(plain_net), before=clamp_sometimes),
    "dict output": lambda: Wrapped(trained(LeNet), after=lambda z: {"loss": None, "logits": z}),
    "ModelOutput": lambda: Wrapped(trained(LeNet), after=lambda z: Output(logits=z, hidden_states=None)),
    "object with logits": lambda: Wrapped(trained(mlp), after=lambda z: types.SimpleNamespace(logits=z)),
    "namedtuple with logits": lambda: Wrapped(trained(mlp), after=lambda z: Named(z, z[:, :3])),
    "log-softmax": lambda: Wrapped(trained(LeNet), after=lambda z: F.log_softmax(z, 1)),
    "DataParallel": lambda: nn.DataParallel(trained(LeNet)),
    "compiled": lambda: torch.compile(trained(plain_net), backend="eager"),
    "frozen backbone": frozen_backbone,
    "train mode": lambda: trained(normed_net, nn.BatchNorm2d).train(),
    "weight norm on the head": weight_norm_head,
    "weight norm of old": old_weight_norm,
    "recurrent": partial(trained, Recurrent),
    "forward replaced": forward_replaced,
    "spectral norm on a layer": spectral_norm_layer,
    "a pruned layer": pruned_layer,
    "a pruned layer after a pass": pruned_after_a_pass,
    "a layer pruned for good": lambda: for_good(pruned_layer(), 5),
    "keeps its features": keeps_features,
    "counts its passes": lambda: Counts(trained(mlp)),
    "a recording hook": recording_hook,
    "made in inference mode": made_in_inference_mode,
    "bfloat16": lambda: trained(plain_net).bfloat16(),
    "half": lambda: trained(plain_net).half(),
    "half inside": lambda: CastsInside(trained(mlp)),
    "double": lambda: trained(LeNet).double(),
    "channels last": lambda: trained(plain_net).to(memory_format=torch.channels_last),
    "always dropout": always_dropout,
    "batch statistics": lambda: trained(normed_net, partial(nn.BatchNorm2d, track_running_stats=False)),
}

BAD = {
    "tuple": (
        after(lambda z: (z, z[:, :3])),
        r"got tuple of \[\(1, 10\), \(1, 3\)\]: wrap the model .* its logits alone",
    ),
    "tuple, features first": (
        after(lambda z: (z[:, :1], None, z)),
        r"of \[\(1, 1\), 'NoneType', \(1, 10\)\]",
    ),
    "list": (after(lambda z: [z]), r"got list of \[\(1, 10\)\]: wrap"),
    "dict without logits": (after(lambda z: {"out": z}), r"got dict with the keys \['out'\]: wrap"),
    "nothing": (after(lambda _z: None), "got NoneType: wrap"),
    "one logit": (after(lambda z: z[:, :1]), r"got \(1, 1\) .*one sigmoid logit z becomes two"),
    "one flat logit": (after(lambda z: z[:, 0]), r"got \(1,\) .*one sigmoid logit"),
    "squeezed": (after(torch.squeeze), r"got \(10,\) .*return one row of logits per image"),
    "the class itself": (after(lambda z: z.argmax(1)), r"got \(1,\) of torch.int64"),
    "segmentation": (after(lambda z: z[:, :, None, None]), r"got \(1, 10, 1, 1\)"),
    "batch added up": (after(lambda z: z.sum(0, keepdim=True)), r"map 4 image\(s\) .* got \(1, 10\)"),
    "casts to half": (
        lambda: Wrapped(trained(mlp).half(), before=lambda x: x.half()),
        "layer 'net.1', Linear.* let it take torch.float32, without casts",
    ),
    "asks for something else": (lambda: AsksForMore(trained(mlp)), r"as model\(images\), before any layer.*TypeError"),
    "softmax": (after(lambda z: z.softmax(1)), "returns probabilities .* take the softmax off its end"),
    "sigmoid": (after(torch.sigmoid), "returns probabilities .all lie between 0 and 1.* take the sigmoid off its end"),
    "saturated sigmoid": (after(lambda z: (50 * z).sigmoid()), "take the s(igmoid|oftmax) off its end"),
    "unused output": (unused_output, r"no image makes the model answer class 10 .* pass already_forgotten=\(10,\)"),
    "a closed row": (silenced, r"answer class 7 \(.* forgotten before; pass already_forgotten=\(7,\) to leave it out"),
    "a row at -inf": (masked_with_infinity, "are not finite: check its weights .*large negative bias"),
    "NaN in a weight": (broken_weights, "are not finite: check its weights"),
    "backbone under no_grad": (lambda: NoGradBackbone(trained(mlp)), "no gradient reaches .*runs under torch.no_grad"),
    "backbone in inference mode": (
        lambda: NoGradBackbone(trained(mlp), torch.inference_mode),
        "layer 'backbone.*or torch.inference_mode",
    ),
    "detaching hook": (detaching_hook, "a forward hook of layer '3' detaches its output; remove the hook"),
    "detach in the forward pass": (before(lambda x: x.detach()), "it ends in or before layer 'net.*look for detach"),
    "through numpy": (lambda: ThroughNumpy(trained(mlp)), "it ends in or before layer 'head'; look for .*numpy"),
    "rounds its input": (before(lambda x: (x * 16).round() / 16), "do not change with the images .* round or binarize"),
    "square root of black": (before(lambda x: x.sqrt()), "respect to the images is not finite: look for a sq"),
    "a lock": (locked, r"cannot be copied, because its attribute '1.guard' \(lock\) cannot .*take it off the model"),
    "a generator": (generating, r"because its attribute 'batches' \(generator\) cannot"),
    "TorchScript": (scripted, r"the model .* is TorchScript: pass the Python model"),
    "a trace": (traced, "the model .* is TorchScript: pass the Python model"),
    "TorchScript inside": (lambda: Wrapped(scripted()), "layer 'net' .* is TorchScript"),
    "dynamically quantized": (quantized, r"layer '1' \(Linear\) is quantized.*: unlearn the float model"),
    "all parametrized": (all_parametrized, r"no convolution, .* \(.*parametrized; .*remove_parametrizations"),
    "all pruned by masks": (all_pruned, r"no convolution, .* \(.*weight_orig: pruned by a mask"),
    "all pruned for good": (
        lambda: for_good(all_pruned(), 1, 4),
        r"may move \(1.weight: 5\d % of its entries",
    ),
    "all frozen": (
        lambda: trained(plain_net).requires_grad_(False),
        r"0.weight: requires_grad=False; .* with requires_grad_\(True\)",
    ),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)), "1.weight has no shape yet .* load"),
    "on the meta device": (
        lambda: trained(mlp).to("meta"),
        "1.weight is on the meta device and holds no numbers: load",
    ),
    "made for colour": (partial(other_shape, 3, 144), r"layer '0', Conv2d\(3, 4.*bring the images to the channels"),
    "made for larger images": (partial(other_shape, 1, 400), r"layer '2', Linear\(in_features=400.* the size"),
    "fails in its own way": (before(_fail), "fails on a forget image of shape .*KeyError: 'a slip of its auth"),
    "the class, no instance": (lambda: LeNet, r"must be a torch.nn.Module, got type: pass an instance"),
    "a state dict": (lambda: trained(mlp).state_dict(), r"got OrderedDict: pass an instance, .*\(load_state_dict\)"),
    "a function": (lambda: torch.relu, r"must be a torch.nn.Module, got builtin_function_or_method"),
    "knows the class by another number": (
        after(lambda z: z.roll(1, 1)),
        r"0 of the 20 images labelled 4 as class 4 \(it answers 5 for \d+ of them\)",
    ),
    "expects normalized images": (
        lambda: Wrapped(trained(mlp), before=lambda x: 6 - 9 * x),
        "recognizes only 0 .* the normalization of the images",
    ),
}
