"""Methods that train with other weights than they ship: the shipped ones are what is measured, saved and adjusted."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

import bsq_lightning
from bsq_lightning.data import DigitsDataModule
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule, measuring
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import CPQQuantizer, CSQQuantizer
from bsq_lightning.quantizers.lsq_activation import LSQActivation
from tests.helpers import TinyNet


class Watch(L.Callback):
    """Keeps the weights of one layer at the start and at the end of every batch."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        self.weights.append(pl_module.network.net.conv1.weight.detach().clone())


def trained(tmp_path: Path, quantizer: object, **changes: object) -> tuple[QuantModule, Watch]:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), quantizer, precision=3)
    module = QuantModule(network, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.01), stage="soft")
    watch = Watch()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0, callbacks=[watch],
        default_root_dir=tmp_path, **changes,
    )  # fmt: skip
    trainer.fit(module, DigitsDataModule(batch_size=32, limit_train=128))
    return module, watch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantizer", [CSQQuantizer, partial(CPQQuantizer, dropbits=True)], ids=["csq", "cpq"])
def test_what_is_left_of_training_is_what_ships(quantizer: object, tmp_path: Path) -> None:
    module, watch = trained(tmp_path, quantizer)
    network = module.network
    shipped = {name: each.weight() for name, _, each in network.quantizers()}
    assert any(not torch.equal(weight, shipped["conv1"]) for weight in watch.weights), "it trained with what it ships"
    network.write_training_weights_(torch.Generator().manual_seed(1))
    saved = module.state_dict()
    for name, weight in shipped.items():
        assert torch.equal(saved[f"network.net.{name}.weight"], weight)
    network.write_training_weights_(torch.Generator().manual_seed(1))
    with measuring(module):
        assert torch.equal(network.net.conv1.weight, shipped["conv1"])
    for name, tensor in network.state().tensors.items():
        assert torch.equal(tensor.dequantize(), shipped[name])


@pytest.mark.filterwarnings("ignore")
def test_accumulated_batches_are_of_one_draw(tmp_path: Path) -> None:
    _, watch = trained(tmp_path, partial(CPQQuantizer, dropbits=True), accumulate_grad_batches=2)
    # After the first of two batches the weights are still those of the draw; before the third there is another one.
    _, single = trained(tmp_path, partial(CPQQuantizer, dropbits=True))
    assert torch.equal(watch.weights[0], single.weights[0]), "the first draw depends on the first batch alone"
    assert len(watch.weights) == 4 and not torch.equal(watch.weights[0], watch.weights[2])


def test_a_plain_loop_is_refused_what_it_cannot_train() -> None:
    network = bsq_lightning.quantize(TinyNet(), CSQQuantizer)
    with pytest.raises(ValueError, match="train with other weights than they ship, on a schedule"):
        bsq_lightning.build_optimizer(network, partial(torch.optim.SGD, lr=0.1))


def test_counting_operations_starts_no_learned_step() -> None:
    network = QuantizedNetwork(TinyNet(), partial(CPQQuantizer), LSQActivation, act_precision=4)
    network.count_macs_(6)
    assert all(float(each.learned_step) == 0 for each in network.activation_quantizers.values())
    network(torch.rand(8, 3, 6, 6))
    assert all(float(each.learned_step) > 0 for each in network.activation_quantizers.values())
