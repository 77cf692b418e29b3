"""The network that a run starts with, and the networks of finished runs."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from aafit.activations import from_text, is_adaptive
from aafit.errors import UserError
from aafit.experiment.authors_checkpoint import load_authors_checkpoint
from aafit.experiment.data.batches import derived_seed, evaluation_batches
from aafit.experiment.data.datasets import CLASSES, SIZES, Dataset, load_dataset
from aafit.experiment.models import NETWORKS, Shape, build
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import ACTIVATIONS, CONFIG, NETWORK, Config, check_finished
from aafit.experiment.runs.folder import load_tensors
from aafit.experiment.runs.gauss_newton import unseen_batches
from aafit.experiment.runs.job import Job
from aafit.files import as_path
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters
from aafit.networks.saving import load_activations
from aafit.networks.surgery import Replacement, replace_activations
from aafit.training.evaluate import Batches
from aafit.training.precision import data_type


def starting_network(
    job: Job, data: Dataset, device: torch.device
) -> tuple[nn.Module, nn.Module | None, Replacement | None]:
    """Build the network that `job` trains, bit-identical each time, on `device` and in the run's precision.

    Returns:
        The network; if activations were replaced, also the base network and the report of the replacement.
    """
    run, base, replacement = job.config, None, None
    one_image, _ = next(iter(evaluation_batches(data.test.to("cpu").at(torch.tensor([0])))))
    if job.parent is not None:
        parent, net = _finished(job.parent)
        if changed := _changed_activations(run, parent):
            base = net
            net, replacement = _with_activations(base, run, job.seed, changed, one_image)
    elif run.init_from is not None:
        net = _imported(run, run.init_from, data)
    else:
        torch.manual_seed(job.seed)
        net = _fixed_network(run, data.in_shape, data.classes)
        if adaptive := _adaptive_texts(run):
            net, _ = _with_activations(net, run, job.seed, adaptive, one_image)
    for placed in (net, base):
        if placed is not None:
            # In the memory format in which convolutions are fastest.
            placed.to(device, data_type(run.precision))
            placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, base, replacement


def _imported(run: RunConfig, file: Path, data: Dataset) -> nn.Module:
    """Return the network of an authors' checkpoint, which must have the activations that the settings name."""
    fixed = next((text for text in (run.cnn, run.fc) if not is_adaptive(text)), "ReLU")
    net = load_authors_checkpoint(file, run.network, data.in_shape, data.classes, base=fixed)
    families = {path: activation.family for path, activation in adaptive_activations(net).items()}
    if families != {path: text.split()[0] for path, text in _adaptive_texts(run).items()}:
        listed = ", ".join(f"{path} {family}" for path, family in families.items()) or "no adaptive ones"
        raise UserError(
            f"{file} has other activations than cnn = {run.cnn!r} and fc = {run.fc!r} say: it has {listed}. Give "
            "another checkpoint, or the settings that fit this one."
        )
    return net


def activation_texts(run: RunConfig) -> dict[str, str]:
    """Return the activation of each layer of a run's network, by the module's path."""
    network = NETWORKS[run.network]
    return dict.fromkeys(network.cnn_activations, run.cnn) | dict.fromkeys(network.fc_activations, run.fc)


def _adaptive_texts(run: RunConfig) -> dict[str, str]:
    return {path: text for path, text in activation_texts(run).items() if is_adaptive(text)}


def _fixed_network(run: RunConfig, in_shape: Shape, classes: int) -> nn.Module:
    """Return the run's network with its fixed activations, and ReLU where an adaptive one will be put."""
    fixed = ["ReLU" if is_adaptive(text) else text for text in (run.cnn, run.fc)]
    return build(run.network, in_shape, classes, *fixed)


def _changed_activations(run: RunConfig, parent: RunConfig) -> dict[str, str]:
    """Return the layers whose activation is not the parent's; an adaptive one that the parent has too is taken over."""
    same_shape = (run.sharing, run.interval, run.knots) == (parent.sharing, parent.interval, parent.knots)
    before = activation_texts(parent)
    return {
        path: text
        for path, text in activation_texts(run).items()
        if text != before[path] or (is_adaptive(text) and not same_shape)
    }


def trained_parameters(run: RunConfig) -> int:
    """Return the number of parameters that a run trains."""
    if run.train == "none" or run.epochs == 0:
        return 0
    size = SIZES[run.dataset]
    net = _fixed_network(run, size.in_shape, CLASSES)
    if adaptive := _adaptive_texts(run):
        net, _ = _with_activations(net, run, 0, adaptive, torch.zeros(1, *size.in_shape))
    trained = net.parameters() if run.train == "all" else adaptive_parameters(net).values()
    return sum(parameter.numel() for parameter in trained)


def _with_activations(
    net: nn.Module, run: RunConfig, seed: int, texts: Mapping[str, str], one_image: Tensor
) -> tuple[nn.Module, Replacement]:
    generator = torch.Generator().manual_seed(derived_seed("activations", seed, 0))
    makers: dict[str, Callable[..., nn.Module]] = {
        path: partial(from_text, text, generator=generator, interval=run.interval, knots=run.knots)
        for path, text in texts.items()
    }
    return replace_activations(net, makers, run.sharing, one_image)


def load_run(folder: str | Path) -> nn.Module:
    """Return the network of a finished run, on the CPU.

    Args:
        folder: the run folder, `runs/<suite>/<run>/seed<k>`.

    Raises:
        UserError: the run is not finished, or its files were altered since.

    Example:
        >>> net = aafit.load_run("runs/demo/relu-leaf-relu/seed42")  # doctest: +SKIP
        >>> aafit.plot_activations(net)  # doctest: +SKIP
    """
    return _finished(as_path(folder))[1]


def _finished(folder: Path) -> tuple[RunConfig, nn.Module]:
    """Return the settings of a finished run, and its network."""
    check_finished(folder)
    config = Config.of(folder)
    net = _fixed_network(config.run, config.data.in_shape, config.data.classes)
    if (folder / ACTIVATIONS).exists():
        # Not strict: the network's own weights are loaded afterwards, from a file that done.json vouches for.
        net = load_activations(net, folder / ACTIVATIONS, strict=False)
    tensors = load_tensors(folder / NETWORK)
    try:
        net.to(next(iter(tensors.values()), torch.empty(0)).dtype)
        net.load_state_dict(tensors)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{folder / NETWORK} is not the network that {folder / CONFIG} describes.") from error
    return config.run, net


def load_for_study(folder: Path, data_dir: Path | None, device: torch.device) -> tuple[nn.Module, Batches, Batches]:
    """Return the network of a finished run in float32, batches that it was not trained on, and test batches."""
    net = load_run(folder).float().to(device)
    config = Config.of(folder)
    run = config.run.model_copy(update={"precision": "float32"})
    data = load_dataset(run.dataset, data_dir, run.holdout, run.train_images).to(device)
    return net, unseen_batches(data, run, config.seed), evaluation_batches(data.test)
