"""Broken images under DDP: ranks of unequal batches stay in step, and rank 0 names and counts all that was found."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import run


@pytest.mark.slow
def test_two_ranks_skip_together(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 5)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(256, size=(24, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    broken = [
        *(tmp_path / "train" / "dog" / f"{number}.png" for number in range(6)),
        tmp_path / "val" / "cat" / "1.png",
    ]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    code, output = run(
        "train", "experiment=quickstart", "trainer=ddp_cpu", "logger=none", f"hydra.run.dir={tmp_path / 'run'}",
        "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8", "~model.shortcut",
        "data=image_folder", f"data.root={tmp_path}", "data.image_size=16", "data.resize=20", "data.batch_size=16",
        "data.eval_batch_size=8", "data.val_split=0", "data.num_workers=1", "data.broken_images=skip",
        "stages.float.epochs=1", "stages.bits.epochs=2", "stages.bits.adjust_every_n_epochs=1",
        "stages.finetune.epochs=1",
    )  # fmt: skip
    assert code == 0, output
    for path in broken:
        assert f"cannot decode the image {path}" in output
    assert output.count("broken images left out since this start of the run: 7") == 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["skipped_images"] == 7
