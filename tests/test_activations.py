"""``as_blocks(W) @ rows^T`` is the layer's output, for every layer; what cannot be written so is named."""

import pytest
import reference
import torch
from torch import nn
from torch.nn import functional as F

from zspag.activations import Outputs, as_blocks, convolution_rows, watching

pytestmark = pytest.mark.usefixtures("_seeded")


@pytest.fixture
def _seeded():
    torch.manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def watched(model, *inputs):
    """Return rows and raw outputs per weight, a list over its uses, the reasons, and what the model returned."""
    seen, raw = {}, {}

    def visit(name, rows, outputs):
        seen.setdefault(name, []).append(rows)
        raw.setdefault(name, []).append(outputs)

    with watching(model, visit) as unprojectable, torch.no_grad():
        result = model(*inputs)
    return seen, raw, unprojectable, result


def assert_rows_explain(weight, rows, outputs, bias):
    blocks = as_blocks(weight, len(rows))
    expected = outputs.rows(outputs.raw)
    if bias is not None:
        expected = expected - bias.view(len(rows), 1, -1)
    torch.testing.assert_close(rows @ blocks.transpose(1, 2), expected)


LAYERS = {
    "linear": (nn.Linear(5, 3), (7, 5)),
    "linear, one sample": (nn.Linear(5, 3), (5,)),
    "linear, leading dimensions": (nn.Linear(5, 3, bias=False), (2, 4, 7, 5)),
    "conv": (nn.Conv2d(2, 3, 3), (4, 2, 6, 7)),
    "conv, kernel of one": (nn.Conv2d(4, 3, 1), (2, 4, 3, 5)),
    "conv, unbatched": (nn.Conv2d(2, 3, (2, 3)), (2, 6, 7)),
    "conv, stride": (nn.Conv2d(2, 3, (3, 2), stride=(2, 3), bias=False), (4, 2, 8, 7)),
    "conv, padding": (nn.Conv2d(2, 3, 3, padding=(2, 1)), (4, 2, 5, 4)),
    "conv, dilation": (nn.Conv2d(2, 3, (3, 2), dilation=(2, 3), padding=2), (4, 2, 7, 6)),
    "conv, groups": (nn.Conv2d(6, 9, 3, groups=3), (4, 6, 5, 4)),
    "conv, depthwise": (nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1), (3, 4, 5, 6)),
    "conv, everything": (nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), 2), (3, 4, 7, 6)),
    "conv, same": (nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(3, 1)), (4, 2, 6, 7)),
    "conv, valid": (nn.Conv2d(2, 3, 3, padding="valid"), (4, 2, 6, 7)),
    "conv, reflect": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (4, 2, 6, 7)),
    "conv, replicate": (nn.Conv2d(2, 3, 3, padding=2, padding_mode="replicate", stride=2), (4, 2, 6, 7)),
    "conv, circular": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2), (3, 4, 6, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 8)),
    "conv3d": (nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 0)), (2, 2, 3, 5, 4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's remark on its own speed
@pytest.mark.parametrize("case", LAYERS)
def test_weight_times_rows_is_what_the_layer_returns(case):
    layer, shape = LAYERS[case]
    model = nn.Sequential(layer).double()
    seen, raw, unprojectable, _ = watched(model, randn(*shape))
    assert unprojectable == {}
    (rows,), (outputs,) = seen["0.weight"], raw["0.weight"]
    assert rows.shape[0] == getattr(layer, "groups", 1)
    assert_rows_explain(layer.weight, rows, outputs, layer.bias)


def test_rows_of_a_layer_with_other_stride_do_not_explain_it():
    layer = nn.Conv2d(2, 3, 3, stride=2, bias=False).double()
    seen, raw, _, _ = watched(nn.Sequential(layer), randn(4, 2, 7, 7))
    wrong = seen["0.weight"][0].flip(1)
    with pytest.raises(AssertionError, match="not close"):
        assert_rows_explain(layer.weight, wrong, raw["0.weight"][0], None)


@pytest.mark.parametrize("groups", [1, 2])
def test_patches_are_those_cut_out_by_hand(groups):
    x = randn(3, 4, 7, 6)
    options = {"stride": (2, 1), "dilation": (1, 2), "groups": groups}
    rows = convolution_rows(x, (3, 2), padding=(1, 2), **options)
    torch.testing.assert_close(rows, reference.convolution_rows(x, (3, 2), padding=[(1, 1), (2, 2)], **options))


def test_outputs_belong_to_the_graph_so_that_gradients_can_be_taken():
    model, x = nn.Sequential(nn.Linear(5, 3).double(), nn.ReLU(inplace=True)), randn(4, 5).requires_grad_()
    kept = []
    with watching(model, lambda _name, _rows, outputs: kept.append((outputs, outputs.raw.grad_fn))):
        model(x)
    assert isinstance(kept[0][0], Outputs)
    assert "Addmm" in kept[0][1].name()


ATTENTION = {
    "packed": {},
    "packed, batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "kdim and vdim": {"kdim": 3, "vdim": 5},
    "kdim and vdim, batch first": {"kdim": 3, "vdim": 5, "batch_first": True},
}


def attention_inputs(options, *, cross):
    """Return (query, key, value), batch 2; lengths 3 and 7 in cross-attention, 3 in self-attention."""
    sizes = (3, 7, 7) if cross else (3, 3, 3)
    widths = (4, options.get("kdim", 4), options.get("vdim", 4))
    parts = [randn(2, size, width) for size, width in zip(sizes, widths, strict=True)]
    if not cross and "kdim" not in options:
        parts = [parts[0]] * 3
    return parts if options.get("batch_first") else [part.transpose(0, 1) for part in parts]


class Holder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.part = nn.MultiheadAttention(4, 2, dropout=0.5, **options)

    def forward(self, query, key, value):
        return self.part(query, key, value)[0]


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("case", ATTENTION)
def test_attention_shows_the_rows_of_all_its_projections(case, cross):
    options = ATTENTION[case]
    model = Holder(**options).double()
    inputs = attention_inputs(options, cross=cross)
    seen, _, unprojectable, result = watched(model, *inputs)
    assert unprojectable == {}
    batched = inputs if options.get("batch_first") else [part.transpose(0, 1) for part in inputs]
    answers = [reference.attention(model.part, *sample) for sample in zip(*batched, strict=True)]
    result = result if options.get("batch_first") else result.transpose(0, 1)
    torch.testing.assert_close(result, torch.stack([output for _, output in answers]))

    names = ["part.q_proj_weight", "part.k_proj_weight", "part.v_proj_weight"]
    blocks = [seen[name][0][0] for name in names] if "kdim" in options else list(seen["part.in_proj_weight"][0])
    entering = [*blocks, seen["part.out_proj.weight"][0][0]]
    expected = [*(part.flatten(0, 1) for part in batched), torch.cat([rows for rows, _ in answers])]
    for rows, dense in zip(entering, expected, strict=True):
        torch.testing.assert_close(rows.T @ rows / len(rows), reference.second_moment(dense))


def test_attention_without_a_batch_is_seen_too():
    model, x = Holder().double(), randn(3, 4)
    seen, _, _, _ = watched(model, x, x, x)
    torch.testing.assert_close(seen["part.in_proj_weight"][0], x.expand(3, 3, 4))


def test_a_token_that_attention_appends_is_named():
    model, x = Holder(add_bias_kv=True).double(), randn(3, 2, 4)
    _, _, unprojectable, _ = watched(model, x, x, x)
    assert set(unprojectable) == {"part.bias_k", "part.bias_v"}
    assert "a token that attention appends" in unprojectable["part.bias_k"]


def test_a_transformer_layer_hides_nothing_behind_its_fused_path():
    model = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, batch_first=True).double().eval()
    seen, _, unprojectable, _ = watched(model, randn(2, 3, 4))
    assert unprojectable == {}
    assert set(seen) == {name for name, parameter in model.named_parameters() if parameter.dim() > 1}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_a_tied_weight_takes_the_rows_of_all_its_uses():
    model, x = Tied().double(), randn(7, 5)
    seen, _, _, _ = watched(model, x)
    assert list(seen) == ["first.weight"]
    inner = torch.relu(model.first(x)).detach()
    torch.testing.assert_close(torch.cat(seen["first.weight"], 1)[0], torch.cat([x, inner]))


