"""Two hosts with addresses of their own, as two network namespaces of this machine with a cable between them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.run_folder import RunFolder
from tests.ddp.test_launch import DDP, ROOT, devices

pytestmark = pytest.mark.slow
HOSTS = ("bsqhost0", "bsqhost1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
TWO = [*DDP, "trainer.devices=1", "trainer.num_nodes=2", "callbacks.preemption.every_n_steps=1"]


def ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    try:
        made = ip("netns", "add", HOSTS[0])
    except FileNotFoundError:
        pytest.skip("there is no ip command here, so no second host")
    if made.returncode:
        pytest.skip(f"no network namespaces can be made here ({made.stderr.strip()})")
    ip("netns", "add", HOSTS[1])
    made = ip("link", "add", "bsq0", "netns", HOSTS[0], "type", "veth", "peer", "name", "bsq1", "netns", HOSTS[1])
    assert made.returncode == 0, made.stderr
    for i, host in enumerate(HOSTS):
        ip("-n", host, "addr", "add", f"{ADDRESSES[i]}/24", "dev", f"bsq{i}")
        ip("-n", host, "link", "set", f"bsq{i}", "up")
        ip("-n", host, "link", "set", "lo", "up")
    yield
    for host in HOSTS:
        ip("netns", "del", host)


def on_host(i: int, *arguments: str) -> "subprocess.Popen[str]":
    environment = {"NODE_RANK": str(i), "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29531"}
    return subprocess.Popen(
        ["ip", "netns", "exec", HOSTS[i], sys.executable, "-m", "bsq_lightning.train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, **environment, "GLOO_SOCKET_IFNAME": f"bsq{i}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def both(folder: Path, *arguments: str) -> "list[subprocess.Popen[str]]":
    return [on_host(i, *TWO, *arguments, f"hydra.run.dir={folder}") for i in range(2)]


def wait_for_training(folder: Path, hosts: "list[subprocess.Popen[str]]") -> None:
    deadline = time.monotonic() + 100
    while "bits" not in RunFolder(folder).steps():
        dead = [host.communicate()[0] for host in hosts if host.poll() is not None]
        assert not dead and time.monotonic() < deadline, dead
        time.sleep(0.1)


def kill_host(i: int) -> None:
    """Everything that runs there ends at once."""
    for pid in ip("netns", "pids", HOSTS[i]).stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def goes_on(folder: Path) -> None:
    hosts = both(folder, "stages.bits.epochs=40")
    output = [host.communicate(timeout=150)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], output
    assert devices(folder) == 2


@pytest.mark.parametrize("dead", [0, 1])
def test_killing_a_host_ends_the_other_and_a_restart_resumes(cable: None, dead: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hosts = both(folder, "stages.bits.epochs=40")
    wait_for_training(folder, hosts)
    kill_host(dead)
    killed = time.monotonic()
    output, _ = hosts[1 - dead].communicate(timeout=100)
    print(f"the other host ended after {time.monotonic() - killed:.1f} s")
    assert hosts[1 - dead].returncode == 1
    assert "lost another process of this run: it ended, or its host cannot be reached" in output, output
    assert RunFolder(folder).state == "failed"
    load_checkpoint(folder / "checkpoints" / "last.ckpt")
    goes_on(folder)


def test_a_cut_cable_ends_both_hosts_after_the_timeout(cable: None, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hosts = both(folder, "stages.bits.epochs=4000", "trainer.strategy.timeout.minutes=0.25")
    wait_for_training(folder, hosts)
    ip("-n", HOSTS[0], "link", "set", "bsq0", "down")
    try:
        cut = time.monotonic()
        output = [host.communicate(timeout=120)[0] for host in hosts]
        print(f"both ended after {time.monotonic() - cut:.1f} s")
    finally:
        for host in hosts:
            host.kill()
        for i in range(2):
            kill_host(i)
        ip("-n", HOSTS[0], "link", "set", "bsq0", "up")
    assert [host.returncode for host in hosts] == [1, 1], output
    assert "lost another process of this run" in output[0], output[0]
    load_checkpoint(folder / "checkpoints" / "last.ckpt")


def test_a_host_that_does_not_know_its_place_is_told(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("NODE_RANK", "MASTER_ADDR")}
    done = subprocess.run(
        [sys.executable, "-m", "bsq_lightning.train", *TWO, f"hydra.run.dir={tmp_path / 'run'}"],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "NODE_RANK, MASTER_ADDR, MASTER_PORT is not set" in done.stdout
