"""Calls of activations as modules: found, replaced, restored, saved, at the places of the program that are meant."""

import re
from types import FunctionType
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from written import FORMS, NOT_FOUND, Swish, Written, written

from aafit.activations import AHAF, LEAF, AdaptiveActivation
from aafit.errors import UserError
from aafit.networks.adaptive import adaptive_activations
from aafit.networks.call_sites import ActivationCall, digest, intercepted_calls
from aafit.networks.find import find_activations
from aafit.networks.running import with_matching_modules
from aafit.networks.saving import load_activations, save_activations
from aafit.networks.surgery import replace_activations

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))


def value(x: float) -> AHAF:
    """An activation that no function of torch equals: each place can be told by what it gives."""
    return AHAF(gamma=x, beta=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_replaced_and_restored(form: str, tmp_path) -> None:
    between, rows = FORMS[form]
    base = written(between)
    before, keys = base(X), list(base.state_dict())
    found = find_activations(base, X)
    assert [(row.kind, row.path) for row in found if row.calls] == rows
    net, swap = replace_activations(base, {path: value(0.5 + at) for at, (_, path) in enumerate(rows)}, sample=X)
    # What the same program gives where those activations are written into it.
    acts = [value(0.5 + at) for at in range(len(rows))]
    assert [type(net.get_submodule(path)) for _, path in rows] == [AHAF] * len(rows)
    assert not torch.equal(net(X), before)
    torch.testing.assert_close(net(X), _by_hand(base, form, acts), rtol=0, atol=1e-6)
    restored = swap.restore(net)
    assert torch.equal(restored(X), before)
    assert type(restored) is type(base)
    assert list(restored.state_dict()) == keys
    assert torch.equal(with_matching_modules(base, net)(X), before)
    save_activations(net, tmp_path / "a.safetensors")
    assert torch.equal(load_activations(base, tmp_path / "a.safetensors")(X), net(X))
    assert torch.equal(base(X), before)


@pytest.mark.parametrize("form", NOT_FOUND)
def test_what_is_not_found_is_left_as_it_is(form: str) -> None:
    between, parts = NOT_FOUND[form]
    base = written(between)
    found = [row for row in find_activations(base, X) if row.calls]
    assert [(row.kind, row.path) for row in found] == [(kind, path) for kind, path, _ in parts]
    assert all(row.gate.startswith(why) for row, (*_, why) in zip(found, parts, strict=True))
    with pytest.raises(UserError, match="'Sigmoid' matches no activation"):
        replace_activations(base, {"Sigmoid": value(2)}, sample=X)


def _by_hand(base: Written, form: str, acts: list[AHAF]) -> Tensor:
    calls = iter(acts)
    x = base.fc1(X)
    if form == "one line, two calls":
        y = next(calls)(x - 1) + next(calls)(x + 1)
    elif form == "helper, three layers":
        y = next(calls)(base.fc2(x))
        y = next(calls)(base.fc1(y))
        y = next(calls)(base.fc2(y))
    elif form.endswith("two places"):
        y = next(calls)(x)
        y = next(calls)(base.fc2(y))
    elif form == "module and function":
        y = next(calls)(x - 1)
        y = next(calls)(y)
    elif form in ("loop, two functions", "loop, other options"):
        for act in acts:
            x = act(base.fc2(x))
        y = x
    elif form == "loop":
        for _ in range(3):
            x = acts[0](base.fc2(x))
        y = x
    else:
        y = acts[0](x) - (1 if form == "helper" else 0)
    out: Tensor = base.fc2(y)
    return out


class Hinge(AdaptiveActivation):
    """An activation of one's own whose formula calls what a watch looks for."""

    family = "Hinge"
    starts: ClassVar = {"ReLU": (1.0,)}

    @staticmethod
    def formula(u: Tensor, a: Tensor) -> Tensor:
        return a * torch.relu(u)


def test_what_an_activation_calls_itself_is_no_call_of_the_network() -> None:
    base = written(lambda net, x: F.gelu(net.relu(x)))
    net, _ = replace_activations(base, {"relu": Hinge.like("ReLU"), "GELU": LEAF.like("SiLU")}, sample=X)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(X), net(X))


