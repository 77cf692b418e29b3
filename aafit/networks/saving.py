"""Save the adaptive activations of a network to a file, and load them.

The file has the activations' parameters, what rebuilds them (settings, calls that have modules of their own), and a
fingerprint of the network's other tensors.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from aafit.activations import AdaptiveActivation, from_settings
from aafit.errors import UserError
from aafit.files import as_path, write_atomically
from aafit.networks.adaptive import adaptive_activations, adaptive_parameters
from aafit.networks.call_sites import (
    ActivationCall,
    install_interceptors,
    intercepted_calls,
    join_path,
    remove_interceptors,
)
from aafit.networks.kinds import activation_name, cannot_be_elementwise
from aafit.networks.running import check_network, disable_fast_path
from aafit.networks.surgery import find_module, put_activation

FORMAT = "aafit activations"
VERSION = "1"


def save_activations(
    net: nn.Module,
    path: str | Path,
    start: Mapping[str, Tensor] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> None:
    """Save the adaptive activations of `net` alone, as a small safetensors file.

    The tensors have their names in the network ("act1.p1"). The metadata has, by path, the settings of each activation,
    the original activation and the calls that have modules of their own; a fingerprint of all other tensors of the
    network; and a checksum.

    Args:
        net: the network.
        path: the file to write; an existing one is replaced atomically.
        start: the initial parameters by the same names, saved as "start.act1.p1".
        replaced: names of the original activations, by path; by default as `replace_activations` noted them.

    Raises:
        UserError: the network has no adaptive activation, it is wrapped (DataParallel, torch.compile), or the file
            cannot be written.

    Example:
        >>> aafit.save_activations(net, "leaf.safetensors")
    """
    check_network(net)
    activations = adaptive_activations(net)
    if not activations:
        raise UserError(f"There is nothing to save to {path}: the network has no adaptive activation.")
    noted = {at: activation.replaced for at, activation in activations.items() if activation.replaced is not None}
    named: dict[str, Tensor] = dict(adaptive_parameters(net))
    named |= {f"start.{name}": tensor for name, tensor in (start or {}).items()}
    # Cloned: safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "activations": json.dumps({at: activation.settings() for at, activation in activations.items()}),
        "replaced": json.dumps(dict(noted if replaced is None else replaced)),
        "fingerprint": fingerprint(net, activations),
        "calls": json.dumps({at: list(map(asdict, calls)) for at, calls in intercepted_calls(net).items()}),
    }
    metadata["checksum"] = _checksum(metadata, tensors)
    write_atomically(as_path(path), _with_sorted_header(save(tensors, metadata)))


def fingerprint(net: nn.Module, activations: Iterable[str]) -> str:
    """Return the SHA-256 of all parameters and buffers of `net` but those of the modules at the paths `activations`.

    It does not depend on the device. Floating-point values are converted to float32, so that a float32 network keeps
    its fingerprint when it is converted to float64.
    """
    within = tuple(join_path(path, "") for path in activations)
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if not name.startswith(within):
            values = tensor.detach().cpu()
            _update(digest, name, values.float() if values.is_floating_point() else values)
    return digest.hexdigest()


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors and the metadata of a file, without the checksum itself."""
    content = {name: text for name, text in metadata.items() if name != "checksum"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


def _update(digest: Any, name: str, values: Tensor) -> None:
    digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
    digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)


