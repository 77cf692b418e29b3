"""Classes and modules of the user that surgery leaves alone: registries, metaclasses, parametrizations, tracing."""

import functools
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from aafit.activations import AHAF, LEAF
from aafit.errors import UserError
from aafit.networks.find import find_activations
from aafit.networks.freeze import freeze_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
NEW = AHAF(1.5, 1.0)


class Functions(nn.Module):
    """Calls its activations as a function and as a method."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.fc = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc(x) @ self.weight) + self.fc(x).relu()


def replaced(base: nn.Module) -> Any:
    return replace_activations(base, {"ReLU": NEW}, sample=X)[0]


class Registered(nn.Module):
    """A base whose subclasses are registered by name."""

    registry: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls) -> None:
        cls.registry[cls.__name__] = cls


class Encoder(Registered, Functions):
    pass


class Registering(type):
    """A metaclass that counts its classes."""

    made: ClassVar[list[str]] = []

    def __new__(cls, name: str, *rest: Any) -> Any:
        cls.made.append(name)
        return super().__new__(cls, name, *rest)

    def __init__(cls, name: str, *rest: Any) -> None:
        cls.made.append(name)
        super().__init__(name, *rest)


class OfMetaclass(Functions, metaclass=Registering):
    pass


class Abstract(Functions, ABC):
    @abstractmethod
    def name(self) -> str: ...


class Concrete(Abstract):
    def name(self) -> str:
        return "concrete"


def test_a_registry_of_subclasses_keeps_the_user_s_class() -> None:
    net = replaced(Encoder())
    assert Registered.registry == {"Encoder": Encoder}
    assert isinstance(net, Encoder)
    # An object of the class at run time, as a registry of all subclasses would make it, is an ordinary one.
    torch.testing.assert_close(type(net)()(X), Encoder()(X))


def test_a_metaclass_makes_no_class_more() -> None:
    net = replaced(OfMetaclass())
    assert Registering.made == ["OfMetaclass"] * 2
    assert isinstance(net, OfMetaclass)


def test_an_abstract_base_class_still_tells_its_objects() -> None:
    net = replaced(Concrete())
    assert isinstance(net, Abstract)
    assert net.name() == "concrete"
    assert not isinstance(Functions(), type(net))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_a_parametrization_before_surgery() -> None:
    base = Functions()
    register_parametrization(base, "weight", Doubled())
    net, report = replace_activations(base, {"ReLU": NEW}, sample=X)
    assert isinstance(net, Functions)
    expected = NEW(base.fc(X) @ base.weight) + NEW(base.fc(X))
    torch.testing.assert_close(net(X), expected)
    assert torch.equal(report.restore(net)(X), base(X))
    remove_parametrizations(net, "weight")
    torch.testing.assert_close(net(X), expected)
    torch.testing.assert_close(report.restore(net)(X), base(X))


def test_a_parametrization_after_surgery() -> None:
    base = Functions()
    net, report = replace_activations(base, {"ReLU": NEW}, sample=X)
    register_parametrization(net, "weight", Doubled())
    parametrizations.weight_norm(net.fc)
    torch.testing.assert_close(net(X), NEW(base.fc(X) @ (2 * base.weight)) + NEW(base.fc(X)))
    expected = F.relu(base.fc(X) @ (2 * base.weight)) + base.fc(X).relu()
    torch.testing.assert_close(report.restore(net)(X), expected)


@pytest.mark.parametrize("after", [False, True])
def test_weight_norm(after: bool) -> None:
    base = Functions()
    with warnings.catch_warnings(action="ignore"):
        if not after:
            weight_norm(base.fc)
            base(X)
        net, report = replace_activations(base, {"ReLU": NEW}, sample=X)
        if after:
            weight_norm(net.fc)
            net(X)
    torch.testing.assert_close(net(X), NEW(base.fc(X) @ base.weight) + NEW(base.fc(X)))
    torch.testing.assert_close(report.restore(net)(X), base(X))


class ByKeyword(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(input=x)
        return y


@pytest.mark.parametrize("new", [NEW, LEAF.like("ReLU"), "F-Neuron as Tanh", "SiLU", LEAF])
def test_an_activation_is_called_by_keyword(new: Any) -> None:
    net, _ = replace_activations(ByKeyword(nn.ReLU()), {"ReLU": new}, sample=X)
    assert torch.equal(net(X), net.act(X))
    frozen, _ = freeze_activations(net, "table", sample=X) if new != "SiLU" else (net, None)
    assert torch.equal(frozen(X), frozen.act(X))


def test_a_module_called_by_keyword_at_two_places() -> None:
    class Twice(ByKeyword):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.act(input=super().forward(x) - 1)
            return y

    net, report = replace_activations(Twice(nn.ReLU()), {"ReLU": NEW}, sample=X)
    assert len(report.rows) == 2
    torch.testing.assert_close(net(X), NEW(NEW(X) - 1))


def test_a_network_that_fails_with_its_new_activations_is_refused() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sigmoid()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.own(x=x)
            return y

    with pytest.raises(UserError, match=r"With the new activations the network no longer runs\. .*'x'"):
        replace_activations(Net(), {"own": NEW}, sample=X)
    with pytest.raises(UserError, match="With the new activations the network no longer runs"):
        replace_activations(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {"ReLU": nn.Linear(3, 3)}, sample=X)


class Around(nn.Module):
    """An owner around another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act = Functions(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.inner(x) - 1).relu()


