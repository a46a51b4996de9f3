"""Is disagreement of raters better predicted directly, and what is it worth in dividing work?

    python -m benchmarks.disagreement --seeds 0,1,2 --results benchmarks/results/disagreement.jsonl

Direct prediction against prediction via the votes (Raghu et al. 2019, arXiv:1807.01771), where the
theory holds and on real votes, and the division of work between a network and people (Raghu et al.
2019, arXiv:1903.12220). Parts:

- hidden: raters see a feature that the network does not; two small networks
- probes: every layer of the published CIFAR ResNet-20, trained on votes of CIFAR-10N (3 raters) and
  tested on those of CIFAR-10H (about 51)
- heads: small networks on its last features, trained end to end by four losses
- triage: algorithm = that network, human = one vote of CIFAR-10H
- network: ResNet-18 end to end, from a random and from a pretrained start (for a GPU)

Finished parts stay in `--folder`, so a command that was stopped goes on. The data folder needs
cifar10, votes and weights; see `transfer.experts.cifar_votes`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from metalearn.analysis.networks.probes import features_of, ridge_readout
from metalearn.episodes import Examples
from metalearn.models.cifar_resnet import cifar_resnet
from metalearn.models.weights import IMAGENET, fit, read
from metalearn.network.modes import evaluation_mode
from metalearn.runtime.files import write_atomically
from metalearn.runtime.options import Listed, numbers
from metalearn.runtime.options import device as usable
from metalearn.runtime.tables import plain
from transfer import copied, disagreement_probes, everywhere, finetune, fresh, initialize, triage
from transfer import disagreement as disagreement_of
from transfer.experts.cifar_votes import VotedImages, VotedSplit, cifar10_votes
from transfer.experts.hidden_feature import hidden_case
from transfer.experts.probes import Contest, contest_of
from transfer.experts.votes import spread_of_shares
from transfer.finetuning.objectives import SoftVotes, SquaredError
from transfer.models import build

from .harness.rows import Row, append, choose, keep_in, origin, run_benchmark
from .pages.disagreement import report

ABOVE = 0.3  # a high disagreement of test items
RATERS = (3, 10)  # of the case with a hidden feature
FEATURES = "layer3.2"  # the last features of ResNet-20
WIDTHS = (64, 128)  # of a head's input and hidden layer
SHARES = 101  # points of a triage curve
SHIFT = 4  # pixels of padding of random crops


@dataclass(frozen=True)
class Study:
    """The settings that decide the numbers of a part."""

    images: int
    test_images: int
    head_steps: int
    hidden_items: int
    hidden_steps: int
    draws: int
    network: str
    start: str
    network_steps: int
    device: str
    root: str

    @property
    def record(self) -> Row:
        """The settings without places."""
        return {name: value for name, value in asdict(self).items() if name != "root"}


QUICK: dict[str, Any] = {
    "images": 400,
    "test_images": 500,
    "head_steps": 20,
    "hidden_items": 500,
    "hidden_steps": 20,
    "draws": 20,
    "network": "cbr_tiny",
    "network_steps": 2,
}


def disagreement(
    parts: Listed = "hidden,probes,heads,triage",
    seeds: Listed = "0,1,2",
    images: int = 16_000,
    test_images: int = 10_000,
    head_steps: int = 1_500,
    hidden_items: int = 8_000,
    hidden_steps: int = 600,
    draws: int = 1_000,
    network: str = "resnet18",
    start: str = "",
    network_steps: int = 8_000,
    device: str = "cpu",
    root: str | None = None,
    folder: str = "runs/disagreement",
    page: str | None = None,
    quick: bool = False,  # noqa: FBT001, FBT002  # a command line setting
    results: str | None = None,
) -> None:
    """Measure the parts, a row for each part and seed.

    Args:
        parts: which of hidden, probes, heads, triage and network, with commas.
        seeds: of training images, networks and bootstrap samples, with commas.
        images: training images, drawn by the seed.
        test_images: test images, the same for every seed.
        head_steps: updates of each head.
        hidden_items: training items of the part hidden.
        hidden_steps: updates of its networks.
        draws: bootstrap samples.
        network: the name of the network of the part network.
        start: its pretrained weights, a file or torchvision's name of them [a random start only].
        network_steps: updates of it.
        device: where it is trained.
        root: the data folder [METALEARN_DATA, or else ./data].
        folder: where finished parts are kept.
        page: an HTML file for a page with pictures of the parts that were measured [none].
        quick: try every part in under a minute, with numbers that mean nothing.
        results: the file of JSON lines that the rows are added to [none: they are only printed].
    """
    keep_in(results)
    place = root or os.environ.get("METALEARN_DATA", "data")
    study = Study(
        images,
        test_images,
        head_steps,
        hidden_items,
        hidden_steps,
        draws,
        network,
        start,
        network_steps,
        usable(device),
        place,
    )
    if quick:
        study = replace(study, **QUICK)
    measures: dict[str, Callable[[Study, int], Row]] = {
        "hidden": hidden,
        "probes": probes,
        "heads": heads,
        "triage": divided,
        "network": end_to_end,
    }
    names = choose("part", parts, measures)
    rows = []
    for name in names:
        for seed in numbers(seeds):
            row = finished(Path(folder), name, study, seed, measures[name])
            print(f"{name}, seed {seed}: {row['said']}", flush=True)
            append(row)
            rows.append(row)
    if page:
        report(page, rows)


def finished(
    folder: Path, name: str, study: Study, seed: int, measure: Callable[[Study, int], Row]
) -> Row:
    """The row of a part and a seed, from its file if it was measured with the same settings."""
    path = folder / f"{name}-{seed}.json"
    settings = study.record
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["settings"] == settings:
            return stored
    row = {
        "benchmark": "disagreement",
        "part": name,
        "seed": seed,
        "settings": settings,
        **measure(study, seed),
        **origin("disagreement"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(plain(row), sort_keys=True).encode())
    return json.loads(path.read_text())


def hidden(study: Study, seed: int) -> Row:
    """The case of the theory, with few raters and with many."""
    cases = [
        hidden_case(
            raters,
            items=study.hidden_items,
            test_items=study.hidden_items // 4,
            steps=study.hidden_steps,
            draws=study.draws,
            seed=seed,
        )
        for raters in RATERS
    ]
    first = cases[0].contest
    return {"said": said(first), "cases": plain(cases)}


def probes(study: Study, seed: int) -> Row:
    """Every layer of the published network."""
    data = voted(study, seed)
    result = disagreement_probes(
        published(study),
        Examples(data.train_inputs, data.train.counts),
        Examples(data.test_inputs, data.test.counts),
        above=ABOVE,
        draws=study.draws,
        seed=seed,
    )
    best = max(result.layers, key=lambda row: row.contest.direct.auc.value)
    return {"said": f"best layer {best.layer}: {said(best.contest)}", **result.to_dict()}


def heads(study: Study, seed: int) -> Row:
    """Small networks on the last features: direct by two losses, and via the votes by two."""
    data = voted(study, seed)
    network = published(study)
    train = features_of(network, [FEATURES], data.train_inputs, "pool", 256)[FEATURES]
    test = features_of(network, [FEATURES], data.test_inputs, "pool", 256)[FEATURES]

    def head(outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm1d(WIDTHS[0]),
            nn.Linear(*WIDTHS),
            nn.ReLU(),
            nn.Linear(WIDTHS[1], outputs),
        )

    predictions = trained(
        data, (train, test), head, seed, steps=study.head_steps, batch=128, lr=1e-3
    )
    result = contests(predictions, data, study, seed)
    return {"said": said(result["votes"]), **result}


def end_to_end(study: Study, seed: int) -> Row:
    """A network trained on the images, from a random start and from pretrained weights."""
    data = voted(study, seed)
    strategies = {"random start": everywhere(fresh())}
    if study.start:
        weights = read(study.start, model=study.network)
        strategies["pretrained start"] = everywhere(copied(weights))
    rows = {}
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(32, padding=SHIFT)])
    for name, strategy in strategies.items():

        def network(outputs: int, strategy: Any = strategy) -> nn.Module:
            model = build(study.network, outputs, 3)
            initialize(model, strategy, seed)
            return model

        predictions = trained(
            data,
            (data.train_inputs, data.test_inputs),
            network,
            seed,
            steps=study.network_steps,
            batch=128,
            lr=1e-3,
            augment=augment,
            device=study.device,
        )
        rows[name] = contests(predictions, data, study, seed)
    first = next(iter(rows.values()))
    return {"said": f"{len(rows)} starts, {said(first['votes'])}", "starts": plain(rows)}


def divided(study: Study, seed: int) -> Row:
    """Triage with the published network as the algorithm and one vote as the human."""
    data = voted(study, seed)
    network = published(study)
    outputs = outputs_of(network, data.test_inputs)
    labels = data.test.labels
    algorithm = (outputs.argmax(1) != labels).double()
    human = 1 - share_of(data.test.counts, labels)
    train = features_of(network, [FEATURES], data.train_inputs, "pool", 256)[FEATURES]
    test = features_of(network, [FEATURES], data.test_inputs, "pool", 256)[FEATURES]
    errors = 1 - share_of(data.train.counts, data.train.labels)
    predicted_error, _ = ridge_readout(train, errors[:, None], test)
    target = disagreement_of(data.train.counts)
    predicted_disagreement, _ = ridge_readout(train, target[:, None], test)
    uncertainty = 1 - outputs.double().softmax(1).max(1).values
    gains = {
        "uncertainty of the network": uncertainty,
        "uncertainty minus predicted human error": uncertainty - predicted_error[:, 0],
        "predicted disagreement": predicted_disagreement[:, 0],
    }
    items = len(labels)
    points = np.linspace(0, items, min(items, SHARES - 1) + 1).round().astype(int)
    curves: dict[str, Any] = {}
    plan = triage(algorithm, human, budget=items)
    for name in ("oracle", "random"):
        curves[name] = plan.curve.totals[name][points] / items
    best = {"oracle": plan.curve.best()}
    for name, gain in gains.items():
        curve = triage(algorithm, human, budget=items, gain=gain).curve
        curves[name] = curve.totals["predicted"][points] / items
        best[name] = curve.best("predicted")
    return {
        "said": plan.answer(),
        "items": items,
        "shares": plain(points / items),
        "losses": plain(curves),
        "best_share": best,
        "plan": {"share": plan.share, "loss": plan.total / items},
        "algorithm": float(algorithm.mean()),
        "human": float(human.mean()),
    }


@dataclass(frozen=True)
class Voted:
    """Images and votes of one seed, with the images as the network takes them."""

    train: VotedImages
    test: VotedImages

    @property
    def train_inputs(self) -> Tensor:
        """(images, 3, 32, 32) normalised."""
        return normalised(self.train.images)

    @property
    def test_inputs(self) -> Tensor:
        """(images, 3, 32, 32) normalised."""
        return normalised(self.test.images)


def voted(study: Study, seed: int) -> Voted:
    """The training images of a seed, and the test images."""
    train, test = all_images(study.root)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    # The same test images for every seed, of all classes.
    shown = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return Voted(train.part(order[: study.images]), test.part(shown[: study.test_images]))


@cache
def all_images(root: str) -> VotedSplit:
    """All images with their votes, read once."""
    return cifar10_votes(root)


def normalised(images: Tensor) -> Tensor:
    """Images uint8 as the published network takes them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    return (images.float() / 255 - mean) / std