class Other(nn.Module):
    """Uses one weight in a way that is no layer's, beside a linear layer that can be projected."""

    def __init__(self, use, weight):
        super().__init__()
        self.use, self.odd, self.plain = use, nn.Parameter(weight), nn.Linear(5, 3)

    def forward(self, x):
        return self.plain(self.use(x, self.odd))


OTHER_USES = {
    "matmul": (lambda x, w: x @ w, randn(5, 5)),
    "transposed": (lambda x, w: F.linear(x, w.T), randn(5, 5)),
    "slice": (lambda x, w: F.linear(x, w[:5]), randn(6, 5)),
    "masked": (lambda x, w: F.linear(x, w * (w > 0)), randn(5, 5)),
    "einsum": (lambda x, w: torch.einsum("ni,ij->nj", x, w), randn(5, 5)),
    "added": (lambda x, w: x + w, randn(1, 5)),
    "a layer and something else": (lambda x, w: F.linear(x, w) + w.sum(), randn(5, 5)),
    "something else and a layer": (lambda x, w: F.linear(x + w.sum(), w), randn(5, 5)),
    "stacked": (lambda x, w: F.linear(x, torch.cat([w, w[:2]])), randn(3, 5)),
}


@pytest.mark.parametrize("case", OTHER_USES)
def test_a_weight_used_in_another_way_is_named_with_the_reason(case):
    use, weight = OTHER_USES[case]
    model = Other(use, weight).double()
    _, _, unprojectable, _ = watched(model, randn(7, 5))
    assert list(unprojectable) == ["odd"]
    assert "which is no conv or linear layer" in unprojectable["odd"]


