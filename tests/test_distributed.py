import pytest
import torch

from bsq_lightning.distributed import checksum


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_checksum_sees_a_single_bit(dtype: torch.dtype) -> None:
    tensor = torch.zeros(37, dtype=dtype)
    changed = tensor.clone()
    changed.view(torch.uint8)[5 * tensor.element_size()] = 1  # the lowest bit of one number
    assert int(checksum(tensor)) != int(checksum(changed)) == int(checksum(changed.clone()))
