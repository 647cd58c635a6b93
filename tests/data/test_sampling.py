"""The laws of sampling: order from (seed, epoch) only, shared among ranks, continued at any batch."""

import pytest
import torch

from bsq_lightning.data import EpochLoader, EpochSampler, TensorImages, keyed_generator


def epoch_of(sampler: EpochSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert all(given == epoch for given, _ in batches)
    return [indices.tolist() for _, indices in batches]


def numbered(count: int) -> TensorImages:
    """Images whose label is their index."""
    images = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return TensorImages(images, torch.arange(count), [0.5] * 3, [0.5] * 3, augment=True, padding=1, seed=3)


def test_keyed_generator_depends_on_the_key_only() -> None:
    def draw(*key: int | str) -> int:
        return int(torch.randint(2**40, (), generator=keyed_generator(*key)))

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, 2), draw(2, 1), draw(12), draw(1, 2, 0), draw(-1, 2), draw("1", 2), draw(0)}) == 7


def test_same_seed_and_epoch_give_the_same_order() -> None:
    sampler = EpochSampler(103, 10, seed=1, shuffle=True)
    first = epoch_of(sampler, 4)
    torch.manual_seed(99)
    assert epoch_of(EpochSampler(103, 10, seed=1, shuffle=True), 4) == first == epoch_of(sampler, 4)
    assert epoch_of(sampler, 5) != first
    assert epoch_of(EpochSampler(103, 10, seed=2, shuffle=True), 4) != first
    assert sorted(sum(first, [])) == list(range(103))
    assert len(sampler) == len(first) == 11


def test_subset_keeps_its_indices() -> None:
    sampler = EpochSampler(torch.tensor([7, 3, 9]), 2, seed=1, shuffle=False)
    assert epoch_of(sampler, 0) == epoch_of(sampler, 1) == [[7, 3], [9]]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("samples", [120, 103])
def test_ranks_together_see_what_one_process_sees(world_size: int, samples: int) -> None:
    whole = epoch_of(EpochSampler(samples, 4 * world_size, seed=1, shuffle=True), 2)
    ranks = [
        epoch_of(EpochSampler(samples, 4, seed=1, shuffle=True, rank=rank, world_size=world_size), 2)
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        shares = [batches[number] for batches in ranks if number < len(batches)]
        assert sorted(sum(shares, [])) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_length_of_a_rank_counts_its_own_batches() -> None:
    samplers = [EpochSampler(9, 2, seed=1, shuffle=True, rank=rank, world_size=4) for rank in range(4)]
    assert [len(sampler) for sampler in samplers] == [2, 1, 1, 1] == [len(list(sampler)) for sampler in samplers]
    assert len(EpochSampler(9, 2, seed=1, shuffle=True, drop_last=True, world_size=4)) == 1


@pytest.mark.parametrize("first", [0, 1, 7, 10, 11])
def test_first_batch_starts_there_once(first: int) -> None:
    sampler = EpochSampler(103, 10, seed=1, shuffle=True)
    whole = epoch_of(sampler, 3)
    sampler.first_batch = first
    assert len(sampler) == 11
    assert epoch_of(sampler, 3) == whole[first:]
    assert sampler.first_batch == 0
    assert epoch_of(sampler, 3) == whole


def test_epoch_may_be_set_after_the_iterator_is_made() -> None:
    expected = epoch_of(EpochSampler(20, 4, seed=1, shuffle=True), 6)
    sampler = EpochSampler(20, 4, seed=1, shuffle=True)
    iterator = iter(sampler)
    sampler.set_epoch(6)
    assert [indices.tolist() for _, indices in iterator] == expected


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="needs images"):
        EpochSampler(0, 4, seed=1, shuffle=True)
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        EpochSampler(8, 4, seed=1, shuffle=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch 3 of an epoch of 2"):
        EpochSampler(8, 4, seed=1, shuffle=True).first_batch = 3


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_continues_in_the_middle_of_an_epoch(workers: int) -> None:
    def loader() -> EpochLoader:
        sampler = EpochSampler(50, 8, seed=1, shuffle=True)
        return EpochLoader(numbered(50), sampler, num_workers=workers)

    whole = loader()
    whole.epochs.set_epoch(2)
    expected = list(whole)
    started, resumed = loader(), loader()
    started.epochs.set_epoch(2)
    batches = iter(started)
    for _ in range(3):
        next(batches)
    assert started.state_dict() == {"epoch": 2, "batches": 3, "images": 8}
    resumed.load_state_dict(started.state_dict())
    later = iter(resumed)  # Lightning sets the epoch after this
    resumed.epochs.set_epoch(2)
    rest = list(later)
    assert len(rest) == len(expected) - 3 == len(resumed) - 3
    for (images, labels), (same_images, same_labels) in zip(expected[3:], rest, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert resumed.state_dict() == {"epoch": 2, "batches": 7, "images": 8}
    assert len(list(resumed)) == 7


def test_a_loader_with_other_steps_refuses_to_go_on_within_an_epoch_but_starts_the_next() -> None:
    loader = EpochLoader(numbered(20), EpochSampler(20, 4, seed=1, shuffle=True, rank=1, world_size=2))
    loader.load_state_dict({"epoch": 1, "batches": 2, "images": 4})
    loader.epochs.set_epoch(1)
    with pytest.raises(ValueError, match="in steps of 4 images, now a step has 8"):
        next(iter(loader))
    loader.load_state_dict({"epoch": 1, "batches": 5, "images": 4})
    loader.epochs.set_epoch(2)
    assert len(list(loader)) == 3


def test_loader_of_a_finished_epoch_starts_the_next_at_its_beginning() -> None:
    loader = EpochLoader(numbered(20), EpochSampler(20, 8, seed=1, shuffle=True))
    loader.load_state_dict({"epoch": 4, "batches": 3})
    loader.epochs.set_epoch(5)
    assert len(list(loader)) == 3
