"""Packing: the identity at every width, in the bytes that it says, and codes that do not fit are refused."""

import pytest
import torch

from bsq_lightning.ops.packing import BLOCK, WIDEST, pack, packed_bytes, unpack

WIDTHS = pytest.mark.parametrize("width", range(1, WIDEST + 1))


@WIDTHS
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, BLOCK - 1, BLOCK, BLOCK + 3])
def test_unpacking_gives_the_codes_back(width: int, count: int) -> None:
    half = 1 << (width - 1)
    codes = torch.randint(-half, half, (count,), dtype=torch.int32)
    if count > 1:
        codes[0], codes[-1] = -half, half - 1
    packed = pack(codes, width)
    assert packed.dtype == torch.uint8 and len(packed) == packed_bytes(count, width)
    back = unpack(packed, width, count)
    assert back.dtype == torch.int32 and torch.equal(back, codes)
    assert torch.equal(unpack(packed, width, count, torch.float32), codes.float())


@WIDTHS
def test_every_code_of_a_width(width: int) -> None:
    codes = torch.arange(-(1 << (width - 1)), 1 << (width - 1), dtype=torch.int32)
    assert torch.equal(unpack(pack(codes, width), width, len(codes)), codes)


@WIDTHS
def test_the_size_is_the_bits(width: int) -> None:
    for count in (8, 800, BLOCK + 8):
        assert packed_bytes(count, width) == count * width // 8
    assert 0 <= packed_bytes(1001, width) - 1001 * width / 8 < 5  # one byte at most for each piece


def test_a_stranger_reads_it_bit_by_bit() -> None:
    """The layout as its description says, in plain Python."""
    codes = torch.randint(-16, 16, (21,), dtype=torch.int32)
    packed = pack(codes, 5).tolist()  # pieces of 4 bits and of 1
    fours, ones = packed[:11], packed[11:]
    for place, code in enumerate(codes.tolist()):
        upper = fours[place % 11] >> (4 * (place // 11)) & 15
        lowest = ones[place % 3] >> (place // 3) & 1
        assert 2 * upper + lowest - 16 == code


def test_shapes_and_types_of_codes_do_not_matter() -> None:
    codes = torch.randint(-4, 4, (3, 5), dtype=torch.int8)
    assert torch.equal(unpack(pack(codes.t(), 3), 3, 15).view(5, 3).t(), codes.int())


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="codes from -4 to 4 do not fit in 3 bits, which hold -4 to 3"):
        pack(torch.tensor([-4, 4]), 3)
    for width in (0, 18):
        with pytest.raises(ValueError, match=f"packed in 1 to 17 bits, not {width}"):
            pack(torch.tensor([0]), width)
    for packed in (torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int8)):
        with pytest.raises(ValueError, match="8 codes of 2 bits take 2 bytes"):
            unpack(packed, 2, 8)
