"""The one stage of a method without training: weights are quantized, and left as the stage's checkpoint."""

import logging
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from bsq_lightning.checkpoint_io import load_checkpoint, save_weights
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.run.layer_errors import LayerErrors, errors_of, write_layers
from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import measuring
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.post_training import layer_inputs, quantize_
from bsq_lightning.quantized_tensor import QuantizedTensor, load_state
from bsq_lightning.quantizers import HeldTensor
from bsq_lightning.run_folder import RunFolder

log = logging.getLogger(__name__)
ACTIVATIONS = "network.activation_quantizers."


def quantize_without_training(experiment: Experiment, folder: RunFolder) -> None:
    """Quantizes the network of a config that has such a method, where it is not done yet; what follows finds the
    checkpoint of a stage that is over.

    Raises:
        ValueError: weights that do not fit the network, a method that cannot take them, too few images.
    """
    if not experiment.quantizes_without_training or folder.last.exists():
        return
    datamodule = experiment.datamodule()
    images = _images(datamodule, experiment.calibration_images)
    stage = experiment.stages[0]
    # Weights come after the quantizers, which hold nothing yet and have written it.
    network = experiment.first_network(stage, datamodule.num_classes, restored=True)
    net = network.net
    net.load_state_dict(experiment.net(datamodule.num_classes).state_dict())
    floats = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    before = _begun_from(experiment, folder, network)
    module = experiment.module(network, stage, datamodule.num_classes)
    experiment.calibration().calibrate_(module, datamodule)
    was = _predictions(net, datamodule)
    log.info("quantizing %d tensors without training, errors from %d images", len(network.names()), len(images))
    inputs = layer_inputs(net, network.names(), images.split(datamodule.batch_size))
    tensors = quantize_(net, experiment.methods(network.names(), before), inputs)
    for name, tensor in tensors.items():
        quantizer = network.quantizer(name)
        assert isinstance(quantizer, HeldTensor)
        quantizer.hold_(tensor)
    network.write_weights_()
    experiment.calibration().calibrate_(module, datamodule)
    agreement = float((_predictions(net, datamodule) == was).double().mean())
    layers: list[LayerErrors] = [
        errors_of(name, floats[f"{name}.weight"], tensor, inputs[name], before.get(name))
        for name, tensor in tensors.items()
    ]
    write_layers(folder, layers, agreement)
    save_weights(module, stage, folder.last)


def _images(datamodule: ImageDataModule, count: int) -> Tensor:
    if count > datamodule.train_size:
        raise ValueError(f"images={count}, but there are only {datamodule.train_size} training images")
    batches: Iterable[tuple[Tensor, Tensor]] = datamodule.calibration_dataloader()
    images = torch.cat([batch for batch, _ in islice(batches, -(-count // datamodule.batch_size))])
    return images[:count]


def _begun_from(experiment: Experiment, folder: RunFolder, network: QuantizedNetwork) -> dict[str, QuantizedTensor]:
    """Takes over what a run learned beside its weights; the codes that its weights are made of, if they are."""
    source = experiment.source
    if source is None:
        return {}
    other, checkpoint = source
    if "float" in other.results():
        folder.add_result("float", other.results()["float"])
    state = load_checkpoint(checkpoint)["state_dict"]
    learned = {k.removeprefix(ACTIVATIONS): v for k, v in state.items() if k.startswith(ACTIVATIONS)}
    if learned.keys() == network.activation_quantizers.state_dict().keys():
        network.activation_quantizers.load_state_dict(learned)
    if not other.quantized_file.exists():
        return {}
    tensors = load_state(other.quantized_file).tensors
    weights = {name: network.net.get_parameter(f"{name}.weight") for name in network.names()}
    return {
        name: tensors[name]
        for name, weight in weights.items()
        if name in tensors and torch.equal(tensors[name].dequantize(), weight)  # not after folding, nor at float
    }


def _predictions(net: nn.Module, datamodule: ImageDataModule) -> Tensor:
    """Classes of the test images, as ``net`` sees them."""
    with measuring(net):
        return torch.cat([net(images).argmax(1) for images, _ in datamodule.test_dataloader()])
