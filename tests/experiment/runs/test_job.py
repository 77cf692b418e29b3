"""Jobs: what makes two runs the same, and what is said where they are not."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import write_done

from aafit.errors import UserError
from aafit.experiment.runs import job as job_module
from aafit.experiment.runs.documents import Done, Result, save_json
from aafit.experiment.runs.job import Job, differences, is_done, jobs_of, set_aside
from aafit.experiment.runs.suite import RunConfig, Suite, load_suite
from aafit.files import sha256_of

BASE = RunConfig(name="base", epochs=3)


def job(folder: Path = Path("runs"), seed: int = 42, **settings: Any) -> Job:
    return Job(config=BASE.model_copy(update=settings), seed=seed, folder=folder)


def config(of: Job) -> dict[str, Any]:
    return {
        "hash": of.settings_hash,
        "run": of.config.model_dump(mode="json"),
        "seed": of.seed,
        "parent_hash": of.parent_hash,
    }


def test_the_hash_stays() -> None:
    """A changed hash makes every finished run of every user one with other settings: this must not happen unseen."""
    assert job().settings_hash == "ca205b1c1845c8a9f3f3f74a3410b727a13e14b8097acacd9cfe31a7e3a3a080"


def test_the_hash_of_an_identification_stays() -> None:
    found = job(train="activations", method="gauss-newton", cnn="LEAF as ReLU", prior="none")
    assert found.settings_hash == "f10858af664f89978afa09b01e0018aaae19e276f660c1f6e96b96b674135630"


@pytest.mark.parametrize(
    "settings",
    [{"name": "other"}, {"stage": "7"}, {"lr": 1e-3}],
    ids=str,
)
def test_the_same_run(settings: dict[str, Any]) -> None:
    assert job(**settings).settings_hash == job().settings_hash


def test_where_it_runs_does_not_make_another_run(tmp_path: Path) -> None:
    moved = job().model_copy(update={"folder": tmp_path, "device": "cuda", "threads": 1, "wandb": True})
    assert moved.settings_hash == job().settings_hash


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 4}, "epochs: 3 there, 4 here"),
        ({"cnn": "SiLU"}, 'cnn: "ReLU" there, "SiLU" here'),
        ({"lr": 0.1}, "lr: 0.001 there, 0.1 here"),
        ({"p24sl": True}, "p24sl: false there, true here"),
        ({"interval": (-2.0, 2.0)}, "interval: [-4.0, 4.0] there, [-2.0, 2.0] here"),
        ({"train_images": 100}, "train_images: null there, 100 here"),
        ({"resume_optimizer": True}, "resume_optimizer: false there, true here"),
    ],
)
def test_another_run(settings: dict[str, Any], said: str) -> None:
    assert job(**settings).settings_hash != job().settings_hash
    assert differences(config(job()), job(**settings)) == [said]


def test_another_seed_or_parent() -> None:
    assert differences(config(job()), job(seed=1)) == ["seed: 42 there, 1 here"]
    child = job().model_copy(update={"parent_hash": "abc"})
    assert child.settings_hash != job().settings_hash
    assert differences(config(job()), child) == ["its parent has other settings"]


def test_no_difference() -> None:
    assert differences(config(job()), job()) == []
    assert differences(config(job()), job(lr=1e-3)) == []


def test_a_setting_that_only_one_version_knows() -> None:
    stored = config(job())
    stored["hash"] = "of an older version"
    del stored["run"]["shuffle"]
    assert differences(stored, job()) == ["shuffle: unknown there, true here"]


def test_an_imported_checkpoint_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "b.bin").write_bytes(b"one")
    first, same = job(init_from=tmp_path / "a.bin"), job(init_from=tmp_path / "b.bin")
    assert first.settings_hash == same.settings_hash
    stored = config(first)
    (tmp_path / "b.bin").write_bytes(b"another")
    assert differences(stored, same) == ["init_from: another checkpoint"]
    (tmp_path / "b.bin").unlink()
    with pytest.raises(UserError, match=r"b\.bin cannot be read"):
        _ = same.settings_hash


def test_a_parent_changed_far_above_changes_all_below() -> None:
    suite = load_suite("paper")
    before = {key: one.settings_hash for key, one in jobs_of(suite, Path("runs")).items()}
    assert len(set(before.values())) == 16
    longer = tuple(run.model_copy(update={"batch_size": 64}) if run.name == "base-relu" else run for run in suite.runs)
    after = {key: one.settings_hash for key, one in jobs_of(Suite(name="paper", runs=longer), Path("runs")).items()}
    changed = {name for name, seed in before if before[name, seed] != after[name, seed]}
    assert changed == {run.name for run in suite.runs if "base-relu" in (run.name, run.parent)}


def test_folders_and_order(tmp_path: Path) -> None:
    jobs = jobs_of(load_suite("demo").with_seeds([1, 2]), tmp_path, data_dir=tmp_path)
    assert len(jobs) == 36
    child = jobs["relu-leaf-tanh", 2]
    assert child.folder == tmp_path / "demo" / "relu-leaf-tanh" / "seed2"
    assert child.parent == tmp_path / "demo" / "base-relu" / "seed2"
    assert child.parent_hash == jobs["base-relu", 2].settings_hash
    keys = list(jobs)
    for (name, seed), one in jobs.items():
        assert one.config.parent is None or keys.index((one.config.parent, seed)) < keys.index((name, seed))
    assert Job.model_validate_json(child.model_dump_json()) == child


def test_done_or_not(tmp_path: Path) -> None:
    one = job(tmp_path)
    assert not is_done(one)
    save_json(tmp_path / "config.json", config(one))
    assert not is_done(one)
    write_done(tmp_path, one.settings_hash)
    assert is_done(one)
    with pytest.raises(UserError, match=r"epochs: 3 there, 5 here.*--fresh"):
        is_done(job(tmp_path, epochs=5))


@pytest.mark.parametrize("content", [None, b"", b"others"])
def test_a_finished_run_without_its_network_is_not_done(tmp_path: Path, content: bytes | None) -> None:
    one, network = job(tmp_path), tmp_path / "network.safetensors"
    save_json(tmp_path / "config.json", config(one))
    network.write_bytes(b"weights")
    result = Result(tuned_parameters=1, epochs=3)
    digests = {"network.safetensors": sha256_of(network)}
    Done(hash=one.settings_hash, sha256=digests, finished="", seconds=1.0, result=result).write(tmp_path)
    assert is_done(one)
    network.unlink() if content is None else network.write_bytes(content)
    with pytest.raises(UserError, match=r"network\.safetensors is missing, truncated or was altered"):
        is_done(one)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_damaged_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json .*--fresh"):
        is_done(job(tmp_path))


def test_set_aside_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "seed42"
    assert set_aside(folder) is None
    for content in ("first", "second"):
        folder.mkdir()
        (folder / "log.txt").write_text(content)
        assert set_aside(folder) is not None
    assert not folder.exists()
    assert {file.read_text() for file in tmp_path.glob("seed42.old-*/log.txt")} == {"first", "second"}


def test_a_checkpoint_is_read_once_as_long_as_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(job_module, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    before = {job(init_from=file).settings_hash for _ in range(3)}
    assert (len(before), read) == (1, [file])
    file.write_bytes(b"another")
    assert job(init_from=file).settings_hash not in before
