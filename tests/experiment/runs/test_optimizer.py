"""A run that continues a finished one with its optimizer is bit-identical to a single longer run."""

import pytest
from small_runs import LEAF, base_job, child_job, execute_on_few, untimed_rows

from aafit.errors import UserError
from aafit.experiment.runs.config import RunConfig
from aafit.experiment.runs.execute import execute

KINDS = {
    "adam": {"network": "KerasNet"},
    "rmsprop": {"optimizer": "rmsprop", "holdout": 50},
    "2SPU-4 with p24sl": {**LEAF, "train": "all", "dspu4": True},
}


def going_on(parent, **settings):
    same = parent.config.model_dump(mode="json", exclude={"name", "start_epoch", "epochs"})
    run = {**same, "name": "more", "start_epoch": parent.config.end_epoch, "epochs": 2, **settings}
    folder = parent.folder.parent.parent / "more" / parent.folder.name
    update = {"config": RunConfig.checked(run), "folder": folder, "parent": parent.folder}
    return parent.model_copy(update={**update, "parent_hash": parent.settings_hash})


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_four_epochs_are_two_and_two(tmp_path, settings):
    whole, first = (base_job(tmp_path / name, **settings, epochs=epochs) for name, epochs in (("a", 4), ("b", 2)))
    second, afresh = going_on(first, resume_optimizer=True), going_on(first, name="afresh")
    afresh = afresh.model_copy(update={"folder": tmp_path / "afresh"})
    for job in (whole, first, second, afresh):
        execute_on_few(job)
    network = (whole.folder / "network.safetensors").read_bytes()
    assert (second.folder / "network.safetensors").read_bytes() == network
    assert (afresh.folder / "network.safetensors").read_bytes() != network
    assert untimed_rows(second.folder)[2:] == untimed_rows(whole.folder)[4:]


def test_of_activations_that_were_tuned_first_all_is_trained_then(tmp_path):
    """The optimizer's state of the activations is continued; the other parameters start anew."""
    base = base_job(tmp_path, epochs=1)
    tuned = child_job(base, epochs=1)
    more = going_on(tuned, train="all", resume_optimizer=True)
    for job in (base, tuned, more):
        execute(job)
    assert (more.folder / "done.json").exists()


def test_what_cannot_be_resumed_is_refused_and_leaves_no_settings(tmp_path):
    base = base_job(tmp_path, epochs=1)
    execute(base)
    evaluated = child_job(base, "evaluated", train="none", epochs=0)
    execute(evaluated)
    wrong = {
        "activations .* are replaced": child_job(base, "replaced", resume_optimizer=True),
        "there is no parent": base_job(tmp_path / "other", resume_optimizer=True),
        "trained by adam, not by rmsprop": going_on(base, optimizer="rmsprop", resume_optimizer=True),
        "saved no optimizer": going_on(evaluated, train="activations", resume_optimizer=True),
    }
    for message, job in wrong.items():
        with pytest.raises(UserError, match=message):
            execute(job)
        assert not (job.folder / "config.json").exists()