class Branches(nn.Module):
    """A program that depends on its data: it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return F.relu(self.fc(x))
        for _ in range(int(x.abs().max().item())):
            x = torch.tanh(self.fc(x))
        return x.clamp(min=0) + F.relu(x)


def test_programs_that_depend_on_their_data() -> None:
    net = Branches()
    x = -torch.rand(4, 6) - 2
    found = find_activations(net, x)
    assert [(row.path, row.calls) for row in found] == [("tanh_1", 2), ("clamp_1", 1), ("relu_1", 1)]
    new, _ = replace_activations(net, {"Tanh": value(2), "relu_1": value(3)}, sample=x)
    # Another number of turns, and a branch that the sample did not take.
    deeper, other = 2 * x, -x
    y = deeper
    for _ in range(int(y.abs().max().item())):
        y = value(2)(net.fc(y))
    torch.testing.assert_close(new(deeper), y.clamp(min=0) + value(3)(y))
    assert torch.equal(new(other), net(other))


class ByMean(nn.Module):
    """Calls now one function and now another at one place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        act = torch.relu if x.mean() > 0 else torch.tanh
        return act(self.fc(x))


def test_another_function_at_the_same_place_is_left() -> None:
    base, x = ByMean(), X.abs()
    net, swap = replace_activations(base, {"ReLU": value(1.5)}, sample=x)
    assert [row.path for row in swap.rows] == ["relu_1"]
    torch.testing.assert_close(net(x), value(1.5)(base.fc(x)))
    assert torch.equal(net(-x), base(-x))


def test_one_function_of_several_at_one_place() -> None:
    def between(net: Written, x: Tensor) -> Tensor:
        for act in (torch.relu, torch.relu, torch.tanh):
            x = act(net.fc2(x))
        return x

    base = written(between)
    assert [(row.path, row.calls) for row in find_activations(base, X) if row.calls] == [("relu_1", 2), ("tanh_1", 1)]
    net, _ = replace_activations(base, {"Tanh": value(1.5)}, sample=X)
    x = F.relu(base.fc2(F.relu(base.fc2(base.fc1(X)))))
    torch.testing.assert_close(net(X), base.fc2(value(1.5)(base.fc2(x))))


def test_two_modules_and_a_function_at_one_place() -> None:
    def between(net: Written, x: Tensor) -> Tensor:
        for act in (net.relu, net.own, F.relu):
            x = act(net.fc2(x))
        for act in (net.relu, net.own):
            x = act(net.fc2(x))
        return x

    base = written(between)
    paths = ["relu_1", "own_1", "relu_2", "relu_3", "own_2"]
    assert [row.path for row in find_activations(base, X) if row.calls] == paths
    acts = [value(0.5 + at) for at in range(len(paths))]
    net, swap = replace_activations(base, dict(zip(paths, acts, strict=True)), sample=X)
    x = base.fc1(X)
    for act in acts:
        x = act(base.fc2(x))
    torch.testing.assert_close(net(X), base.fc2(x))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(X), net(X))
    assert torch.equal(swap.restore(net)(X), base(X))


@pytest.mark.parametrize(
    ("call", "written_down", "called", "same"),
    [
        ("leaky_relu", {"negative_slope": 0.2}, {"1": 0.2}, True),
        ("leaky_relu", {"negative_slope": 0.01}, {}, True),
        ("leaky_relu", {"negative_slope": 0.2}, {}, False),
        ("threshold", {"1": 0.1, "2": 0.0}, {"threshold": 0.1, "value": 0.0, "inplace": True}, True),
        ("clamp", {"min": 0}, {"min": 0, "max": 6}, False),
        ("relu", {}, {}, True),
    ],
)
def test_options_are_compared_by_what_they_mean(call: str, written_down, called, same: bool) -> None:
    assert ActivationCall("", call, False, "", (), written_down).matches(call, called) is same
    assert not ActivationCall("", "elu", False, "", (), written_down).matches(call, called)


