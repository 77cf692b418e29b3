"""The activations in other programs: exported with a dynamic batch, as ONNX, and in mixed precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aafit.activations import from_text

CASES = [
    ("LEAF as Tanh", (1,)),
    ("AHAF as SiLU", (3, 1, 1)),
    ("LEAF random", (3, 1, 1)),
    ("F-Neuron as Tanh", (1,)),
    ("F-Neuron random", (3, 1, 1)),
    ("F-Neuron random", (5,)),
]


def made(text: str, shape: tuple[int, ...]) -> torch.nn.Module:
    return from_text(text, shape, torch.Generator().manual_seed(0)).requires_grad_(False).eval()


def inputs(batch: int, shape: tuple[int, ...]) -> torch.Tensor:
    sizes = (batch, 5) if len(shape) == 1 else (batch, 3, 4, 2)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(batch)) * 3


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_exported_with_a_dynamic_batch(text: str, shape: tuple[int, ...]) -> None:
    module = made(text, shape)
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (inputs(4, shape),), dynamic_shapes=dynamic).module()
    for batch in (2, 7):
        u = inputs(batch, shape)
        torch.testing.assert_close(exported(u), module(u), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("text", "shape"), [CASES[2], CASES[4]])
def test_onnx_has_plain_operators_and_the_same_values(text: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module, file = made(text, shape), tmp_path / "activation.onnx"
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(module, (inputs(4, shape),), dynamo=True, dynamic_shapes=dynamic, verbose=False)
    program.save(str(file))
    assert {node.domain for node in program.model.graph} == {""}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in (2, 7):
        u = inputs(batch, shape)
        (y,) = session.run(None, {session.get_inputs()[0].name: u.numpy()})
        np.testing.assert_allclose(y, module(u).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("text", "shape"), CASES)
def test_autocast_leaves_the_dtype_of_the_input(text: str, shape: tuple[int, ...]) -> None:
    module, u = made(text, shape), inputs(4, shape).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(u)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, module(u))
