"""What the benchmarks stand on: the rival computes the same as BSQ, waits are seen, records tell what was reached."""

from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.harness import Report, Spread, alternate, ratio
from benchmarks.host_syncs import Counts
from benchmarks.naive import NaiveBSQ
from benchmarks.records import table, write_record
from benchmarks.sides import ALPHA, SGD, bsq, layer_sizes, mean_bits, mixed_precisions, quantized, resnet, trained_step


def test_naive_bsq_trains_as_bsq_does() -> None:
    net = resnet(8).double()
    precisions = mixed_precisions(net) | {"conv1": 8}
    batch = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(0, 10, (8,))
    network = quantized(net, precisions=precisions)
    ours = bsq(network)
    naive = NaiveBSQ(quantized(net, precisions=precisions), ALPHA)
    optimizer = SGD([p for p in naive.parameters() if p.requires_grad])
    for _ in range(3):
        trained_step(network, ours, batch)()
        optimizer.zero_grad()
        (F.cross_entropy(naive(batch[0]).float(), batch[1]) + naive.penalty()).backward()
        optimizer.step()
        naive.clamp_()
    weights = naive.weights()
    for name, parameter, _ in network.quantizers():
        assert torch.allclose(parameter, weights[f"{name}.weight"], rtol=1e-5, atol=1e-7), name


def test_mixed_precisions_have_their_mean() -> None:
    net = resnet(20)
    precisions = mixed_precisions(net)
    assert abs(mean_bits(precisions, layer_sizes(net)) - 3) < 0.1
    assert min(precisions.values()) < 3 < max(precisions.values())


def test_waits_are_seen_and_arithmetic_is_none() -> None:
    x = torch.arange(4.0)
    with Counts() as counts:
        x.mul_(2).sum()
        x[torch.tensor([1, 2])]
    assert not counts.waiting
    for wait in (lambda: x[0].item(), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.tolist(), lambda: x.nonzero()):
        with Counts() as counts:
            wait()
        assert counts.waiting


def test_sides_alternate_and_ratios_are_of_rounds() -> None:
    calls: list[str] = []
    seconds = alternate({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warmup=1)
    assert "".join(calls) == "ab" * 4
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Spread(2.0, 1.5, 2.5, 3)


def test_table_says_what_was_reached(tmp_path: Path) -> None:
    report = Report()
    report.add("state", 128.0006, "B", at_most=128.0)
    report.add("step", Spread(1.05, 1.04, 1.06, 5), at_most=1.04)
    settings = {"quick": False, "threads": 2, "device": "cpu"}
    write_record(tmp_path, "one", {"settings": settings, "status": "done", "lines": report.lines, "warning": "busy"})
    write_record(tmp_path, "two", {"settings": settings, "status": "skipped", "reason": "no GPU"})
    text = table(tmp_path, ["one", "two", "three"])
    assert "| state | 128 B | <= 128 B | one, cpu, 2 threads |" in text
    assert "| step | 1.05 [1.04, 1.06] (missed) | <= 1.04 |" in text
    assert "| two | skipped: no GPU |" in text
    assert "- one: busy" in text