class Layers(nn.Module):
    """A helper for each of three layers of their own sizes, as programs that call functions only have it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 5)

    def layer(self, x: Tensor, fc: nn.Module) -> Tensor:
        return F.relu(fc(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x, self.fc1)
        for _ in range(2):
            x = self.layer(x, self.fc2) if x.shape[1] == 8 else self.layer(x, self.fc3)
        return x


def test_a_helper_called_for_each_layer_is_as_many_places() -> None:
    net = Layers()
    found = find_activations(net, X)
    assert [(row.path, row.after, row.shape) for row in found] == [
        ("relu_1", ("Linear", "fc1"), (8, 8)),
        ("relu_2", ("Linear", "fc2"), (8, 5)),
        ("relu_3", ("Linear", "fc3"), (8, 5)),
    ]
    assert re.match(r"test_call_sites.py:\d+, called in \d+: return F.relu\(fc\(x\)\)", str(found["relu_2"].line))
    acts = {f"relu_{at}": value(0.5 + at) for at in (1, 2, 3)}
    new, swap = replace_activations(net, acts, sharing="channel", sample=X)
    assert [row.shape for row in swap.rows] == [(8,), (5,), (5,)]
    x = X
    for fc, act in zip((net.fc1, net.fc2, net.fc3), acts.values(), strict=True):
        x = act(fc(x))
    torch.testing.assert_close(new(X), x)
    one, _ = replace_activations(net, {"relu_2": value(0.5)}, sample=X)
    torch.testing.assert_close(one(X), F.relu(net.fc3(value(0.5)(net.fc2(F.relu(net.fc1(X)))))))


def test_where_one_place_is_known_the_way_there_does_not_matter() -> None:
    def between(net: Written, x: Tensor) -> Tensor:
        if x.requires_grad:
            return _squared_relu(x)
        return _squared_relu(x)

    net = written(between)
    new, _ = replace_activations(net, {"ReLU": value(1.5)}, sample=X)
    with torch.no_grad():
        expected = net.fc2(value(1.5)(net.fc1(X)) ** 2)
        torch.testing.assert_close(new(X), expected)
    torch.testing.assert_close(new(X), expected)


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x) ** 2


def test_two_lambdas_have_one_name() -> None:
    by_name = {"relu": lambda x: F.relu(x), "silu": lambda x: F.silu(x + 1) - 1}
    base = written(lambda net, x: by_name["silu"](net.fc2(by_name["relu"](x))))
    net, _ = replace_activations(base, {"ReLU": value(1.5)}, sample=X)
    torch.testing.assert_close(net(X), base.fc2(F.silu(base.fc2(value(1.5)(base.fc1(X))) + 1) - 1))


class Nested(nn.Module):
    """One class within itself: the same program at two depths."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.fc, self.inner = nn.Linear(6, 6), Nested(depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x))
        return F.relu(self.inner(x)) if self.inner is not None else x


@pytest.mark.parametrize("paths", [["relu_1"], ["inner.relu_1"], ["relu_2"], ["inner.inner.relu_1", "relu_1"]])
def test_the_same_program_at_two_depths(paths: list[str]) -> None:
    torch.manual_seed(0)
    net = Nested(2)
    assert [row.path for row in find_activations(net, X)] == [
        "relu_1", "inner.relu_1", "inner.inner.relu_1", "inner.relu_2", "relu_2",
    ]  # fmt: skip
    new, _ = replace_activations(net, dict.fromkeys(paths, value(1.5)), sample=X)

    def act(path: str, x: Tensor) -> Tensor:
        return value(1.5)(x) if path in paths else F.relu(x)

    x = act("relu_1", net.fc(X))
    x = act("inner.relu_1", net.inner.fc(x))
    x = act("inner.inner.relu_1", net.inner.inner.fc(x))
    torch.testing.assert_close(new(X), act("relu_2", act("inner.relu_2", x)))


