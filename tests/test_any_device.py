"""What the program does on a CPU it does on a GPU: each test runs on both, where both are there."""

import copy

import pytest
import torch
from small import network, problem
from small_runs import base_job, child_job, read_json, untimed_rows
from torch import nn

import aafit
from aafit.activations import AHAF, LEAF, FNeuron
from aafit.experiment.runs.execute import execute
from aafit.networks.adaptive import adaptive_parameters
from aafit.networks.running import evaluation_mode
from aafit.training.precision import arithmetic, autocast
from aafit.training.tune import tune

GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
)
DEVICES = ["cpu", GPU]
ACTIVATIONS = {
    "AHAF as SiLU": lambda: AHAF.like("SiLU"),
    "AHAF as ReLU": lambda: AHAF.like("ReLU"),
    "LEAF as Tanh": lambda: LEAF.like("Tanh"),
    "F-Neuron as Tanh": lambda: FNeuron.like("Tanh"),
}
# Large enough for the compiled loops; four dimensions in channels_last, as the networks have them, and two.
SHAPES = [(8, 16, 24, 24), (96, 512)]


@pytest.fixture(autouse=True)
def float32():
    with arithmetic("float32"):
        yield


def value_and_gradients(activation, u, towards):
    u = u.detach().requires_grad_()
    output = activation(u)
    output.backward(towards)
    return output.detach(), u.grad, [parameter.grad for parameter in activation.parameters()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_and_its_gradients(name, shape, device):
    activation = ACTIVATIONS[name]()
    generator = torch.Generator().manual_seed(0)
    u, towards = (torch.randn(shape, generator=generator) * scale for scale in (2.0, 1.0))
    if len(shape) == 4:
        u, towards = (x.contiguous(memory_format=torch.channels_last) for x in (u, towards))
    exact = value_and_gradients(copy.deepcopy(activation).double(), u.double(), towards.double())
    found = value_and_gradients(copy.deepcopy(activation).to(device), u.to(device), towards.to(device))
    assert found[0].device.type == device
    torch.testing.assert_close(found[0].cpu().double(), exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1].cpu().double(), exact[1], rtol=1e-4, atol=1e-4)
    # Sums over 49,000 to 74,000 elements in float32.
    for own, true in zip(found[2], exact[2], strict=True):
        assert (own.cpu().double() - true).norm() <= 1e-4 * (u.numel() ** 0.5 + true.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_by_differences(name, device):
    activation = ACTIVATIONS[name]().double().to(device)
    u = torch.linspace(-3.0, 3.1, 14, dtype=torch.float64, device=device).reshape(2, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda u, *parameters: activation(u), (u, *activation.parameters()))


def on(device, batches):
    return [(x.to(device), y.to(device)) for x, y in batches]


@pytest.mark.parametrize("device", DEVICES)
def test_tuning_again_gives_the_same_bits(device):
    nets = [network().to(device) for _ in range(2)]
    for net in nets:
        torch.manual_seed(1)
        tune(net, on(device, problem()), epochs=3, p24sl=True)
    first, second = (adaptive_parameters(net) for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value.to(device)) for name, value in adaptive_parameters(network()).items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "float64"])
def test_each_arithmetic(precision, device):
    dtype = torch.float64 if precision == "float64" else torch.float32
    net = network(dtype=dtype, dropout=0.0).to(device)
    batches = on(device, problem(dtype))
    exact = copy.deepcopy(net).double().cpu()
    with arithmetic(precision), torch.no_grad(), evaluation_mode(net), autocast(precision, torch.device(device)):
        output = net(batches[0][0])
    with torch.no_grad(), evaluation_mode(exact):
        true = exact(batches[0][0].double().cpu())
    allowed = {"float32": 1e-5, "tf32": 1e-2, "bf16": 5e-2, "float64": 1e-12}[precision]
    assert (output.cpu().double() - true).norm() < allowed * true.norm()
    with arithmetic(precision):
        losses = tune(net, batches, epochs=5, lr=0.03, precision=precision)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("device", DEVICES)
def test_identification_agrees_with_the_cpu(device):
    batches = problem(torch.float64, count=120, size=40)
    here, there = (network(dtype=torch.float64, dropout=0.0) for _ in range(2))
    there = there.to(device)
    on_cpu = aafit.identify(here, batches, steps=4)
    on_device = aafit.identify(there, on(device, batches), steps=4)
    assert len(on_cpu.steps) == len(on_device.steps) > 1
    assert on_device.steps[-1].loss < on_device.steps[0].loss
    for name, parameter in adaptive_parameters(there).items():
        assert parameter.device.type == device
        torch.testing.assert_close(parameter.cpu(), adaptive_parameters(here)[name], rtol=1e-6, atol=1e-8)


# LEAF fitted to a ReLU has a slope so steep that Adam's steps round away.
@pytest.mark.filterwarnings("ignore:Tuning left:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
def test_the_whole_chain_of_a_user(device):
    base = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.GELU(), nn.Linear(5, 3))
    base, batches = base.to(device).eval(), on(device, problem())
    net, replacement = aafit.replace_activations(base, {"ReLU": LEAF, "GELU": FNeuron}, sample=batches[0][0])
    assert len(replacement.rows) == 2
    assert {parameter.device.type for parameter in net.parameters()} == {device}
    compared = aafit.compare(base, net, batches)
    assert compared.agreement > 0.9
    assert aafit.audit(net, batches).rows
    before = aafit.evaluate(net, batches).loss
    aafit.tune(net, batches, epochs=5, lr=0.01)
    assert aafit.evaluate(net, batches).loss < before
    frozen, _ = aafit.freeze_activations(net, as_="table")
    torch.testing.assert_close(frozen(batches[0][0]), net(batches[0][0]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("device", DEVICES)
def test_runs_in_lockstep_and_alone_give_the_same_bits(device, tmp_path):
    base = base_job(tmp_path, epochs=1, holdout=100).model_copy(update={"device": device})
    execute(base)
    fneurons = {"cnn": "ReLU", "p24sl": False}
    pairs = [
        child_job(base, name, fc=fc, **fneurons) for name, fc in (("a", "F-Neuron as Tanh"), ("b", "F-Neuron random"))
    ]
    execute(*pairs)
    alone = child_job(base, "alone", fc="F-Neuron random", **fneurons)
    execute(alone)
    assert untimed_rows(alone.folder) == untimed_rows(pairs[1].folder)
    kept = [aafit.load_run(job.folder).state_dict() for job in (alone, pairs[1])]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["gradient", "gauss-newton"])
def test_a_run_goes_from_the_device_to_a_cpu(method, device, tmp_path):
    base = base_job(tmp_path, epochs=1, holdout=100).model_copy(update={"device": device})
    settings = {"p24sl": False} if method == "gauss-newton" else {}
    child = child_job(base, epochs=3, method=method, **settings)
    execute(base)
    execute(child)
    rows = untimed_rows(child.folder)
    loss = rows[0].index("test_loss")
    before, after = float(rows[1][loss]), float(rows[-1][loss])
    # An identification that finds no better parameters ends at its start.
    assert after < before if method == "gradient" else after <= before
    result = read_json(child.folder / "done.json")["result"]
    images = aafit.experiment.data.datasets.load_dataset("MNIST-5k").test
    evaluation = aafit.evaluate(aafit.load_run(child.folder), aafit.experiment.data.batches.evaluation_batches(images))
    assert evaluation.accuracy == pytest.approx(result["last_accuracy"], abs=0.002)