def published(study: Study) -> nn.Module:
    """The published ResNet-20 of CIFAR-10."""
    files = sorted(Path(study.root, "weights").glob("cifar10_resnet20-*.th"))
    if not files:
        raise FileNotFoundError(
            f"there is no {study.root}/weights/cifar10_resnet20-*.th; get resnet20-12fca82f.th of"
            " github.com/akamaster/pytorch_resnet_cifar10"
        )
    network = cifar_resnet(20)
    fit(network, read(files[0]))
    return network


def trained(
    data: Voted,
    inputs: tuple[Tensor, Tensor],
    network: Callable[[int], nn.Module],
    seed: int,
    **settings: Any,
) -> dict[str, Tensor]:
    """The test disagreements that four trainings predict, {training: (test images,)}.

    Args:
        data: the votes.
        inputs: of training and test.
        network: from a number of outputs to a network.
        seed: of the networks and their training.
        **settings: of `finetune`.
    """
    classes = data.train.counts.shape[1]
    target = disagreement_of(data.train.counts)
    truth = disagreement_of(data.test.counts)
    # (training targets, test targets, loss, outputs)
    trainings: dict[str, tuple[Tensor, Tensor, Any, int]] = {
        "direct, regression": (target, truth, SquaredError(ABOVE), 1),
        "direct, classifier": ((target > ABOVE).long(), (truth > ABOVE).long(), "cross_entropy", 2),
        "via votes": (data.train.counts, data.test.counts, SoftVotes(ABOVE), classes),
        "via the majority": (
            data.train.counts.argmax(1),
            data.test.counts.argmax(1),
            "cross_entropy",
            classes,
        ),
    }
    predictions = {}
    for name, (targets, test_targets, loss, outputs) in trainings.items():
        train = finetune(
            TensorDataset(inputs[0], targets),
            TensorDataset(inputs[1], test_targets),
            loss=loss,
            evaluate_every=settings["steps"],
            **settings,
        )
        torch.manual_seed(seed)
        model = network(outputs)
        train(model, seed)
        predicted = outputs_of(model, inputs[1])
        if outputs == 1:
            predictions[name] = predicted[:, 0].double()
        elif outputs == 2:
            predictions[name] = (predicted[:, 1] - predicted[:, 0]).double()
        else:
            predictions[name] = spread_of_shares(predicted.double().softmax(1))
    return predictions


