"""Suites: the shipped ones against the paper, what a file may say, and what is refused, in which words."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from aafit.errors import UserError
from aafit.experiment.runs.suite import RunConfig, Suite, load_suite, shipped_suites

# name: (stage, parent, CNN layers, fully connected layers, p24sl)
STAGES = {
    "base-relu": ("1", None, "ReLU", "ReLU", False),
    "base-silu": ("1", None, "SiLU", "SiLU", False),
    "relu-ahaf-relu": ("2", "base-relu", "AHAF as ReLU", "AHAF as ReLU", False),
    "relu-leaf-relu": ("2", "base-relu", "LEAF as ReLU", "LEAF as ReLU", True),
    "silu-ahaf-silu": ("3", "base-silu", "AHAF as SiLU", "AHAF as SiLU", False),
    "silu-leaf-silu": ("3", "base-silu", "LEAF as SiLU", "LEAF as SiLU", True),
    "relu-fneuron-tanh": ("4", "base-relu", "ReLU", "F-Neuron as Tanh", False),
    "relu-leaf-tanh": ("4", "base-relu", "LEAF as ReLU", "LEAF as Tanh", True),
    "relu-fneuron-random": ("4", "base-relu", "ReLU", "F-Neuron random", False),
    "silu-fneuron-tanh": ("5", "base-silu", "SiLU", "F-Neuron as Tanh", False),
    "silu-leaf-tanh": ("5", "base-silu", "LEAF as SiLU", "LEAF as Tanh", True),
    "silu-fneuron-random": ("5", "base-silu", "SiLU", "F-Neuron random", False),
    "silu-ahaf-relu": ("6", "base-silu", "AHAF as ReLU", "AHAF as ReLU", False),
    "silu-leaf-relu": ("6", "base-silu", "LEAF as ReLU", "LEAF as ReLU", True),
    "relu-ahaf-silu": ("7", "base-relu", "AHAF as SiLU", "AHAF as SiLU", False),
    "relu-leaf-silu": ("7", "base-relu", "LEAF as SiLU", "LEAF as SiLU", True),
}


def test_shipped_suites() -> None:
    assert shipped_suites() == ["cpu", "demo", "identify", "paper", "regimes"]


@pytest.mark.parametrize("name", ["paper", "cpu", "demo"])
def test_the_seven_stages(name: str) -> None:
    suite = load_suite(name)
    recipe = [run for run in suite.runs if run.method != "gauss-newton"]
    found = {run.name: (run.stage, run.parent, run.cnn, run.fc, run.p24sl) for run in recipe}
    assert found == STAGES
    assert suite.seeds == (42,)
    for run in recipe:
        assert run.network == "KerasNet"
        assert run.train == ("all" if run.parent is None else "activations")
        assert (run.sharing, run.interval, run.knots) == ("layer", (-4.0, 4.0), 18)
        assert (run.optimizer, run.batch_size) == ("adam", 128)
        assert run.lr == (1e-2 if name == "demo" and run.parent is not None else None)
        assert run.augment
        assert run.shuffle
        assert not run.dspu4
        assert run.train_images is None


def test_the_lengths_of_the_paper() -> None:
    lengths = {(run.stage, run.start_epoch, run.end_epoch) for run in load_suite("paper").runs}
    assert lengths == {("1", 0, 100), *((stage, 100, 200) for stage in "23"), *((stage, 100, 500) for stage in "4567")}
    settings = {(run.dataset, run.precision, run.holdout) for run in load_suite("paper").runs}
    assert settings == {("CIFAR-10", "float32", 0)}


def test_the_cpu_suite_is_the_paper_but_shorter_and_with_held_out_images() -> None:
    suite, paper = load_suite("cpu"), load_suite("paper")
    assert {(run.dataset, run.holdout) for run in suite.runs} == {("CIFAR-10", 5000)}
    assert all(run.epochs <= paper.run(run.name).epochs / 3 for run in suite.runs)


def test_the_suites_behind_the_results_are_the_paper_with_held_out_images() -> None:
    results = Path(__file__).parents[3] / "docs" / "results"
    paper, full, identified = (
        load_suite("paper"),
        load_suite(results / "full.toml"),
        load_suite(results / "full-identify.toml"),
    )
    assert full.runs == tuple(run.model_copy(update={"holdout": 5000}) for run in paper.runs)
    for run, other in zip(full.runs, identified.runs, strict=True):
        # p24sl is a matter of gradient steps.
        by_method = {"method", "epochs", "start_epoch", "p24sl", "prior"} if run.parent else set()
        assert run.model_dump(exclude=by_method) == other.model_dump(exclude=by_method)
        assert other.method == ("gauss-newton" if run.parent else run.method)


def test_the_wider_fneurons_differ_from_the_papers_in_their_centres_alone() -> None:
    results = Path(__file__).parents[3] / "docs" / "results"
    paper = load_suite(results / "full-identify.toml").run("silu-fneuron-tanh")
    base, *wider = load_suite(results / "interval.toml").runs
    assert base == load_suite(results / "full-identify.toml").run("base-silu")
    for run in wider:
        own = {"name", "stage", "interval", "knots"}
        assert run.model_dump(exclude=own) == paper.model_dump(exclude=own)
        (low, high), (left, right) = run.interval, paper.interval
        assert abs((high - low) / (run.knots - 1) - (right - left) / (paper.knots - 1)) < 0.02


def test_demo_needs_no_download_and_is_short() -> None:
    suite = load_suite("demo")
    assert {run.dataset for run in suite.runs} == {"MNIST-5k"}
    assert sum(run.epochs for run in suite.runs) <= 80
    identified = {run.name: run for run in suite.runs if run.method == "gauss-newton"}
    assert set(identified) == {"relu-fneuron-identified", "silu-fneuron-identified"}
    for run in identified.values():
        beside = next(one for one in suite.runs if one.name == run.name.replace("identified", "tanh"))
        assert (run.stage, run.parent, run.cnn, run.fc) == (beside.stage, beside.parent, beside.cnn, beside.fc)


def test_regimes_set_every_way_of_training_side_by_side() -> None:
    suite = load_suite("regimes")
    for network, sharings in (("KerasNet", ("layer", "neuron")), ("LeNet-5", ("layer",))):
        runs = [run for run in suite.runs if run.network == network]
        assert {run.dataset for run in runs} == {"CIFAR-10" if network == "KerasNet" else "Fashion-MNIST"}
        regimes = {(run.cnn, run.sharing, run.train, run.dspu4) for run in runs if run.adaptive}
        assert regimes == {
            (f"{family} as {start}", sharing, train, dspu4)
            for family in ("AHAF", "LEAF")
            for start in ("ReLU", "SiLU")
            for sharing in sharings
            for train, dspu4 in (("all", False), ("all", True), ("activations", False))
        }
        assert {run.cnn for run in runs if not run.adaptive} == {"ReLU", "SiLU"}
        for run in runs:
            assert run.fc == run.cnn
            assert (run.parent is not None) == (run.train == "activations")
            if run.parent is not None:
                assert run.cnn.endswith(f"as {suite.run(run.parent).cnn}")


HEAD = 'name = "mine"\n'
BASE = '[[runs]]\nname = "base"\nepochs = 3\ndataset = "MNIST-5k"\n'
CHILD = '[[runs]]\nname = "child"\nparent = "base"\nepochs = 2\n'
LEAF = 'fc = "LEAF as Tanh"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def test_a_child_goes_on_with_what_its_parent_is(tmp_path: Path) -> None:
    head = 'name = "mine"\nseeds = [1, 2]\n[defaults]\nbatch_size = 64\nnetwork = "LeNet-5"\nholdout = 10\n'
    silu = 'cnn = "SiLU"\nfc = "SiLU"\ntrain_images = 500\n'
    # The child stands first: the order of the tables does not matter.
    suite = load_suite(written(tmp_path, head + CHILD + LEAF + BASE + silu))
    base, child = suite.runs
    assert (base.name, child.name) == ("base", "child")
    assert (child.network, child.dataset, child.holdout, child.train_images) == ("LeNet-5", "MNIST-5k", 10, 500)
    assert (child.cnn, child.fc) == ("SiLU", "LEAF as Tanh")
    assert (child.start_epoch, child.end_epoch) == (3, 5)
    assert (base.train, child.train) == ("all", "activations")
    assert base.batch_size == child.batch_size == 64
    assert suite.seeds == (1, 2)


def test_the_own_table_wins_over_the_parent_and_the_defaults(tmp_path: Path) -> None:
    text = HEAD + "[defaults]\nlr = 0.1\n" + BASE + CHILD + LEAF + 'lr = 0.2\ntrain = "all"\nsharing = "neuron"\n'
    base, child = load_suite(written(tmp_path, text)).runs
    assert (base.lr, child.lr) == (0.1, 0.2)
    assert (base.sharing, child.sharing) == ("layer", "neuron")
    assert child.train == "all"


def test_init_from_is_found_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.bin").write_bytes(b"weights")
    run = load_suite(written(tmp_path, HEAD + BASE + 'init_from = "base.bin"\n')).runs[0]
    assert run.init_from == tmp_path / "base.bin"


WRONG = {
    "not TOML": ("name = ", ["not a TOML file"]),
    "typo at the top": ('nmae = "x"\n' + BASE, ["'nmae'", "Did you mean 'name'?"]),
    "typo in defaults": (HEAD + "[defaults]\nbatchsize = 2\n" + BASE, ["[defaults]", "Did you mean 'batch_size'?"]),
    "typo in a run": (HEAD + BASE + "epoch = 2\n", ["'base'", "'epoch'", "Did you mean 'epochs'?"]),
    "typo in a value": (HEAD + BASE + 'optimizer = "adamm"\n', ["'base'", "optimizer", "Did you mean 'adam'?"]),
    "a parent as default": (HEAD + '[defaults]\nparent = "base"\n' + BASE, ["'parent' belongs to one run"]),
    "no name": (BASE, ["'name' is missing"]),
    "no runs": (HEAD, ["'runs' is missing"]),
    "runs is no list": (HEAD + "runs = 3\n", ["runs = 3", "[[runs]]"]),
    "a run is no table": (HEAD + "runs = [3]\n", ["number 1 has no name"]),
    "a run has no name": (HEAD + "[[runs]]\nepochs = 1\n", ["number 1 has no name"]),
    "a run has no epochs": (HEAD + '[[runs]]\nname = "base"\n', ["'base'", "'epochs' is missing"]),
    "name is no folder": (HEAD + '[[runs]]\nname = "a/b"\nepochs = 1\n', ["'a/b'", "folder"]),
    "suite name is no folder": ('name = "../x"\n' + BASE, ["'../x'", "folder"]),
    "seeds are texts": (HEAD + 'seeds = ["42"]\n' + BASE, ["seeds = '42'", "integer"]),
    "seed twice": (HEAD + "seeds = [1, 1]\n" + BASE, ["seeds = [1, 1]"]),
    "no seeds": (HEAD + "seeds = []\n" + BASE, ["seeds = []"]),
    "negative seed": (HEAD + "seeds = [-1]\n" + BASE, ["seeds = [-1]"]),
    "name twice": (HEAD + BASE + BASE, ["two runs", "'base'"]),
    "no such parent": (HEAD + BASE + CHILD.replace('parent = "base"', 'parent = "bose"'), ["Did you mean 'base'?"]),
    "parent is no text": (HEAD + BASE + CHILD.replace('"base"', "3"), ["'child'", "parent = 3"]),
    "own parent": (HEAD + BASE + 'parent = "base"\n', ["circle", "base -> base"]),
    "circle": (
        HEAD + CHILD.replace('"base"', '"b"') + CHILD.replace("child", "b").replace('"base"', '"child"'),
        ["circle", "child -> b -> child"],
    ),
    "other network": (HEAD + BASE + CHILD + LEAF + 'network = "LeNet-5"\n', ["'LeNet-5'", "'KerasNet'", "network"]),
    "other data set": (HEAD + BASE + CHILD + LEAF + 'dataset = "CIFAR-10"\n', ["'CIFAR-10'", "'MNIST-5k'"]),
    "other holdout": (HEAD + BASE + CHILD + LEAF + "holdout = 100\n", ["holdout = 100", "has 0"]),
    "other start": (HEAD + BASE + CHILD + LEAF + "start_epoch = 1\n", ["start_epoch = 1", "ends at 3"]),
    "unknown network": (HEAD + BASE + 'network = "KerasNett"\n', ["network", "Did you mean 'KerasNet'?"]),
    "unknown data set": (HEAD + BASE.replace("MNIST-5k", "CIFAR10"), ["data set", "Did you mean 'CIFAR-10'?"]),
    "unknown activation": (HEAD + BASE + 'cnn = "ReLUU"\n', ["cnn", "Did you mean 'ReLU'?"]),
    "a degree of none": (
        HEAD + BASE + 'cnn = "Polynomial(degree=0) as ReLU"\n',
        ["cnn", "'Polynomial(degree=1) as ReLU'?"],
    ),
    "knots in a text": (
        HEAD + BASE + 'fc = "F-Neuron(knots=34) as Tanh"\n',
        ["knots is a setting of its own; write 'F-Neuron as Tanh' and knots = 34."],
    ),
    "unknown start": (HEAD + BASE + CHILD + 'fc = "AHAF as Tanh"\n', ["'child'", "fc", "AHAF as ReLU"]),
    "nothing adaptive to train": (HEAD + BASE + CHILD, ["'child'", "train = 'activations'", "'ReLU'"]),
    "2SPU-4 without adaptive": (HEAD + BASE + "dspu4 = true\n", ["dspu4", "adaptive"]),
    "2SPU-4 of activations only": (HEAD + BASE + CHILD + LEAF + "dspu4 = true\n", ["dspu4", "train = 'all'"]),
    "epochs that train nothing": (HEAD + BASE + 'train = "none"\n', ["train = 'none'", "epochs = 3"]),
    "no such checkpoint": (HEAD + BASE + 'init_from = "gone.bin"\n', ["init_from", "gone.bin"]),
    "seed of 65 bits": (HEAD + "seeds = [18446744073709551616]\n" + BASE, ["seeds = [18446744073709551616]", "2^64"]),
    "epochs without end": (HEAD + BASE.replace("3", "9" * 20), ["epochs = 99999999999999999999", "1000000000"]),
    "batch without end": (HEAD + BASE + f"batch_size = {10**30}\n", ["batch_size = 1", "1000000000"]),
    "a parent where there is none": (HEAD + BASE + 'parent = "other"\n', ["'other'", "There is none to choose from"]),
    "prior of gradient steps": (HEAD + BASE + "prior = 0.1\n", ["prior = 0.1 needs method = 'gauss-newton'"]),
    "no step of Gauss-Newton": (
        HEAD + BASE.replace("3", "0") + 'cnn = "LEAF as ReLU"\ntrain = "activations"\nmethod = "gauss-newton"\n',
        ["needs at least one step"],
    ),
    "an optimizer for nothing": (
        HEAD + BASE.replace("3", "0") + 'train = "none"\nresume_optimizer = true\n',
        ["resume_optimizer = true continues gradient steps, but train = 'none' takes none"],
    ),
    "negative epochs": (HEAD + BASE.replace("3", "-3"), ["epochs = -3"]),
    "half an epoch": (HEAD + BASE.replace("3", "1.5"), ["epochs = 1.5"]),
    "epochs as text": (HEAD + BASE.replace("3", '"3"'), ["epochs = '3'"]),
    "true epochs": (HEAD + BASE.replace("3", "true"), ["epochs = True"]),
    "no batch": (HEAD + BASE + "batch_size = 0\n", ["batch_size = 0"]),
    "no step": (HEAD + BASE + "lr = 0\n", ["lr = 0"]),
    "endless step": (HEAD + BASE + "lr = inf\n", ["lr"]),
    "no train images": (HEAD + BASE + "train_images = 0\n", ["train_images = 0"]),
    "interval reversed": (HEAD + BASE + "interval = [4, -4]\n", ["interval = [4, -4]"]),
    "interval of one": (HEAD + BASE + "interval = [4]\n", ["interval"]),
    "interval endless": (HEAD + BASE + "interval = [-inf, 4]\n", ["interval"]),
    "two lines": (HEAD + 'description = "two\\nlines"\n' + BASE, ["description: 'two\\nlines' contains"]),
    "a stage with an escape": (HEAD + BASE + 'stage = "\\u001b[2J"\n', ["'base'", "stage: '\\x1b[2J' contains"]),
    "a long stage": (HEAD + BASE + f'stage = "{"x" * 301}"\n', ["stage", "has 301 characters"]),
    "a long name": (HEAD + BASE.replace("base", "x" * 5000), ["folder's name", "(5,002 characters)"]),
    "NaN as prior": (HEAD + BASE + "prior = nan\n", ["prior = nan"]),
    "infinite prior": (HEAD + BASE + "prior = inf\n", ["prior = inf"]),
    "NaN as budget": (HEAD + BASE + "budget = nan\n", ["budget = nan"]),
    "NaN as fraction": (HEAD + BASE + "heldout = nan\n", ["heldout = nan"]),
    "NaN as step": (HEAD + BASE + "lr = nan\n", ["lr = nan"]),
    "NaN as interval": (HEAD + BASE + "interval = [nan, 4.0]\n", ["interval"]),
    "a deep value": (HEAD + BASE + f"lr = {'[' * 5000}{']' * 5000}\n", ["nested too deeply"]),
    "a value less deep": (HEAD + BASE + f"lr = {'[' * 150}{']' * 150}\n", ["'base'", "lr = "]),
    "epochs of many digits": (HEAD + BASE.replace("3", "9" * 5000), ["not a TOML file", "5000 digits"]),
    "a million knots": (HEAD + BASE + "knots = 1000000\n", ["knots = 1000000"]),
    "a wide interval": (HEAD + BASE + "interval = [-1e300, 1e300]\n", ["interval"]),
    "a narrow interval": (HEAD + BASE + "interval = [4.0, 4.00001]\n", ["interval = [4, 4.00001] is too narrow"]),
    "two knots": (HEAD + BASE + CHILD + LEAF + "knots = 2\n", ["'child'", "knots = 2"]),
    "pieces": (HEAD + BASE + CHILD + LEAF + "pieces = 16\n", ["'child'", "pieces = 16 is now knots = 18"]),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files(text: str, said: list[str], tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_suite(file)
    message = str(error.value)
    assert "\n" not in message or said == ["not a TOML file"]
    for part in [str(file), *said]:
        assert part in message


def test_both_a_parent_and_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(UserError, match="exclude each other"):
        load_suite(written(tmp_path, HEAD + BASE + CHILD + LEAF + 'init_from = "x.bin"\n'))


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(HEAD + BASE, encoding="utf-8-sig")
    assert load_suite(file).name == "mine"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a\nb", "x/" * 3000])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match=r"has [56],000 characters|contains the character"):
        load_suite(name)


def test_unknown_suite() -> None:
    with pytest.raises(UserError, match="Did you mean 'paper'"):
        load_suite("papr")


def test_a_run_is_frozen_and_strict() -> None:
    run = RunConfig(name="base", epochs=1)
    with pytest.raises(ValidationError):
        run.epochs = 2  # type: ignore[misc]
    with pytest.raises(UserError, match="'name' is missing"):
        RunConfig.checked({"epochs": 1})


def test_suites_made_in_code_are_checked_too() -> None:
    base = RunConfig(name="base", epochs=1)
    with pytest.raises(UserError, match="2 runs have the name 'base'"):
        Suite.checked({"name": "mine", "runs": [base, base]})
    with pytest.raises(UserError, match="has no runs"):
        Suite.checked({"name": "mine", "runs": []})
    child = RunConfig(name="child", parent="base", epochs=1, fc="AHAF as ReLU", train="activations")
    with pytest.raises(UserError, match="ends at 1"):
        Suite.checked({"name": "mine", "runs": [base, child]})


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        (["base-silu"], ["base-silu"]),
        (["relu-leaf-tanh"], ["base-relu", "relu-leaf-tanh"]),
        (["stage3"], ["base-silu", "silu-ahaf-silu", "silu-leaf-silu"]),
        (["stage4"], ["base-relu", "relu-fneuron-tanh", "relu-leaf-tanh", "relu-fneuron-random"]),
        (["stage2", "base-silu"], ["base-relu", "base-silu", "relu-ahaf-relu", "relu-leaf-relu"]),
    ],
)
def test_only(names: list[str], runs: list[str]) -> None:
    assert [run.name for run in load_suite("paper").only(names).runs] == runs


@pytest.mark.parametrize(
    ("names", "said"), [(["stage8"], "stage7"), (["base-rely"], "Did you mean 'base-relu'"), ([], "no run was chosen")]
)
def test_only_what_is_there(names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_suite("paper").only(names)


def test_scaled_keeps_the_epochs_numbered_through() -> None:
    suite = load_suite("paper").scaled(0.03)
    assert {(run.stage, run.start_epoch, run.end_epoch) for run in suite.runs} == {
        ("1", 0, 3),
        *((stage, 3, 6) for stage in "23"),
        *((stage, 3, 15) for stage in "4567"),
    }
    assert {run.epochs for run in load_suite("paper").scaled(1e-6).runs} == {1}


def test_scaled_leaves_what_is_only_evaluated() -> None:
    suite = Suite(name="mine", runs=(RunConfig(name="base", epochs=0, train="none", start_epoch=100),)).scaled(2)
    assert (suite.runs[0].start_epoch, suite.runs[0].epochs) == (100, 0)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_scaled_by_nothing(factor: float) -> None:
    with pytest.raises(UserError, match="cannot be scaled"):
        load_suite("paper").scaled(factor)
