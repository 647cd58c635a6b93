import pytest
import torch

from bsq_lightning.hardware import Array, Energy, baselines, compare, layer_cycles, network_cost, shifts_of
from bsq_lightning.post_training import SWIS, Multipoint, Round, Truncate
from bsq_lightning.post_training.multipoint import points_of
from bsq_lightning.quantized_tensor import Filters, Grid, Planes, QuantizedState, QuantizedTensor

WEIGHT = (16, 8, 3, 3)


def state(method, positions: int = 64) -> QuantizedState:
    torch.manual_seed(0)
    tensor = method(torch.randn(WEIGHT))
    return QuantizedState({"conv": tensor}, macs={"conv": tensor.codes.numel() * positions})


def test_cycles_by_hand() -> None:
    # 2 tiles of 8 filters; 64 positions on 8 rows; 72 weights in 18 groups; fill 14 a tile
    assert layer_cycles([8] * 16, 72, 64, Array()) == 8 * 18 * (8 + 8) + 2 * 14
    assert layer_cycles([8] * 16, 72, 64, Array(shifts_per_cycle=2)) == 8 * 18 * (4 + 4) + 2 * 14
    assert layer_cycles([3] * 16, 72, 64, Array(shifts_per_cycle=2)) == 8 * 18 * (2 + 2) + 2 * 14
    assert layer_cycles([1, 4] * 8, 72, 65, Array()) == 9 * 18 * (4 + 1) + 2 * 14  # sorted into tiles
    assert layer_cycles([1] * 9 + [4], 72, 64, Array()) == 8 * 18 * (4 + 1) + 2 * 14
    assert layer_cycles([0] * 16, 72, 64, Array()) == 0


def test_shifts_of_every_kind_of_tensor() -> None:
    weight = torch.randn(WEIGHT)
    assert shifts_of(Round(5)(weight)) == [5] * 16
    assert shifts_of(Truncate(3)(weight)) == [3] * 16
    assert shifts_of(SWIS(2)(weight)) == [2] * 16
    points = Multipoint(4, select="all", max_points=2)(weight)
    assert shifts_of(points) == [3] * int(points_of(points).sum())
    codes = torch.zeros(4, 2, dtype=torch.int32)
    assert shifts_of(QuantizedTensor(codes, torch.tensor(1.0), 8, extra=Planes((0, 3, 7)))) == [3] * 4
    filters = Filters(torch.tensor([0, 3, 1, 2], dtype=torch.int32))
    assert shifts_of(QuantizedTensor(codes, torch.ones(4, 1), 1.5, extra=filters)) == [0, 3, 1, 2]
    with pytest.raises(ValueError, match="codebook"):
        shifts_of(QuantizedTensor(codes, torch.tensor(1.0), 2, "inside", Grid(torch.tensor([0.0, 1.0]))))


def test_speedup_is_bits_over_shifts_where_the_array_is_full() -> None:
    many = Array(rows=1, columns=1, group=4)  # nothing to fill: R + A - 2 = 0
    for number in (1, 2, 4):
        assert compare(state(SWIS(number)), many)["bit_serial"]["cycles_ratio"] == 8 / number
        assert compare(state(SWIS(number)), many)["truncation"]["cycles_ratio"] == 1
    double = Array(1, 1, 4, shifts_per_cycle=2)
    one, two = (network_cost(state(SWIS(4)), a)["conv"].cycles for a in (many, double))
    assert one == 2 * two


def test_traffic_is_what_is_stored() -> None:
    swis = state(SWIS(2))
    tensor = swis.tensors["conv"]
    cost = network_cost(swis)["conv"]
    assert cost.dram_bits == tensor.storage_bits() + tensor.side_bits()
    # Two tiles pass over 18 groups of 4 activations of 8 bits at each of 64 positions.
    assert cost.sram_bits == 2 * 18 * 64 * 4 * 8
    others = baselines(swis)
    assert others["bit_serial"].dram_bits == 16 * 72 * 9 and others["truncation"].dram_bits == 16 * 72 * 3


def test_stripes_takes_the_bits_of_the_layer() -> None:
    few = state(Round(8))
    codes = few.tensors["conv"].codes.clamp(-7, 7)
    few = QuantizedState({"conv": QuantizedTensor(codes, torch.tensor(1.0), 8)}, macs=few.macs)
    one = Array(1, 1)
    assert baselines(few, one)["stripes"].cycles * 8 == baselines(few, one)["bit_serial"].cycles * 3


def test_every_constant_counts() -> None:
    swis = state(SWIS(2))
    zero = Energy(0.0, 0.0, 0.0, 0.0)
    assert network_cost(swis, energy=zero)["conv"].picojoules == 0
    cost = network_cost(swis)["conv"]
    assert network_cost(swis, energy=Energy(1.0, 0.0, 0.0, 0.0))["conv"].picojoules == cost.dram_bits
    assert network_cost(swis, energy=Energy(0.0, 1.0, 0.0, 0.0))["conv"].picojoules == cost.sram_bits
    assert network_cost(swis, energy=Energy(0.0, 0.0, 1.0, 0.0))["conv"].picojoules == cost.cycles * 64
    assert network_cost(swis, energy=Energy(0.0, 0.0, 0.0, 1.0))["conv"].picojoules == 18 * 64 * 16 * 2


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="groups of 4"):
        network_cost(state(SWIS(2)), Array(group=8))
    with pytest.raises(ValueError, match="no MACs"):
        network_cost(QuantizedState({"conv": Round(2)(torch.randn(WEIGHT))}))
    with pytest.raises(ValueError, match="at least one"):
        Array(rows=0)


def test_empty_layers_cost_nothing_but_their_step() -> None:
    cost = network_cost(state(Round(0)))["conv"]
    assert cost.cycles == 0 and cost.sram_bits == 0 and cost.dram_bits == 32