def shared_objects() -> nn.Sequential:
    torch.manual_seed(0)
    relu = nn.ReLU()
    return nn.Sequential(nn.Linear(6, 6), relu, nn.Linear(6, 6), relu)


def shared_block() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(block, block)


@pytest.mark.parametrize("sample", [None, X])
def test_one_object_under_two_names_becomes_two(sample) -> None:
    net, swap = replace_activations(shared_objects(), {"ReLU": value(1.5)}, sample=sample)
    assert [row.path for row in swap.rows] == ["1", "3"]
    assert net[1] is not net[3]
    base = shared_objects()
    only, _ = replace_activations(base, {"3": value(1.5)}, sample=sample)
    torch.testing.assert_close(only(X), value(1.5)(base[2](F.relu(base[0](X)))))


def test_a_block_at_two_places_is_one_block() -> None:
    base = shared_block()
    for key in ("ReLU", "0.1", "1.1"):
        net, swap = replace_activations(base, {key: value(1.5)}, sample=X)
        assert [(row.path, row.calls) for row in swap.rows] == [("0.1", 2)]
        assert net[0] is net[1]
        assert torch.equal(swap.restore(net)(X), base(X))


def test_calls_can_share_one_activation() -> None:
    base = written(lambda net, x: net.relu(net.fc2(net.relu(x))))
    net, swap = replace_activations(base, {"ReLU": value(1.5)}, sample=X, share_calls=True)
    assert [(row.path, row.calls) for row in swap.rows if row.calls] == [("relu", 2)]
    assert "relu" in adaptive_activations(net)
    assert intercepted_calls(net) == {}
    assert torch.equal(swap.restore(net)(X), base(X))


@pytest.mark.parametrize("activation", ["gelu", "relu", F.gelu, nn.GELU(), torch.nn.functional.silu])
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_layers_call_what_takes_the_place_of_their_fused_step(activation, padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True)
    base = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 5, 8)
    options = {}
    if padded:
        options["src_key_padding_mask"] = torch.tensor([[False] * 5, [False] * 5, [False] * 3 + [True] * 2])
    found = find_activations(base, x, **options)
    assert [row.path.rpartition(".")[0] for row in found] == ["layers.0", "layers.1"]
    net, swap = replace_activations(base, {"*": LEAF.like("Tanh")}, sample=(x, options))
    with torch.no_grad():
        y, z = base(x, **options), net(x, **options)
        assert (y - z).abs().max() > 0.01
        torch.testing.assert_close(with_matching_modules(base, net)(x, **options), y, rtol=1e-4, atol=1e-5)
        assert torch.equal(swap.restore(net)(x, **options), y)
    assert swap.restore(net).layers[0].activation_relu_or_gelu == base.layers[0].activation_relu_or_gelu