@pytest.mark.parametrize("as_", ["table", "function"])
@pytest.mark.parametrize("build", [Functions, Around, lambda: ByKeyword(nn.ReLU())])
@pytest.mark.filterwarnings("ignore")
def test_a_frozen_network_is_traced_by_fx_and_scripted(build: Callable[[], nn.Module], as_: str) -> None:
    net, _ = replace_activations(build(), {"ReLU": LEAF.like("Tanh")}, sample=X)
    frozen, _ = freeze_activations(net, as_, sample=X)
    traced = torch.fx.symbolic_trace(frozen)
    torch.testing.assert_close(traced(X), frozen(X))
    torch.testing.assert_close(torch.jit.script(traced)(X), frozen(X))
    torch.testing.assert_close(torch.jit.trace(frozen, (X,))(X), frozen(X))
    if not any(path.endswith("_1") for path, _ in frozen.named_modules()):
        torch.testing.assert_close(torch.jit.script(frozen)(X), frozen(X))
        return
    with pytest.raises(UserError, match=r"TorchScript cannot compile .*: freeze the activations, and give torch.fx"):
        torch.jit.script(frozen)


def with_forward(net: Any, forward: Any) -> Any:
    net.forward = forward
    return net


def test_a_function_as_forward_gets_a_warning_without_a_sample() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    closure = with_forward(base, lambda x: base[1](base[0](x)))
    with pytest.warns(UserWarning, match="The forward of 'the network' was set on the object"):
        replace_activations(closure, {"ReLU": NEW})


def _forward(net: Any, x: Tensor) -> Any:
    return net[1](net[0](x))


@pytest.mark.parametrize("bind", [types.MethodType, functools.partial])
def test_a_bound_forward_is_that_of_the_copy(bind: Any) -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    net, _ = replace_activations(with_forward(base, bind(_forward, base)), {"ReLU": NEW})
    torch.testing.assert_close(net(X), NEW(base[0](X)))


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def encode(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x)
        return y


def test_a_network_without_forward() -> None:
    with pytest.raises(UserError, match=r"is a NoForward, which has no forward: give a module whose forward calls"):
        find_activations(NoForward(), X)
    net, _ = replace_activations(NoForward(), {"ReLU": NEW})
    assert torch.equal(net.encode(X), NEW(X))


def test_a_class_is_no_network() -> None:
    with pytest.raises(UserError, match=r"The network is the class NoForward: give an object of it, NoForward\(...\)"):
        find_activations(NoForward, X)


def test_a_sample_with_a_target_is_told_from_two_inputs() -> None:
    with pytest.raises(UserError, match=r"failed: .*\. A tuple holds the inputs of the network: leave out a target"):
        find_activations(Functions(), (X, torch.zeros(5)))
