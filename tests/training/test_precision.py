"""Which arithmetic a name stands for."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from aafit.errors import UserError
from aafit.experiment.devices import choose_device
from aafit.training.precision import PRECISIONS, arithmetic, autocast, data_type

CPU = torch.device("cpu")


@pytest.fixture
def own_settings() -> Iterator[None]:
    """The process's settings, put back after the test."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark, threads = torch.backends.cudnn.benchmark, torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("precision", "parameters", "products"),
    [
        ("float32", torch.float32, torch.float32),
        ("tf32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("float64", torch.float64, torch.float64),
    ],
)
def test_types(precision: str, parameters: torch.dtype, products: torch.dtype) -> None:
    assert data_type(precision) == parameters
    net, x = nn.Linear(3, 2).to(parameters), torch.ones(1, 3, dtype=parameters)
    with autocast(precision, CPU):
        assert net(x).dtype == products
    assert net(x).dtype == net.weight.dtype == parameters


def test_the_table_above_is_complete() -> None:
    assert set(PRECISIONS) == {"float32", "tf32", "bf16", "float64"}


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("own_settings")
def test_only_tf32_allows_tf32(precision: str, start: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = start
    torch.backends.cudnn.benchmark = True
    allowed = precision == "tf32"
    with arithmetic(precision):
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cudnn.benchmark is False
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is start
    assert torch.backends.cudnn.benchmark is True


def test_numbers_too_small_to_matter_are_zero_while_it_computes() -> None:
    tiny = torch.tensor(1e-40)

    def stopped_run() -> None:
        with arithmetic("float32"):
            assert (tiny * 1).item() == 0
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped_run()
    assert (tiny * 1).item() > 0


@pytest.mark.usefixtures("own_settings")
def test_threads() -> None:
    before = torch.get_num_threads()
    with arithmetic("float32"):
        assert torch.get_num_threads() == before
    with arithmetic("float32", threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("given", "meant"), [("flaot32", "float32"), ("tf3", "tf32"), ("bf-16", "bf16"), ("FLOAT64", "float64")]
)
@pytest.mark.parametrize(
    "use",
    [data_type, lambda precision: arithmetic(precision).__enter__(), lambda precision: autocast(precision, CPU)],
    ids=["data_type", "arithmetic", "autocast"],
)
@pytest.mark.usefixtures("own_settings")
def test_an_unknown_precision(use: Callable[[str], object], given: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Unknown precision '{given}'. Did you mean '{meant}'"):
        use(given)


def test_the_device_that_is_there() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device() == choose_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu() -> None:
    assert choose_device("cuda").type == "cuda"
    assert choose_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:99", "cuda:-1", "cuda:x", "meta"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"Device '{name}' cannot be used here"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none() -> None:
    with pytest.raises(UserError, match="Device 'cuda' cannot be used here"):
        choose_device("cuda")
