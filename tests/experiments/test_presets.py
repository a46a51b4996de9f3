"""The papers' protocols: what a preset sets beside the rates, and that figures of two protocols are
not mixed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from metalearn import experiments
from metalearn.__main__ import main
from metalearn.experiments import presets
from metalearn.experiments.experiment import Experiment
from metalearn.experiments.presets import preset


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Omniglot: 3 alphabets of 20 characters with 4 drawings each."""
    top = tmp_path_factory.mktemp("omniglot") / "data"
    generator = torch.Generator().manual_seed(0)
    for alphabet in "abc":
        for character in range(20):
            folder = top / "omniglot-py" / alphabet / f"character{character:02}"
            folder.mkdir(parents=True)
            for drawing in range(4):
                save_image(
                    (torch.rand(1, 12, 12, generator=generator) > 0.3).float(),
                    folder / f"{drawing}.png",
                )
    return top


def test_finn_takes_characters_at_random_and_as_many_queries_as_shots(root):
    for shots in (1, 2):
        experiment = Experiment(dataset="omniglot", root=str(root), preset="finn2017", shots=shots)
        tasks = experiment.testing_tasks(tasks=2)
        assert tasks.queries == experiment.training_tasks().queries == shots
        assert tasks.settings()["data"]["protocol"] == "finn"
        assert tasks.settings()["data"]["rotations"] is True


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("quick", "omniglot", ("vinyals", 15)),
        ("finn2017", "omniglot", ("finn", None)),
        ("raghu2020", "omniglot", ("finn", None)),
        ("finn2017", "mini-imagenet", ("vinyals", None)),
        ("raghu2020", "mini-imagenet", ("vinyals", 15)),
        ("boil2021", "mini-imagenet", ("vinyals", 15)),
    ],
)
def test_every_preset_sets_split_and_queries(name, dataset, expected):
    found = preset(name, dataset)
    assert (found.protocol, found.queries) == expected


@pytest.mark.parametrize("name", ["finn2017", "raghu2020", "boil2021"])
def test_what_differs_from_the_paper_is_said_in_print_and_in_the_docstring(name, capsys, root):
    dataset = "mini-imagenet" if name == "boil2021" else "omniglot"
    assert preset(name, dataset).differs
    assert "differs" in presets.PRESETS[name].__doc__
    if dataset == "omniglot":
        small = "--steps 1 --test_tasks 2 --hidden 4 --size 16 --meta_batch 2 --progress false"
        places = ["--root", str(root), "--runs", str(root / "runs")]
        assert main(["train", "--dataset", dataset, "--preset", name, *small.split(), *places]) == 0
        printed = capsys.readouterr().out
        assert "from the paper: the head starts as torch draws" in printed
        assert (
            "characters split by protocol finn, turned characters too; 1 query a class; norm: batch"
            " statistics" in printed
        )


def test_the_setting_wins_over_the_preset(root):
    asked = {"protocol": "finn", "test_rotations": False, "queries": 2}
    experiment = Experiment(dataset="omniglot", root=str(root), **asked)
    tasks = experiment.testing_tasks(tasks=1)
    assert tasks.queries == 2 and tasks.settings()["data"]["rotations"] is False


def test_a_split_decides_the_run_and_is_kept_with_it(root, tmp_path):
    few = {
        "size": 16,
        "hidden": 4,
        "steps": 1,
        "meta_batch": 2,
        "train_queries": 1,
        "queries": 2,
        "test_tasks": 2,
    }
    experiment = Experiment(
        dataset="omniglot", root=str(root), protocol="finn", runs=str(tmp_path), **few
    )
    assert experiment.to_dict("maml")["protocol"] == "finn"
    assert "protocol" not in Experiment(dataset="glyphs").to_dict("maml")
    experiment.train("maml", progress=False)
    path = experiment.checkpoint("maml")
    run = experiments.restored(path, root=str(root))
    assert run.experiment.settings().protocol == "finn"
    assert "--protocol finn" in run.command()
    with pytest.raises(ValueError, match=r"protocol='finn'.*leave --protocol out"):
        experiments.restored(path, root=str(root), protocol="vinyals")
    assert experiments.restored(path, dataset="glyphs").experiment.protocol is None


@pytest.mark.parametrize("asked", [{"protocol": "finn"}, {"test_rotations": True}])
@pytest.mark.parametrize("dataset", ["glyphs", "mini-imagenet"])
def test_other_data_sets_have_no_protocol(asked, dataset):
    with pytest.raises(ValueError, match="divides the classes of Omniglot or CUB"):
        Experiment(dataset=dataset, **asked)


@pytest.mark.parametrize("protocol", ["Finn", "raghu"])
def test_an_unknown_protocol_is_refused_with_those_there_are(protocol):
    with pytest.raises(ValueError, match="vinyals or finn or lake"):
        Experiment(dataset="omniglot", protocol=protocol)
