"""Images that are there but cannot be decoded: which they are, and what becomes of them."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
LEAST_LIMIT, LIMIT_SHARE = 10, 0.01


class BrokenImages:
    """The broken files of one folder, each counted once, by all loading processes together.

    ``stop`` makes the first one an error. ``skip`` leaves them out of their batches, with a warning that names each
    once, up to 1 % of the images (10 at least): more than that is no accident of single files but a damaged copy.

    Args:
        files: path of every image.
        policy: ``stop`` or ``skip``.

    Raises:
        ValueError: another policy.

    Example:
        >>> broken = BrokenImages(["a.png", "b.png"], "skip")
        >>> broken.found(1, OSError("image file is truncated"))
        >>> broken.skipped
        ['b.png']
    """

    def __init__(self, files: list[str], policy: str) -> None:
        if policy not in POLICIES:
            raise ValueError(f"data.broken_images is {' or '.join(POLICIES)}, not {policy!r}")
        self.files, self.policy = files, policy
        self.limit = max(LEAST_LIMIT, int(LIMIT_SHARE * len(files)))
        # In shared memory, one byte an image: what one loading process finds, the others and the main process see.
        self.marks = torch.zeros(len(files), dtype=torch.uint8).share_memory_()

    def found(self, index: int, error: Exception) -> None:
        """Notes that image ``index`` cannot be decoded.

        Raises:
            ValueError: the policy is to stop, or there are more than the limit.
        """
        what = f"cannot decode the image {self.files[index]} ({type(error).__name__}: {error})"
        if self.policy == "stop":
            raise ValueError(f"{what}: repair it, take it away, or leave such images out with data.broken_images=skip")
        if not self.marks[index]:
            self.marks[index] = 1
            log.warning("%s: it is left out", what)
        self.check()

    def check(self) -> None:
        """Raises ValueError where more images are broken than can be skipped."""
        count = int(self.marks.count_nonzero())
        if count > self.limit:
            raise ValueError(
                f"{count} of {len(self.files)} images cannot be decoded, {self.skipped[0]} among them; "
                f"data.broken_images=skip leaves out {self.limit} at most: copy or unpack the images again"
            )

    @property
    def skipped(self) -> list[str]:
        """The broken files found so far."""
        return [self.files[index] for index in self.marks.nonzero().flatten().tolist()]

    def merge_(self, union: Callable[[Tensor], Tensor]) -> None:
        """Takes over what other ranks found; ``union`` gives the maximum over ranks of uint8 ``[N]``."""
        known = set(self.skipped)
        self.marks.copy_(union(self.marks.clone()))
        for file in self.skipped:
            if file not in known:  # each rank logs what it finds, but not every rank's log is seen
                log.warning("cannot decode the image %s, as another rank found: it is left out", file)
        self.check()
