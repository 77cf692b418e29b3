"""Train the adaptive activations of a network alone; save them and put them back."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import Parameter

from aafit.activations import AdaptiveActivation, from_settings
from aafit.errors import UserError
from aafit.files import write_atomically
from aafit.networks.as_modules import leave_fused_step
from aafit.networks.call_sites import CallSites, call_sites, install_interceptors, remove_interceptors
from aafit.networks.kinds import activation_name, is_activation, is_elementwise
from aafit.networks.surgery import find_module, put_activation

FORMAT = "aafit activations"
VERSION = "1"


def adaptive_activations(net: nn.Module) -> dict[str, AdaptiveActivation]:
    """The adaptive activations of `net` by path, in the order of the network."""
    return {path: module for path, module in net.named_modules() if isinstance(module, AdaptiveActivation)}


def adaptive_parameters(net: nn.Module) -> dict[str, Parameter]:
    """The parameters of the adaptive activations of `net` by their name in its state dict, as "act1.p1"."""
    return {
        _joined(path, name): parameter
        for path, activation in adaptive_activations(net).items()
        for name, parameter in activation.named_parameters(recurse=False)
    }


def train_only_activations(net: nn.Module) -> list[Parameter]:
    """Freeze all of `net` but its adaptive activations, and return the parameters that are left to train.

    Together with `training_mode`, no other tensor of the network changes in training.

    Raises:
        UserError: the network has no adaptive activation.
    """
    adaptive = list(adaptive_parameters(net).values())
    if not adaptive:
        raise UserError("The network has no adaptive activation to train: put some in with replace_activations first.")
    net.requires_grad_(False)
    for parameter in adaptive:
        parameter.requires_grad_(True)
    return adaptive


def training_mode(net: nn.Module) -> None:
    """`net.train()`, but what is frozen keeps its buffers too.

    A batch norm in training mode changes its running statistics even when its weights are frozen, so a module that owns
    buffers stays in eval mode unless it trains: unless one of its own parameters does or, where it has none, any
    parameter of the network does that is not an adaptive activation's.
    """
    adaptive = set(adaptive_parameters(net).values())
    rest_trains = any(parameter.requires_grad for parameter in net.parameters() if parameter not in adaptive)
    net.train()
    for module in net.modules():
        own = list(module.parameters(recurse=False))
        trains = any(parameter.requires_grad for parameter in own) if own else rest_trains
        if not trains and any(True for _ in module.buffers(recurse=False)):
            # Not module.eval(): that would reach into what lies below it.
            module.training = False


def save_activations(
    net: nn.Module,
    path: str | Path,
    start: Mapping[str, Tensor] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> None:
    """Save the adaptive activations of `net` alone, as a small safetensors file.

    The tensors have their names in the network ("act1.p1"); the metadata says by path what rebuilds each activation and
    what it took the place of, which calls of the network's program have modules of their own, and has a fingerprint of
    all other tensors of the network.

    Args:
        net: the network.
        path: the file to write; an old one is replaced as a whole.
        start: the values before tuning by the same names, saved as "start.act1.p1".
        replaced: the names of the functions they took the place of, by path; by default as `replace_activations` noted.

    Raises:
        UserError: the network has no adaptive activation, it is wrapped (DataParallel, torch.compile), or the file
            cannot be written.
    """
    inner = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
    if (wrapper := type(net).__name__) in inner:
        raise UserError(
            f"The network is wrapped in a {wrapper}, so that its paths are not those of the base: save "
            f"net.{inner[wrapper]}, which has the same activations."
        )
    activations = adaptive_activations(net)
    if not activations:
        raise UserError(f"There is nothing to save to {path}: the network has no adaptive activation.")
    noted = {at: activation.replaced for at, activation in activations.items() if activation.replaced is not None}
    tensors: dict[str, Tensor] = dict(adaptive_parameters(net))
    tensors |= {f"start.{name}": tensor for name, tensor in (start or {}).items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "activations": json.dumps({at: activation.settings() for at, activation in activations.items()}),
        "replaced": json.dumps(dict(noted if replaced is None else replaced)),
        "fingerprint": fingerprint(net, activations),
        "calls": json.dumps({at: calls.as_dict() for at, calls in call_sites(net).items()}),
    }
    # Cloned: safetensors refuses tensors that share memory.
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, metadata)
    write_atomically(Path(path), _with_sorted_header(content))


def fingerprint(net: nn.Module, activations: Iterable[str]) -> str:
    """SHA-256 of all parameters and buffers of `net` but those of the modules at the paths `activations`.

    It does not depend on the device, nor on the type of floating-point numbers where that holds every float32.
    """
    within = tuple(_joined(path, "") for path in activations)
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if not name.startswith(within):
            values = tensor.detach().cpu()
            values = values.float() if values.is_floating_point() else values
            digest.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
            digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header in order: the library writes metadata in an order that varies."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[start:]


def load_activations(
    net: nn.Module, path: str | Path, strict: bool = True, families: Iterable[type[AdaptiveActivation]] = ()
) -> nn.Module:
    """A copy of `net` with the activations of a file that `save_activations` wrote.

    They take the place of fixed activations or of adaptive ones, with the device and dtype of what surrounds them;
    `net` itself is left as it was.

    Args:
        net: the network that the activations were saved from, or its base.
        path: the file.
        strict: refuse a network whose other tensors differ from those of the network that they were saved from.
        families: classes of adaptive activations of one's own that the file may name, beside those in `net`; nothing is
            ever imported because a file says so.

    Raises:
        UserError: the file cannot be read, is truncated or is of another kind; its activations are of a network with
            other weights, where `strict`; the network has no activation that can
            be replaced at one of its paths; its tensors do not fit the activations that it describes.
    """
    settings, tensors, replaced, known, calls = _read(Path(path))
    loaded = deepcopy(net)
    known_families = [type(activation) for activation in adaptive_activations(net).values()] + list(families)
    try:
        remove_interceptors(loaded, call_sites(loaded))
        install_interceptors(loaded, calls)
    except UserError as error:
        raise UserError(f"{path} does not fit the network: {error}") from error
    for at, description in settings.items():
        try:
            _check_replaceable(loaded, at)
            activation = from_settings(description, known_families)
            _load_parameters(activation, at, tensors)
        except UserError as error:
            raise UserError(f"{path} does not fit the network: {error}") from error
        put_activation(loaded, at, activation)
        leave_fused_step(loaded, at.rpartition(".")[0])
        activation.replaced = replaced.get(at, activation.replaced)
    if strict and known is not None and fingerprint(loaded, settings) != known:
        raise UserError(
            f"The activations in {path} belong to a network with other weights than this one: "
            "give that network, or strict=False to load them all the same."
        )
    return loaded


@dataclass(frozen=True)
class SavedActivation:
    """An activation in a file: what it replaced (None: unknown, it began with the network), at its start, and tuned."""

    path: str
    replaced: str | None
    start: AdaptiveActivation | None
    tuned: AdaptiveActivation


def read_activations(path: str | Path, families: Iterable[type[AdaptiveActivation]] = ()) -> list[SavedActivation]:
    """The activations of a file that `save_activations` wrote, with the values they started from where it has them.

    Args:
        path: the file.
        families: classes of adaptive activations of one's own that the file may name.

    Raises:
        UserError: the file cannot be read, is truncated or is of another kind, names a family that is not given, or
            lacks a tensor that it describes.
    """
    settings, tensors, replaced, *_ = _read(Path(path))
    start = {name.removeprefix("start."): tensor for name, tensor in tensors.items() if name.startswith("start.")}
    saved = []
    for at, description in settings.items():
        tuned = from_settings(description, families)
        try:
            _load_parameters(tuned, at, tensors)
            has_start = any(name.startswith(_joined(at, "")) for name in start)
            before = from_settings(description, families) if has_start else None
            if before is not None:
                _load_parameters(before, at, start)
        except UserError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        saved.append(SavedActivation(at, replaced.get(at), before, tuned))
    return saved


def _check_replaceable(net: nn.Module, path: str) -> None:
    module = find_module(net, path)
    if module is net:
        raise UserError(f"the network itself is a {activation_name(net)}.")
    of_torch = type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.Identity)
    if (of_torch or is_activation(module)) and not is_elementwise(module):
        raise UserError(f"{path!r} is a {activation_name(module)}, not an elementwise activation.")


def _load_parameters(activation: AdaptiveActivation, at: str, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in activation.named_parameters(recurse=False):
        full_name = _joined(at, name)
        if full_name not in tensors:
            raise UserError(f"it has no tensor {full_name!r} for its {activation_name(activation)}.")
        tensor = tensors[full_name]
        if tensor.shape != parameter.shape:
            raise UserError(
                f"its tensor {full_name!r} has the shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}."
            )
        setattr(activation, name, nn.Parameter(tensor))


def _read(
    path: Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor], dict[str, str], str | None, dict[str, CallSites]]:
    """What `save_activations` wrote.

    By path the settings, the tensors by name, by path what was replaced, the fingerprint (None in older files), and by
    path of their owner the calls that have modules.
    """
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
    try:
        settings, replaced = dict(json.loads(metadata["activations"])), dict(json.loads(metadata.get("replaced", "{}")))
        described = json.loads(metadata.get("calls", "{}"))
        calls = {at: CallSites.from_dict(content) for at, content in described.items()}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe its activations ({error!r}): save them again.") from error
    return settings, tensors, replaced, metadata.get("fingerprint"), calls


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
