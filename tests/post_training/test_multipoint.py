"""The checks of multipoint quantization, with the values that were found when the method was first tried."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bsq_lightning.ops.step_search import exact_step
from bsq_lightning.post_training import Multipoint, Round, layer_inputs, output_errors, quantize_
from bsq_lightning.post_training.multipoint import factors, points_of
from bsq_lightning.quantized_tensor import Points, QuantizedTensor

# Relative residual at 1..6 points of w ~ N(0, I_d), mean of 5 draws, and the slope of its logarithm.
DECAY = {
    (2, 9): ([0.368, 0.133, 0.046, 0.017, 0.0059, 0.0020], -1.04),
    (2, 64): ([0.423, 0.188, 0.109, 0.060, 0.024, 0.011], -0.73),
    (2, 576): ([0.428, 0.196, 0.124, 0.076, 0.039, 0.026], -0.60),
    (3, 64): ([0.192, 0.041, 0.012, 0.0033, 0.0012, 0.0004], -1.29),
    (4, 9): ([0.058, 0.0040, 0.0002, 1e-5], -2.80),
    (4, 576): ([0.109, 0.025, 0.012, 0.0063, 0.0028, 0.0011], -1.04),
}  # fmt: skip


def residuals(rows: Tensor, precision: int, number: int, **kwargs) -> Tensor:
    """``||w - w_hat|| / ||w||`` at 1..number points, mean over rows, from the dequantized tensors."""
    found = []
    for n in range(1, number + 1):
        tensor = Multipoint(precision, select="all", max_points=n, **kwargs)(rows)
        found.append(((tensor.dequantize() - rows).norm(dim=1) / rows.norm(dim=1)).mean())
    return torch.stack(found)


@pytest.mark.parametrize(("precision", "depth"), DECAY.keys())
def test_error_falls_exponentially(precision: int, depth: int) -> None:
    reference, slope = DECAY[precision, depth]
    found = residuals(torch.randn(40, depth, dtype=torch.float64), precision, len(reference))
    assert bool((found.diff() < 0).all())
    logs = found.log().numpy()
    places = np.arange(len(logs))
    fit = np.polyfit(places, logs, 1)
    assert np.corrcoef(places, logs)[0, 1] ** 2 > 0.9
    assert fit[0] < -0.5
    # The reference is a mean of 5 draws, ours of 40: the first points of long rows spread by a few percent, the last
    # ones of short rows by half.
    assert abs(fit[0] / slope - 1) < 0.2
    assert torch.allclose(found[:2], torch.tensor(reference[:2], dtype=torch.float64), rtol=0.25)


def test_slope_is_steeper_for_more_bits_and_shorter_rows() -> None:
    def last(precision: int, depth: int) -> float:
        return float(residuals(torch.randn(20, depth, dtype=torch.float64), precision, 4)[-1])

    assert last(4, 9) < last(2, 9) < last(2, 64) < last(2, 576)
    assert last(3, 64) < last(2, 64)


@pytest.mark.parametrize(("precision", "ratio"), [(2, 0.0584 / 0.0615), (3, 0.0025 / 0.0034)])
def test_refit_helps(precision: int, ratio: float) -> None:
    """The ratio, because residuals at 4 points spread by two thirds of their mean and the reference has 5 draws."""
    rows = torch.randn(200, 64, dtype=torch.float64)
    plain, joint = (float(residuals(rows, precision, 4, refit=refit)[-1]) for refit in (False, True))
    assert joint < plain and joint / plain == pytest.approx(ratio, rel=0.2)


def test_one_point_is_rounding_with_the_same_search() -> None:
    weight = torch.randn(8, 6, 3, 3)
    for per_channel in (True, False):
        one = Multipoint(4, max_points=1, per_channel=per_channel)(weight)
        assert torch.equal(one.dequantize(), Round(3, step="exact", per_channel=per_channel)(weight).dequantize())
        assert one.extra is None and one.storage_bits() == 4 * weight.numel()


def test_points_of_falling_steps_are_a_uniform_quantizer() -> None:
    """a_i = a_1 / (2m+1)^(i-1) are balanced digits of base 2m+1: n points have (2m+1)^n even levels among others."""
    m, n = 1, 3
    step = torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64)
    codes = torch.cartesian_prod(*[torch.arange(-m, m + 1)] * n).T.to(torch.int32)  # [n, 27]
    points = Points(codes[1:].reshape(n - 1, 1, -1), step[1:].view(n - 1, 1, 1))
    tensor = QuantizedTensor(codes[:1], step[:1].view(1, 1), 2, "inside", points)
    assert tensor.dequantize().sort().values.tolist() == [list(range(-13, 14))]


def test_greedy_may_lose_to_the_uniform_quantizer_of_as_many_levels() -> None:
    """The identity is no promise for a greedy choice; on flat weights uniform levels are hard to beat."""
    rows = torch.rand(40, 64, dtype=torch.float64) * 2 - 1
    m = 13  # three points of 2 bits have 27 levels
    step, codes = exact_step(rows, m)
    uniform = (rows - step.unsqueeze(1) * codes).norm(dim=1)
    greedy = (Multipoint(2, select="all", max_points=3)(rows).dequantize() - rows).norm(dim=1)
    assert bool((greedy > uniform).any())
    ternary = Multipoint(2, select="all", max_points=6)(rows).dequantize() - rows
    assert bool((ternary.norm(dim=1) < uniform).any())


def test_threshold_is_kept_or_points_are_at_their_cap() -> None:
    weight, inputs = torch.randn(30, 40), torch.randn(200, 40) * torch.linspace(0.1, 3, 40)
    tensor = Multipoint(2, threshold=0.05, max_points=3)(weight, inputs=inputs)
    energy = output_errors(weight, inputs).mean()
    error = output_errors(tensor.dequantize() - weight, inputs) / energy
    points = points_of(tensor)
    assert bool(((error <= 0.05 * (1 + 1e-4)) | (points == 3)).all())
    assert int(points.min()) < int(points.max())


def test_cap_of_cost_takes_the_channels_of_largest_error() -> None:
    weight = torch.randn(20, 40) * torch.logspace(-1, 0, 20).unsqueeze(1)
    tensor = Multipoint(2, select="all", max_points=4, max_size=1.5)(weight)
    points = points_of(tensor)
    assert int(points.sum()) == 30
    assert points[:8].tolist() == [1] * 8 and bool((points[8:] > 1).any())
    size, ops = factors(tensor)
    assert tensor.storage_bits() == 30 * 40 * 2
    assert size == (30 * 40 * 2 + 32 * 30) / (20 * 40 * 2 + 32 * 20) and ops == pytest.approx((30 * 41 - 20) / 800)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A small network on real digits (8 x 8 pixels), training images, test images and labels."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images))
    images, labels = images[order], labels[order]
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[:1200]), labels[:1200]).backward()
        optimizer.step()
    return net.eval(), images[:1200], images[1200:], labels[1200:]


@torch.no_grad()
def output_error(net: nn.Sequential, weights: dict[str, Tensor], images: Tensor) -> float:
    """Squared error of the logits with other weights, relative to their energy."""
    before = net(images)
    after = torch.func.functional_call(net, {f"{name}.weight": weight for name, weight in weights.items()}, images)
    return float((after - before).square().sum() / before.square().sum())


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_channels_of_large_output_error_matter(trained, fraction: float) -> None:
    """A second point on the channels of largest error helps more than on those of least."""
    net, images, test_images, _ = trained
    inputs = layer_inputs(net, ["0", "2", "4"], [images])
    changed: dict[str, dict[str, Tensor]] = {"top": {}, "bottom": {}}
    for name in ("0", "2", "4"):
        weight = net.get_parameter(f"{name}.weight").detach()
        one, two = (Multipoint(2, select="all", max_points=n)(weight).dequantize() for n in (1, 2))
        order = output_errors(one - weight, inputs[name]).argsort(descending=True)
        some = max(1, int(fraction * len(order)))
        for kind, chosen in (("top", order[:some]), ("bottom", order[-some:])):
            changed[kind][name] = one.clone()
            changed[kind][name][chosen] = two[chosen]
    assert output_error(net, changed["top"], test_images) < output_error(net, changed["bottom"], test_images)


def test_as_many_points_on_other_channels_err_more(trained) -> None:
    net, images, test_images, _ = trained
    inputs = layer_inputs(net, ["0", "2", "4"], [images])
    errors, points = [], []
    for select in ("output_error", "random"):
        other = copy.deepcopy(net)
        tensors = quantize_(other, {name: Multipoint(2, 0.1, select=select) for name in inputs}, inputs)
        errors.append(output_error(net, {name: tensor.dequantize() for name, tensor in tensors.items()}, test_images))
        points.append([sorted(points_of(tensor).tolist()) for tensor in tensors.values()])
    assert points[0] == points[1] and max(points[0][0]) > 1 and errors[0] < errors[1]


def test_threshold_is_a_dial(trained) -> None:
    net, images, test_images, labels = trained
    names = ["0", "2", "4"]
    inputs = layer_inputs(net, names, [images])
    points, accuracy = [], []
    for threshold in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        other = copy.deepcopy(net)
        tensors = quantize_(other, {name: Multipoint(2, threshold) for name in names}, inputs)
        points.append(float(torch.cat([points_of(tensor) for tensor in tensors.values()]).double().mean()))
        accuracy.append(float((other(test_images).argmax(1) == labels).double().mean()))
    assert points == sorted(points) and points[0] < 1.1 and points[-1] > 2
    full = float((net(test_images).argmax(1) == labels).double().mean())
    assert full > 0.93 and accuracy[-1] > full - 0.01