def contests(predictions: dict[str, Tensor], data: Voted, study: Study, seed: int) -> Row:
    """The direct predictions against those via the votes and via the majority label."""
    truth = disagreement_of(data.test.counts)
    pairs = {
        "votes": ("direct, regression", "via votes"),
        "majority": ("direct, classifier", "via the majority"),
    }
    return {
        name: plain(
            contest_of(
                predictions[direct],
                predictions[via],
                truth,
                ABOVE,
                draws=study.draws,
                seed=seed,
            )
        )
        for name, (direct, via) in pairs.items()
    }


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs for all inputs, (examples, outputs), on the CPU."""
    device = next(model.parameters()).device
    with evaluation_mode([model]), torch.no_grad():
        return torch.cat([model(part.to(device)).cpu() for part in inputs.split(256)])


def share_of(counts: Tensor, labels: Tensor) -> Tensor:
    """The share of the votes that are for the label, (images,)."""
    return (counts[torch.arange(len(labels)), labels] / counts.sum(1)).double()


def said(contest: Contest | Row) -> str:
    """Both AUCs and their difference in words."""
    row = plain(contest)
    return (
        f"AUC {row['direct']['auc']['value']:.3f} direct and {row['via']['auc']['value']:.3f} via"
        f" the votes, difference {row['auc_difference']['value']:+.3f}"
    )


if __name__ == "__main__":
    run_benchmark(disagreement)
