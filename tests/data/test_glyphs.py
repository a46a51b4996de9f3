from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

from metalearn.data.glyphs import SPLITS, Draws, drawings, glyphs
from metalearn.data.images import LabelledImages
from metalearn.experiments import Experiment
from metalearn.tasks.few_shot import FewShot


def fingerprint() -> str:
    return hashlib.sha256(glyphs("test", classes=12, seed=5).images.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def train() -> LabelledImages:
    return glyphs("train", classes=60)


def pixels(images: LabelledImages, drawers: int = 20) -> torch.Tensor:
    """(classes, drawers, pixels) in [0, 1]"""
    return images.images.flatten(1).float().div(255).unflatten(0, (-1, drawers))


def test_splits_have_400_classes_of_20_drawings() -> None:
    for split, classes in (("train", 256), ("validation", 64), ("test", 80)):
        images = glyphs(split)
        assert len(images) == 20 * classes
        assert (
            images.images.shape == (20 * classes, 1, 28, 28) and images.images.dtype == torch.uint8
        )
        assert torch.equal(images.labels, torch.arange(classes).repeat_interleave(20))
        assert images.names == tuple(f"glyph{i:03d}" for i in SPLITS[split])


def test_every_drawing_is_white_ink_on_black_paper_with_a_free_margin() -> None:
    images = glyphs("train").images[:, 0]
    assert (images.flatten(1).amax(1) == 255).all(), "a drawing has no full ink"
    share = images.float().div(255).flatten(1).mean(1)
    assert float(share.min()) > 0.01 and float(share.max()) < 0.35
    assert 0.05 < float(share.mean()) < 0.12  # Omniglot at 28 pixels: 0.083
    border = torch.cat((images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]), 1)
    assert int(border.max()) == 0


def test_two_calls_are_equal_and_do_not_share_memory() -> None:
    first = glyphs("validation", classes=3)
    kept = first.images.clone()
    first.images.zero_()
    assert torch.equal(glyphs("validation", classes=3).images, kept)
    drawings.cache_clear()
    assert torch.equal(glyphs("validation", classes=3).images, kept)


def test_a_fresh_process_draws_the_same(fresh_process: Callable[..., str]) -> None:
    assert fresh_process(fingerprint) == fingerprint()


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = glyphs("validation", classes=2, seed=8).images
    assert torch.equal(torch.get_rng_state(), state)
    drawings.cache_clear()
    torch.manual_seed(2)
    assert torch.equal(glyphs("validation", classes=2, seed=8).images, one)


def test_fewer_classes_or_drawers_are_the_first_of_more() -> None:
    full = glyphs("test", classes=6, drawers=20).images.unflatten(0, (6, 20))
    part = glyphs("test", classes=4, drawers=7).images.unflatten(0, (4, 7))
    assert torch.equal(part, full[:4, :7])


def test_another_seed_gives_other_characters() -> None:
    one, other = (pixels(glyphs("validation", classes=20, seed=seed)).mean(1) for seed in (0, 1))
    assert float((one - other).square().sum(1).min()) > 1


@pytest.mark.slow  # draws all 8,000 images
def test_no_drawing_occurs_twice_and_no_two_classes_of_any_splits_are_alike() -> None:
    everything = [glyphs(split) for split in SPLITS]
    images = torch.cat([part.images for part in everything]).flatten(1)
    assert len({image.tobytes() for image in images.numpy()}) == len(images) == 8000
    assert len({name for part in everything for name in part.names}) == 400
    prototypes = torch.cat([pixels(part).mean(1) for part in everything])
    distances = torch.cdist(prototypes, prototypes) + 1e9 * torch.eye(len(prototypes))
    assert float(distances.min()) > 0.5