class Gated(nn.Module):
    """A squeeze-excite, a product with its own input, and the cell of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.se, self.sigmoid = nn.Linear(6, 6), nn.Linear(6, 6), nn.Sigmoid()
        self.gates = nn.Linear(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.fc(x))
        x = x * self.sigmoid(self.se(x)).unsqueeze(0).squeeze(0)
        x = x * x.sigmoid()
        i, f, g, o = self.gates(x).chunk(4, -1)
        c = f.sigmoid() * x + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh()


def test_gates_are_found_and_replaced_only_by_name() -> None:
    net = Gated()
    found = find_activations(net, X)
    assert [row.path for row in found if not row.gate] == ["tanh_1"]
    assert len(found) == 8
    assert "its own input" in found["sigmoid_1"].gate
    _, swap = replace_activations(net, {"*": LEAF.like("Tanh"), "sigmoid": LEAF.like("Sigmoid")}, sample=X)
    assert [row.path for row in swap.rows] == ["tanh_1", "sigmoid"]
    _, swap = replace_activations(net, {lambda row: row.kind == "Tanh": LEAF.like("Tanh")}, sample=X)
    assert len(swap.rows) == 3


class InPlace(nn.Module):
    """Goes on with the input that its activation changed."""

    def __init__(self, as_function: bool) -> None:
        super().__init__()
        self.fc, self.act, self.as_function = nn.Linear(6, 6), nn.ReLU(inplace=True), as_function

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.as_function:
            F.relu_(x)
        else:
            self.act(x)
        return x + 1


@pytest.mark.parametrize("as_function", [False, True])
def test_an_input_that_is_changed_in_place_and_used_again_is_refused(as_function: bool) -> None:
    with pytest.raises(UserError, match=r"gives other outputs .* work in place"):
        replace_activations(InPlace(as_function), {"ReLU": LEAF.like("ReLU")}, sample=X)


def _edited(function, code) -> Any:  # type: ignore[no-untyped-def]
    """A function of the same name as `function` with another program, as after an edit of its file."""
    names = {"co_name": function.__code__.co_name, "co_qualname": function.__code__.co_qualname}
    made = FunctionType(code.__code__.replace(**names), code.__globals__)
    made.__qualname__ = function.__qualname__
    return made


@pytest.mark.parametrize(
    "edited",
    [
        lambda net, x: F.relu(x + 1),
        lambda net, x: F.gelu(x),
        lambda net, x: x,
        lambda net, x: F.relu(x) if net.training else F.relu(-x),
    ],
    ids=["more", "another function", "nothing", "a branch"],
)
def test_a_program_that_was_edited_is_refused(tmp_path, edited) -> None:
    class Edited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    net, _ = replace_activations(Edited(), {"ReLU": LEAF.like("ReLU")}, sample=X)
    save_activations(net, tmp_path / "a.safetensors")
    assert load_activations(Edited(), tmp_path / "a.safetensors")(X).shape == X.shape
    Edited.forward = _edited(Edited.forward, edited)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"does not fit the network: The program of .*Edited.forward .* has changed"):
        load_activations(Edited(), tmp_path / "a.safetensors")


def test_a_comment_or_a_docstring_is_no_part_of_the_program() -> None:
    def plain(x: Tensor) -> Tensor:
        return x.relu() if x is not None else {"a", "b", "c"}  # type: ignore[return-value]

    def documented(x: Tensor) -> Tensor:
        """A docstring."""
        # A comment.
        return x.relu() if x is not None else {"a", "b", "c"}  # type: ignore[return-value]

    assert digest(plain.__code__) == digest(documented.__code__)


def test_an_edited_helper_is_refused_when_it_is_called(tmp_path) -> None:
    def between(net: Written, x: Tensor) -> Tensor:
        return F.relu(x)

    net, _ = replace_activations(written(between), {"ReLU": LEAF.like("ReLU")}, sample=X)
    save_activations(net, tmp_path / "a.safetensors")
    loaded = load_activations(written(_edited(between, lambda net, x: F.gelu(x))), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="has changed since its activations were replaced"):
        loaded(X)
    with pytest.raises(Exception, match="has changed since its activations were replaced"):
        torch.compile(loaded, fullgraph=True, backend="eager")(X)


def test_what_is_replaced_twice() -> None:
    base = written(lambda net, x: F.relu(net.relu(x)) + F.silu(x))
    net, first = replace_activations(base, {"relu_1": value(1.5)}, sample=X)
    again, second = replace_activations(net, {"relu_1": value(2.5), "SiLU": value(3.5), "relu": value(1)}, sample=X)
    assert {row.path for row in second.rows} == {"relu_1", "silu_1", "relu"}
    x = base.fc1(X)
    torch.testing.assert_close(again(X), base.fc2(value(2.5)(value(1)(x)) + value(3.5)(x)))
    assert torch.equal(second.restore(again)(X), net(X))
    assert torch.equal(first.restore(second.restore(again))(X), base(X))


class Around(nn.Module):
    """One module of its own within it, which calls functions as it does itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.relu = written(lambda net, x: torch.tanh(x)), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.relu(self.inner(self.relu(F.relu(self.inner(x))))))


