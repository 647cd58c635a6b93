"""docs/your_own_network.md, as it stands: its files are written, its commands are run, what comes out is looked at."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bsq_lightning.exporters import read_packed

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_network.md").read_text()
#: The words above a block end with the name of the file that it is.
FILES = re.findall(r"`([\w/.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)


def image(label: int) -> torch.Tensor:
    """Stripes, stripes the other way, a chessboard; shifted and noisy, uint8 ``[3, 20, 20]``."""
    y, x = torch.meshgrid(torch.arange(20), torch.arange(20), indexing="ij")
    x, y = x + int(torch.randint(0, 4, ())), y + int(torch.randint(0, 4, ()))
    pattern = ((x // 2 % 2), (y // 2 % 2), ((x // 2 + y // 2) % 2))[label]
    return (60 + 120 * pattern + torch.randint(0, 60, (3, 20, 20))).to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("user")
    for part, count in (("train", 64), ("val", 16)):
        for label, name in enumerate(("across", "board", "down")):
            (folder / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = image(label).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{number}.png")
    for name, content in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def ran(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_what_it_speaks_of() -> None:
    assert [name for name, _ in FILES] == [
        "my_nets.py", "conf/experiment/mine.yaml", "classify.py", "notebook.py", "plain.py",
    ]  # fmt: skip
    assert len(COMMANDS) == 1 and len([line for line in dict(FILES)["my_nets.py"].splitlines() if line.strip()]) <= 30


@pytest.mark.slow
def test_commands_and_another_process(folder: Path) -> None:
    output = ran(folder, "bash", "-ec", COMMANDS[0].replace("python ", f"{sys.executable} "))
    assert "logits: passed" in output
    packed = read_packed(folder / "small.safetensors")
    assert packed.state.scheme().bits("model") <= 6 * 8000 and packed.state.act_precision == 4
    paths = sorted(str(path.relative_to(folder)) for path in (folder / "images" / "val").rglob("*.png"))
    quiet = "import runpy, sys; runpy.run_path('classify.py'); assert not {'lightning', 'hydra'} & set(sys.modules)"
    lines = ran(folder, sys.executable, "-c", quiet, *paths).splitlines()
    right = [
        ("across", "board", "down").index(Path(path).parent.name) == int(found) for path, found in map(str.split, lines)
    ]
    assert len(right) == len(paths) and sum(right) > 0.8 * len(right)
    ran(folder, sys.executable, "plain.py")


@pytest.mark.slow
def test_the_notebook(folder: Path) -> None:
    output = ran(folder, sys.executable, "notebook.py")
    assert float(output.split()[-1]) > 0.8, output
    assert read_packed(folder / "notebook.safetensors").state.scheme().bits("model") <= 6 * 8000