def test_drawings_of_a_class_are_nearer_to_one_another_than_to_other_classes(
    train: LabelledImages,
) -> None:
    x = pixels(train)
    distances = (
        torch.cdist(x.flatten(0, 1), x.flatten(0, 1)).unflatten(0, (60, 20)).unflatten(2, (60, 20))
    )
    within = torch.stack([distances[c, :, c].sum() / (20 * 19) for c in range(60)])
    between = (distances.sum((1, 3)) * (1 - torch.eye(60))).sum(1) / (59 * 400)
    assert float(within.mean()) < float(between.mean())
    assert float((within < between).float().mean()) > 0.9


def test_pixels_alone_tell_classes_apart_above_chance_and_far_from_perfectly() -> None:
    correct = []
    for support, query in FewShot(glyphs("test"), ways=5, shots=1, queries=3, tasks=300):
        nearest = torch.cdist(query.inputs.flatten(1), support.inputs.flatten(1)).argmin(1)
        correct.append((support.targets[nearest] == query.targets).float().mean())
    accuracy = float(torch.stack(correct).mean())
    assert 0.40 < accuracy < 0.75  # real Omniglot: 0.45


def test_a_drawer_has_one_style_in_all_characters(train: LabelledImages) -> None:
    ink = pixels(train).mean(2)
    relative = ink / ink.mean(1, keepdim=True)  # heavy and light pens, large and small hands
    first, second = relative[:30].mean(0), relative[30:].mean(0)
    assert float(torch.corrcoef(torch.stack((first, second)))[0, 1]) > 0.9


def test_size_changes_the_resolution_and_not_the_drawing() -> None:
    small, large = (
        glyphs("validation", classes=3, size=28).images,
        glyphs("validation", classes=3, size=56).images,
    )
    assert large.shape == (60, 1, 56, 56)
    halved = torch.nn.functional.avg_pool2d(large.float(), 2).flatten(1)
    correlation = [
        float(torch.corrcoef(torch.stack((a, b)))[0, 1])
        for a, b in zip(small.float().flatten(1), halved, strict=True)
    ]
    assert min(correlation) > 0.95


@pytest.mark.parametrize("split", ["dev", "", "Train"])
def test_an_unknown_split_is_refused_with_the_choices(split: str) -> None:
    with pytest.raises(ValueError, match=r"is not one of train, validation, test"):
        glyphs(split)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 257}, r"classes=257 .*'train'.* 1 to 256"),
        ({"classes": 0}, "classes=0 "),
        ({"drawers": 0}, "drawers=0 "),
        ({"size": 4}, "size=4 .* 8 to"),
        ({"seed": -1}, "seed=-1 .* 0 to"),
        ({"seed": 2**64}, "seed=18446744073709551616 "),
    ],
)
def test_numbers_out_of_range_are_refused_with_the_range(
    settings: dict[str, int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        glyphs("train", **settings)


def test_draws_are_uniform_and_bell_shaped_and_differ_by_stream() -> None:
    uniform, bell = Draws(0, 1).uniform(100_000), Draws(0, 2).bell(100_000)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.005
    assert (
        abs(bell.mean()) < 0.02 and abs(bell.std() - 1) < 0.02 and abs(bell).max() <= 2 * np.sqrt(3)
    )
    assert not np.array_equal(Draws(0, 1).uniform(9), Draws(0, 2).uniform(9))
    counts = np.bincount(
        [Draws(7, stream).choice((0, 1, 3)) for stream in range(2000)], minlength=3
    )
    assert counts[0] == 0 and 0.7 < counts[2] / 2000 < 0.8


def test_val_is_another_name_of_validation_everywhere() -> None:
    one, other = glyphs("val", classes=3), glyphs("validation", classes=3)
    assert torch.equal(one.images, other.images) and one.description == other.description
    experiment = Experiment()
    assert torch.equal(experiment.data("val").images, experiment.data("validation").images)
    assert experiment.testing_tasks("val").seed == experiment.testing_tasks("validation").seed
    with pytest.raises(ValueError, match="split='dev' is not one of train, validation, test"):
        glyphs("dev")