def test_what_is_not_replaced_yet_is_found_as_before() -> None:
    base = Around()
    before = [(row.path, row.calls, row.shape) for row in find_activations(base, X) if row.calls]
    assert before == [
        ("inner.tanh_1", 2, (8, 6)), ("relu_1", 1, (8, 6)), ("relu_2", 1, (8, 6)), ("relu_3", 1, (8, 6)),
        ("silu_1", 1, (8, 6)),
    ]  # fmt: skip
    net, first = replace_activations(base, {"relu_1": value(1.5), "relu_2": value(2.5)}, sample=X)
    assert [(row.path, row.calls, row.shape) for row in find_activations(net, X) if row.calls] == before
    again, second = replace_activations(net, {"relu_3": value(3.5)}, sample=X)
    x = value(2.5)(value(1.5)(base.inner(X)))
    torch.testing.assert_close(again(X), F.silu(value(3.5)(base.inner(x))))
    assert torch.equal(second.restore(again)(X), net(X))
    assert torch.equal(first.restore(second.restore(again))(X), base(X))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: nn.DataParallel(Written()), r"wrapped in a DataParallel: give net.module"),
        (lambda: torch.compile(Written()), r"compiled by torch.compile: give net._orig_mod"),
        (lambda: torch.jit.script(nn.Sequential(nn.ReLU())), r"is a ScriptModule, whose program is fixed"),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU())), r"'0' is a ScriptModule"),
        (lambda: F.relu, r"The network is a function|builtin"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_networks_that_are_wrapped_or_scripted(net, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_activations(net(), {"ReLU": LEAF.like("ReLU")}, sample=X)


def test_a_graph_module_has_no_forward_of_its_own() -> None:
    graph = torch.fx.symbolic_trace(written(lambda net, x: F.silu(net.relu(x))))
    net, _ = replace_activations(graph, {"relu": value(1.5)}, sample=X)
    assert not torch.equal(net(X), graph(X))
    with pytest.raises(UserError, match=r"is a GraphModule of torch.fx.*: give the network that it was made from"):
        replace_activations(graph, {"SiLU": value(1.5)}, sample=X)


def test_a_method_that_is_called_from_outside_keeps_the_functions_of_the_base() -> None:
    base = written(lambda net, x: F.silu(net.relu(x)))
    net, _ = replace_activations(base, {"SiLU": value(1.5)}, sample=X)
    assert not torch.equal(net(X), base(X))
    assert torch.equal(net.between(X), base.between(X))
    net, _ = replace_activations(base, {"relu": value(1.5)}, sample=X)
    torch.testing.assert_close(net.between(X), F.silu(value(1.5)(X)))


def test_a_call_with_a_tensor_beside_its_input() -> None:
    weight = torch.tensor([0.3])
    net = written(lambda net, x: F.leaky_relu(x) + F.softplus(x, 2.0))
    assert [row.refused for row in find_activations(net, X) if row.calls] == ["", ""]
    prelu = written(lambda net, x: torch.clamp(x, min=0) + torch.prelu(x, weight))
    assert [row.kind for row in find_activations(prelu, X) if row.calls] == ["ReLU"]


def test_a_class_of_its_own_is_told_by_what_it_computes() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    class Cubed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    net = nn.Sequential(nn.Linear(6, 6), Swish(), Scale(), Softmax(), Cubed())
    assert [(row.path, row.kind) for row in find_activations(net, X)] == [("1", "SiLU"), ("4", "Cubed")]