FOREIGN_LAYERS = {
    "conv transpose": (nn.Sequential(nn.ConvTranspose2d(2, 3, 3)), randn(4, 2, 5, 5), {"0.weight"}),
    "embedding": (nn.Sequential(nn.Embedding(6, 3)), torch.arange(5), {"0.weight"}),
    "bilinear": (nn.Bilinear(3, 3, 2), randn(4, 3), {"weight"}),
    "recurrent": (nn.LSTM(3, 4), randn(5, 2, 3), {"weight_ih_l0", "weight_hh_l0"}),
    "two-dimensional norm": (nn.Sequential(nn.LayerNorm((4, 5))), randn(3, 4, 5), {"0.weight", "0.bias"}),
    "weight norm": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))),
        randn(4, 5),
        {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    ),
}


@pytest.mark.parametrize("case", FOREIGN_LAYERS)
def test_a_layer_that_cannot_be_projected_is_named(case):
    model, x, names = FOREIGN_LAYERS[case]
    inputs = (x, x) if isinstance(model, nn.Bilinear) else (x,)
    seen, _, unprojectable, _ = watched(model.double(), *inputs)
    assert set(unprojectable) == names
    assert seen == {}
    assert all("which is no conv or linear layer" in reason for reason in unprojectable.values())


def test_a_weight_that_no_forward_pass_uses_is_named():
    model = nn.Sequential(nn.Linear(5, 3)).double()
    model.unused = nn.Parameter(randn(3, 3))
    _, _, unprojectable, _ = watched(model, randn(4, 5))
    assert unprojectable == {"unused": "no forward pass used it"}


def test_a_weight_whose_uses_group_the_inputs_differently_is_named():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(randn(4, 2, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight, groups=2), F.conv2d(x[:, :2], self.weight)

    _, _, unprojectable, _ = watched(Both(), randn(3, 4, 5, 5))
    assert unprojectable == {"weight": "its uses group the inputs differently"}


def test_watching_leaves_the_model_as_it_was_even_after_an_error():
    model = reference.Attending().double().train()
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    model.embed.weight.grad = torch.ones_like(model.embed.weight)
    before, fused = reference.state_of(model), torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="inside"), watching(model, lambda *_: None):
        model(randn(2, 3, 4, 4))
        assert not model.training
        raise RuntimeError("inside")
    reference.assert_same_state(before, reference.state_of(model))
    assert torch.backends.mha.get_fastpath_enabled() == fused
