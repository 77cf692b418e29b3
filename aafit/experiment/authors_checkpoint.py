"""Read the networks that the paper's authors' program saved."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from aafit.activations import AHAF, LEAF, AdaptiveActivation, FNeuron
from aafit.errors import UserError, check_name
from aafit.experiment.models import NETWORKS, KerasNet, LeNet5, Shape, build
from aafit.files import as_path, read_file
from aafit.networks.find import found_in
from aafit.networks.surgery import put_activation

_PARAMETERS: dict[type[AdaptiveActivation], tuple[str, ...]] = {
    AHAF: ("gamma", "beta"),
    LEAF: ("p1", "p2", "p3", "p4"),
    FNeuron: ("_weights",),
}
_FIRST_FC = {"KerasNet": "fc7", "LeNet-5": "fc3"}
_LAST_FC = {"KerasNet": "fc8", "LeNet-5": "fc4"}
_SIDES = (32, 28)


def load_authors_checkpoint(
    path: str | Path,
    network: str | None = None,
    in_shape: Shape | None = None,
    classes: int | None = None,
    base: str = "ReLU",
    interval: tuple[float, float] = (-4.0, 4.0),
) -> nn.Module:
    """Return the network in a checkpoint of the authors' program, on the CPU, in the data type of the file.

    The file is a `torch.save` of {"net": state_dict, "opts": [...]}; the states of the optimizers are not read. The
    family of an adaptive activation follows from the names of its tensors: `gamma` and `beta` for AHAF, `p1` to `p4`
    for LEAF, `_weights` for F-Neuron. The file does not have the activation of a layer without such tensors.

    Args:
        path: the file.
        network: "KerasNet" or "LeNet-5"; None: the one whose layers the file has.
        in_shape: channels, height and width of an image; None: the square of 32 or 28 pixels that fits.
        classes: number of logits; None: as many as the file has.
        base: the fixed activation of the layers that have no adaptive one.
        interval: interval of the F-Neurons' knots, which the file does not have.

    Raises:
        UserError: the file cannot be read, is truncated, or would run code; it is no such checkpoint; its tensors are
            those of another network, or of another size.

    Example:
        >>> net = aafit.load_authors_checkpoint("base.bin", base="SiLU")  # doctest: +SKIP
        >>> print(aafit.find_activations(net, sample=torch.zeros(1, 3, 32, 32)))  # doctest: +SKIP
    """
    path = as_path(path)
    tensors = _read(path)
    if network is None:
        network = next((name for name, last in _LAST_FC.items() if f"{last}.weight" in tensors), "KerasNet")
    check_name("network", network, NETWORKS)
    classes = _size(tensors, f"{_LAST_FC[network]}.weight", axis=0, path=path) if classes is None else classes
    in_shape = _guessed_shape(tensors, network, path) if in_shape is None else in_shape
    # On "meta" no random number is drawn; the tensors come from the file.
    with torch.device("meta"):
        net = build(network, in_shape, classes, cnn=base, fc=base)
    acts = (*net.cnn_activations, *net.fc_activations)
    adaptive = {at: _under(at, tensors) for at in acts if _under(at, tensors)}
    fixed = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in adaptive}
    try:
        _check_fixed(net, fixed)
        net.load_state_dict(fixed, assign=True)
        sample = torch.zeros(1, *in_shape, dtype=tensors["conv1.weight"].dtype)
        found = found_in(net, sample)
        for at, parameters in adaptive.items():
            shape = found[at].shape or ()
            put_activation(net, at, _adaptive(at, parameters, shape[1:], interval), found[at])
    except UserError as error:
        size = "x".join(map(str, in_shape))
        raise UserError(f"{path} is not a {network} for {size} images and {classes} classes: {error}") from error
    return net


def _read(path: Path) -> dict[str, Tensor]:
    content = read_file(path)
    try:
        # torch does not check the checksums that it writes; the files of versions before 1.6 are no archives.
        if zipfile.is_zipfile(packed := io.BytesIO(content)):
            archive = zipfile.ZipFile(packed)
            # torch compresses nothing: what is compressed may expand without end.
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
            if compressed or archive.testzip() is not None:
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # The file is a program for torch's unpickler: damaged bytes can end in any error.
    except Exception as error:
        if isinstance(error, UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} is refused, since it would run code when it is loaded: a checkpoint of the authors' program "
                "holds tensors and plain values only."
            ) from error
        raise UserError(f"{path} is truncated, damaged, or not a file that torch.save wrote.") from error
    tensors = checkpoint.get("net") if isinstance(checkpoint, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(
            f"{path} is not a checkpoint of the authors' program, which is a dictionary with the network's tensors "
            'under "net".'
        )
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} is damaged: it has fewer values than the shape {tuple(tensor.shape)} of {name}.")
    return {str(name): tensor for name, tensor in tensors.items()}


def _under(at: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{at}."): tensor for name, tensor in tensors.items() if name.startswith(f"{at}.")}


def _size(tensors: Mapping[str, Tensor], name: str, axis: int, path: Path) -> int:
    if name not in tensors or tensors[name].ndim <= axis:
        there = ", ".join(tensors) or "none"
        raise UserError(f"{path} is for another network: it has no weights {name}. Its tensors: {there}.")
    return tensors[name].shape[axis]


def _guessed_shape(tensors: Mapping[str, Tensor], network: str, path: Path) -> Shape:
    channels = _size(tensors, "conv1.weight", axis=1, path=path)
    first_fc = _FIRST_FC[network]
    features = _size(tensors, f"{first_fc}.weight", axis=1, path=path)
    for side in _SIDES:
        with torch.device("meta"):
            if build(network, (channels, side, side), 1).get_submodule(first_fc).in_features == features:
                return (channels, side, side)
    raise UserError(
        f"{path} is a {network} for images that are neither 32x32 nor 28x28 ({first_fc} takes {features} features): "
        "give in_shape=(channels, height, width)."
    )


def _check_fixed(net: KerasNet | LeNet5, tensors: Mapping[str, Tensor]) -> None:
    expected = net.state_dict()
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    if missing or unknown:
        what = [f"it lacks {', '.join(missing)}"] if missing else []
        what += [f"it has {', '.join(unknown)} besides"] if unknown else []
        raise UserError(f"{' and '.join(what)}.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise UserError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}.")
        if not tensor.is_floating_point():
            raise UserError(f"{name} has the type {tensor.dtype}, not a floating-point one.")


def _adaptive(
    at: str, tensors: Mapping[str, Tensor], full: tuple[int, ...], interval: tuple[float, float]
) -> AdaptiveActivation:
    """Return the adaptive activation with these parameters, for a layer of the shape `full`."""
    family = next((family for family, names in _PARAMETERS.items() if set(names) == set(tensors)), None)
    if family is None:
        kinds = "; ".join(f"{family.family}: {', '.join(names)}" for family, names in _PARAMETERS.items())
        raise UserError(f"{at} has the tensors {', '.join(tensors)}, which are no adaptive activation's ({kinds}).")
    own = 1 if family is FNeuron else 0
    valid = list(dict.fromkeys([(1,), (full[0], *[1] * (len(full) - 1)), full]))
    values = {name: tensor[None] if tensor.ndim == own else tensor for name, tensor in tensors.items()}
    for name, tensor in values.items():
        if tensor.shape[: tensor.ndim - own] not in valid:
            shapes = " or ".join(str((*shape, "knots") if own else shape) for shape in valid).replace("'", "")
            raise UserError(f"{at}.{name} has the shape {tuple(tensors[name].shape)}, not {shapes}.")
    if family is FNeuron:
        return FNeuron(values["_weights"], interval, start="checkpoint")
    return family(**values, start="checkpoint")
