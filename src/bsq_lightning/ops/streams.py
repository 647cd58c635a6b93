"""Streams of random numbers: which seed belongs to which stage of a run."""

import hashlib

#: The stages of the first runs, whose numbers must stay what they were.
FIRST = ("float", "bits", "finetune")


def stage_seed(seed: int, stage: str) -> int:
    """A seed for one stage, at most 32 bits for the seeds that people choose; stages share no random numbers.

    Example:
        >>> stage_seed(1, "float"), stage_seed(1, "bits"), stage_seed(1, "finetune"), stage_seed(2, "float")
        (3, 4, 5, 6)
        >>> stage_seed(1, "soft") != stage_seed(1, "hard") != stage_seed(2, "hard")
        True
    """
    if stage in FIRST:
        return seed * len(FIRST) + FIRST.index(stage)
    return 2**31 + int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big") // 2