def _with_sorted_header(content: bytes) -> bytes:
    """Return the same safetensors file with a sorted header: the library writes metadata in varying order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def load_activations(
    net: nn.Module, path: str | Path, strict: bool = True, families: Iterable[type[AdaptiveActivation]] = ()
) -> nn.Module:
    """Return a copy of `net` with the activations of a file that `save_activations` wrote.

    They replace the original activations or other adaptive ones, with the device and dtype of the modules around them;
    `net` itself is left unchanged.

    Args:
        net: the network that the activations were saved from, or its base.
        path: the file.
        strict: refuse a network whose other tensors differ from those of the network that they were saved from.
        families: classes of adaptive activations of your own that the file may name, beside those in `net`; nothing is
            ever imported because a file names it.

    Raises:
        UserError: the file cannot be read, is truncated, damaged or of another kind; its activations belong to a
            network with other weights, if `strict`; the network has no activation that can be replaced at one of its
            paths, or its program has changed; its tensors do not fit the activations that it describes.

    Example:
        >>> net = aafit.load_activations(base, "leaf.safetensors")
    """
    check_network(net)
    saved, tensors = _read(as_path(path))
    loaded = deepcopy(net)
    known_families = {type(activation) for activation in adaptive_activations(net).values()} | {*families}
    try:
        remove_interceptors(loaded, intercepted_calls(loaded))
        install_interceptors(loaded, saved["calls"])
        for position, (at, settings) in enumerate(saved["activations"].items()):
            _check_replaceable(loaded, at)
            activation = from_settings(settings, known_families)
            _load_parameters(activation, at, tensors)
            put_activation(loaded, at, activation)
            disable_fast_path(loaded, at.rpartition(".")[0])
            activation.replaced = saved["replaced"].get(at, activation.replaced)
            activation.call_position = position
    except UserError as error:
        raise UserError(f"{path} does not fit the network: {error}") from error
    if strict and saved["fingerprint"] != fingerprint(loaded, saved["activations"]):
        raise UserError(
            f"The activations in {path} belong to a network with other weights than this one: "
            "give that network, or strict=False to load them all the same."
        )
    return loaded


@dataclass(frozen=True)
class SavedActivation:
    """An activation in a file.

    Attributes:
        path: Its path in the network.
        replaced: Name of the original activation; None if it is unknown, or the network was built with this one.
        start: The initial activation, if the file has it.
        tuned: The tuned activation.
    """

    path: str
    replaced: str | None
    start: AdaptiveActivation | None
    tuned: AdaptiveActivation


def read_activations(path: str | Path, families: Iterable[type[AdaptiveActivation]] = ()) -> list[SavedActivation]:
    """Return the activations of a file that `save_activations` wrote, with the initial ones if it has them.

    Args:
        path: the file.
        families: classes of adaptive activations of your own that the file may name.

    Raises:
        UserError: the file cannot be read, is truncated, damaged or of another kind, names a family that is not given,
            or lacks a tensor that it describes.

    Example:
        >>> [row.tuned for row in aafit.read_activations("leaf.safetensors")]
    """
    content, tensors = _read(as_path(path))
    start = {name.removeprefix("start."): tensor for name, tensor in tensors.items() if name.startswith("start.")}
    saved = []
    for at, settings in content["activations"].items():
        tuned = from_settings(settings, families)
        try:
            _load_parameters(tuned, at, tensors)
            has_start = any(name.startswith(join_path(at, "")) for name in start)
            initial = from_settings(settings, families) if has_start else None
            if initial is not None:
                _load_parameters(initial, at, start)
        except UserError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        saved.append(SavedActivation(at, content["replaced"].get(at), initial, tuned))
    return saved


def _check_replaceable(net: nn.Module, path: str) -> None:
    module = find_module(net, path)
    if module is net:
        raise UserError(f"the network itself is a {activation_name(net)}.")
    if cannot_be_elementwise(module):
        raise UserError(f"{path!r} is a {activation_name(module)}, not an elementwise activation.")


def _load_parameters(activation: AdaptiveActivation, at: str, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in activation.named_parameters(recurse=False):
        full_name = join_path(at, name)
        if full_name not in tensors:
            raise UserError(f"it has no tensor {full_name!r} for its {activation_name(activation)}.")
        tensor = tensors[full_name]
        if tensor.shape != parameter.shape:
            raise UserError(
                f"its tensor {full_name!r} has the shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}."
            )
        setattr(activation, name, nn.Parameter(tensor))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the metadata of a file, with "activations", "replaced" and "calls" by path, and its tensors by name."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is a safetensors file, but not one of activations that save_activations wrote.")
    if metadata.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {metadata.get('version')}, and this program reads version {VERSION} only."
        )
    # Files of a development version have no checksum.
    if "checksum" in metadata and metadata["checksum"] != _checksum(metadata, tensors):
        raise UserError(f"{path} is damaged: its checksum is not that of its content. Take it from a copy.")
    try:
        saved: dict[str, Any] = {
            "activations": dict(json.loads(metadata["activations"])),
            "replaced": dict(json.loads(metadata["replaced"])),
            "calls": {
                at: tuple(map(ActivationCall.from_dict, calls)) for at, calls in json.loads(metadata["calls"]).items()
            },
            "fingerprint": metadata["fingerprint"],
        }
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} does not describe its activations ({error!r}): save them again.") from error
    return saved, tensors
