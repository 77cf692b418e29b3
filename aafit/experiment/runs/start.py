"""What a run starts from: a new network, an imported one, or its parent's with other activations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from aafit.activations import from_text, is_adaptive
from aafit.errors import UserError
from aafit.experiment.authors_checkpoint import load_authors_checkpoint
from aafit.experiment.data.batches import derived_seed, evaluation_batches
from aafit.experiment.data.datasets import SIZES, Dataset
from aafit.experiment.models import NETWORKS, Shape, build
from aafit.experiment.runs.checkpoint import load_tensors
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.documents import ACTIVATIONS, NETWORK, Config, check_finished
from aafit.experiment.runs.job import Job
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters, load_activations
from aafit.networks.surgery import Replacement, replace_activations
from aafit.training.precision import data_type


@dataclass(frozen=True)
class Start:
    """The network to train; where activations were replaced, also the base it was made from and the swap's report."""

    net: nn.Module
    base: nn.Module | None = None
    swap: Replacement | None = None

    def to(self, device: torch.device, precision: str) -> "Start":
        """The same on the run's device, in its arithmetic, in the layout in which convolutions are fastest."""
        for net in (self.net, self.base):
            if net is not None:
                net.to(device, data_type(precision)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def values(self) -> dict[str, Tensor]:
        """The adaptive parameters as they are now, by name, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in adaptive_parameters(self.net).items()}


def starting_network(job: Job, data: Dataset) -> Start:
    """Build what `job` trains. The same job gives the same bits each time, so that a resumed run has the same start.

    Raises:
        UserError: the parent is not finished or its files were altered; the checkpoint is for another network, or has
            other activations than the settings say.
    """
    run = job.config
    if job.parent is not None:
        parent, base = _finished(job.parent)
        changed = _changed_activations(run, parent)
        if not changed:
            return Start(base)
        net, swap = _replaced(base, run, job.seed, changed, data)
        return Start(net, base, swap)
    if run.init_from is not None:
        fixed = next((text for text in (run.cnn, run.fc) if not is_adaptive(text)), "ReLU")
        imported = load_authors_checkpoint(run.init_from, run.network, data.in_shape, data.classes, base=fixed)
        _check_activations(imported, run, run.init_from)
        return Start(imported)
    torch.manual_seed(job.seed)
    net = _fixed_network(run, data.in_shape, data.classes)
    adaptive = {path: text for path, text in activation_texts(run).items() if is_adaptive(text)}
    return Start(_replaced(net, run, job.seed, adaptive, data)[0]) if adaptive else Start(net)


def _check_activations(net: nn.Module, run: RunConfig, file: Path) -> None:
    """Refuse an imported network whose activations are not those that the settings tell of it."""
    there = {path: activation.family for path, activation in adaptive_activations(net).items()}
    told = {path: text.split()[0] for path, text in activation_texts(run).items() if is_adaptive(text)}
    if there != told:
        found = ", ".join(f"{path} {family}" for path, family in there.items()) or "no adaptive ones"
        raise UserError(
            f"{file} has other activations than cnn = {run.cnn!r} and fc = {run.fc!r} say: it has {found}. Give "
            "another checkpoint, or the settings that fit this one."
        )


def activation_texts(run: RunConfig) -> dict[str, str]:
    """The activation of each layer of a run's network, by the module's path."""
    network = NETWORKS[run.network]
    return dict.fromkeys(network.cnn_activations, run.cnn) | dict.fromkeys(network.fc_activations, run.fc)


def load_run(folder: Path) -> nn.Module:
    """The network of a finished run, on the CPU.

    Raises:
        UserError: the run is not finished, or its files were altered since.
    """
    return _finished(folder)[1]


def _finished(folder: Path) -> tuple[RunConfig, nn.Module]:
    """The settings of a finished run, and its network."""
    check_finished(folder)
    config = Config.of(folder)
    net: nn.Module = _fixed_network(config.run, config.data.in_shape, config.data.classes)
    if (folder / ACTIVATIONS).exists():
        # Not strict: the network's own weights come after, out of a file that done.json vouches for.
        net = load_activations(net, folder / ACTIVATIONS, strict=False)
    tensors = load_tensors(folder / NETWORK)
    net.to(next(iter(tensors.values())).dtype)
    net.load_state_dict(tensors)
    return config.run, net


def _fixed_network(run: RunConfig, in_shape: Shape, classes: int) -> nn.Module:
    """The run's network with its fixed activations; where an adaptive one is to come, a ReLU holds the place."""
    fixed = ["ReLU" if is_adaptive(text) else text for text in (run.cnn, run.fc)]
    return build(run.network, in_shape, classes, *fixed)


def _changed_activations(run: RunConfig, parent: RunConfig) -> dict[str, str]:
    """The layers whose activation is not the parent's; an adaptive one that the parent has too goes on as it is."""
    same_form = (run.sharing, run.interval, run.pieces) == (parent.sharing, parent.interval, parent.pieces)
    before = activation_texts(parent)
    return {
        path: text
        for path, text in activation_texts(run).items()
        if text != before[path] or (is_adaptive(text) and not same_form)
    }


def trained_parameters(run: RunConfig) -> int:
    """The number of parameters that a run trains."""
    if run.train == "none" or run.epochs == 0:
        return 0
    size = SIZES[run.dataset]
    net: nn.Module = _fixed_network(run, size.in_shape, classes=10)
    adaptive = {path: text for path, text in activation_texts(run).items() if is_adaptive(text)}
    if adaptive:
        net, _ = _with_activations(net, run, 0, adaptive, torch.zeros(1, *size.in_shape))
    trained = net.parameters() if run.train == "all" else adaptive_parameters(net).values()
    return sum(parameter.numel() for parameter in trained)


def _replaced(
    net: nn.Module, run: RunConfig, seed: int, texts: Mapping[str, str], data: Dataset
) -> tuple[nn.Module, Replacement]:
    one_image, _ = next(iter(evaluation_batches(data.test.to("cpu").at(torch.tensor([0])))))
    return _with_activations(net, run, seed, texts, one_image)


def _with_activations(
    net: nn.Module, run: RunConfig, seed: int, texts: Mapping[str, str], one_image: Tensor
) -> tuple[nn.Module, Replacement]:
    generator = torch.Generator().manual_seed(derived_seed("activations", seed, 0))
    makers: dict[str, Callable[..., nn.Module]] = {
        path: partial(from_text, text, generator=generator, interval=run.interval, knots=run.pieces + 2)
        for path, text in texts.items()
    }
    return replace_activations(net, makers, run.sharing, one_image)
