"""Two finished runs compared on the test images."""

from pathlib import Path

from aafit.errors import UserError
from aafit.experiment.data.batches import evaluation_batches
from aafit.experiment.data.datasets import load_dataset
from aafit.experiment.devices import choose_device
from aafit.experiment.runs.documents import Config
from aafit.experiment.runs.start import load_run
from aafit.training.compare import Comparison, compare


def base_of(folder: Path) -> Path:
    """The folder of the run that this one comes from.

    Raises:
        UserError: it comes from none.
    """
    parent = Config.of(folder).parent_of(folder)
    if parent is None:
        raise UserError(f"The run in {folder} has no base to compare with; name a second run folder.")
    return parent


def compare_runs(first: Path, second: Path, data_dir: Path | None, device: str) -> Comparison:
    """The networks of two run folders on the test images of the first one's data set, in float32.

    Raises:
        UserError: a run is not finished, or the data or the device are not here.
    """
    place = choose_device(device)
    base, net = (load_run(folder).float().to(place) for folder in (first, second))
    data = load_dataset(Config.of(first).run.dataset, data_dir).to(place)
    return compare(base, net, evaluation_batches(data.test))
