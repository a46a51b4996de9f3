"""Transforms of a task's images: drawn anew for each task, repeatable, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from metalearn.data.images import LabelledImages
from metalearn.episodes import stack
from metalearn.tasks import FewShot, glyphs
from metalearn.tasks.augmentation import TRIALS, Augmentation
from metalearn.tasks.batched_transforms import batched, coloured, cropped

GENERATOR = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (40, 3, 9, 8), dtype=torch.uint8, generator=GENERATOR)
IMAGES = LabelledImages(PIXELS, torch.arange(40) // 10)
USUAL = v2.Compose([v2.RandomCrop((9, 8), padding=2), v2.ColorJitter(0.4, 0.4, 0.4)])


def few_shot(**options: Any) -> FewShot:
    return FewShot(IMAGES, 3, 1, 4, tasks=50, **options)


def all_inputs(tasks: FewShot, index: int) -> Tensor:
    support, query = tasks[index]
    return torch.cat((support.inputs, query.inputs))


def noise(image: Tensor) -> Tensor:
    return image.float() / 255 + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002


@pytest.mark.parametrize(
    "augment",
    [USUAL, v2.RandomRotation(30), v2.RandAugment(), noise],
    ids=["usual", "rotation", "randaugment", "noise"],
)
def test_an_augmentation_depends_on_seed_and_task_alone(augment: Any) -> None:
    tasks = few_shot(augment=augment)
    first = all_inputs(tasks, 3)
    torch.rand(5)
    assert torch.equal(all_inputs(few_shot(augment=augment), 3), first)
    assert not torch.equal(all_inputs(few_shot(augment=augment, seed=1), 3), first)
    # The classes and images stay those of the tasks without it, on support and query.
    plain = few_shot()
    assert not torch.equal(tasks[3].support.inputs, plain[3].support.inputs)
    assert not torch.equal(tasks[3].query.inputs, plain[3].query.inputs)
    assert torch.equal(tasks[3].query.targets, plain[3].query.targets)


def test_an_augmentation_is_drawn_anew_for_each_task() -> None:
    one_class = LabelledImages(PIXELS[:4], torch.arange(4) // 2)
    tasks = FewShot(one_class, 2, 1, 1, tasks=40, augment=v2.RandomCrop((9, 8), padding=4))
    views = {tuple(all_inputs(tasks, i).sum((1, 2, 3)).tolist()) for i in range(40)}
    assert len(views) == 40


@pytest.mark.parametrize("augment", [USUAL, v2.RandomRotation(30)])
def test_workers_and_stacks_draw_what_the_task_draws(augment: Any) -> None:
    tasks = few_shot(augment=augment, normalize="imagenet")
    expected = stack(tasks[i] for i in range(4))
    gathered = tasks.stack(range(4))
    batch = next(iter(DataLoader(tasks, batch_size=4, num_workers=1)))
    for other in (gathered, batch):
        assert torch.equal(other.support.inputs, expected.support.inputs)
        assert torch.equal(other.query.inputs, expected.query.inputs)


def test_drawing_leaves_the_global_generators_as_they_were() -> None:
    tasks = few_shot(augment=noise)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = (torch.rand(()), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    tasks[0]
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_normalisation_comes_last_and_by_channel() -> None:
    expected = tv.normalize(
        few_shot()[2].query.inputs, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert torch.allclose(few_shot(normalize="imagenet")[2].query.inputs, expected)
    pair = ((0.485, 0.456, 0.406), torch.tensor([0.229, 0.224, 0.225]))
    assert torch.allclose(few_shot(normalize=pair)[2].query.inputs, expected, atol=1e-6)
    assert torch.allclose(few_shot(normalize=pair).stack([2]).query.inputs[0], expected, atol=1e-6)


def test_a_transform_runs_once_an_image() -> None:
    calls = []

    def half(image: Tensor) -> Tensor:
        calls.append(image)
        return tv.resize(image, [4, 4])

    tasks = few_shot(transform=half)
    assert all_inputs(tasks, 0).shape == (15, 3, 4, 4)
    all_inputs(tasks, 1)
    assert len(calls) == len(IMAGES) + TRIALS  # and on the first, to see that it is not random
    assert calls[0].dtype == torch.uint8


def test_records_name_the_transforms_and_hold_no_addresses() -> None:
    settings = few_shot(augment=noise, transform=v2.Resize(4), normalize=(0.5, 0.25)).settings()
    assert settings["augment"] == "noise"
    assert settings["transform"].startswith("Resize(size=[4]")
    assert settings["normalize"] == "0.5/0.25"


# Many images at once


def test_flips_are_torchvisions() -> None:
    for name, flip in (("Horizontal", tv.horizontal_flip), ("Vertical", tv.vertical_flip)):
        at_once = batched(getattr(v2, f"Random{name}Flip")(p=1.0))
        assert at_once is not None
        assert torch.equal(at_once(PIXELS, np.random.default_rng(0)), flip(PIXELS))
    half = batched(v2.RandomHorizontalFlip())
    assert half is not None
    mirrored = [half(PIXELS, np.random.default_rng(seed)) != PIXELS for seed in range(50)]
    share = torch.stack(mirrored).flatten(2).any(-1).double().mean()
    assert abs(share - 0.5) < 0.06


def test_crops_are_torchvisions_and_uniform() -> None:
    padded = tv.pad(PIXELS, [2, 2, 2, 2])
    tops, lefts = np.arange(40) % 5, np.arange(40) % 3
    windows = cropped(padded, tops, lefts, (9, 8))
    for image, top, left, window in zip(padded, tops, lefts, windows, strict=True):
        assert torch.equal(tv.crop(image, int(top), int(left), 9, 8), window)
    counted = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(4000, 1, 5, 5)
    crop = batched(v2.RandomCrop(3))
    assert crop is not None
    corners = crop(counted, np.random.default_rng(0))[:, 0, 0, 0]
    counts = torch.bincount(corners.long()).double()
    assert (counts > 0).sum() == 9
    assert (counts[counts > 0] / 4000 - 1 / 9).abs().max() < 0.03


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_torchvisions(whole: bool, channels: int) -> None:
    images = PIXELS[:, :channels] if whole else PIXELS[:, :channels] / 255
    rng = np.random.default_rng(0)
    order = rng.random((40, 3)).argsort(axis=1)
    factors = {number: rng.uniform(0.6, 1.4, 40).astype(np.float32) for number in range(3)}
    changed = coloured(images, order, factors)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for i, image in enumerate(images):
        for number in order[i]:
            image = steps[number](image, float(factors[number][i]))
        difference = (changed[i].double() - image.double()).abs().max()
        assert difference <= (1 if whole else 1e-5)  # one grey level, by the order of a sum


def test_what_has_other_arguments_runs_one_image_at_a_time() -> None:
    class Own(v2.RandomHorizontalFlip):
        pass

    others = [Own(), v2.RandomCrop(4, pad_if_needed=True), v2.ColorJitter(hue=0.1), noise]
    assert all(batched(transform) is None for transform in others)


# Refused


def test_another_shape_is_refused_with_task_item_and_transform() -> None:
    tasks = few_shot(augment=v2.Compose([v2.RandomResize(4, 9), v2.RandomHorizontalFlip()]))
    with pytest.raises(ValueError, match=r"RandomResize gives item \d+ .* in task 7 the shape"):
        tasks[7]


def test_nan_is_refused_with_task_item_and_transform() -> None:
    def broken(image: Tensor) -> Tensor:
        return torch.full_like(image, torch.nan, dtype=torch.float32)

    with pytest.raises(ValueError, match=r"augment=broken on item \d+ .* in task 4 holds NaN"):
        few_shot(augment=broken)[4]
    with pytest.raises(ValueError, match=r"transform=broken on item 0 holds NaN"):
        few_shot(transform=broken)


def test_what_is_no_transform_or_no_normalisation_is_refused() -> None:
    with pytest.raises(TypeError, match=r"augment=3 is a int; give a callable"):
        few_shot(augment=3)
    with pytest.raises(TypeError, match=r"transform='flip' is a str"):
        few_shot(transform="flip")
    with pytest.raises(TypeError, match=r"normalize=0.5 is a float"):
        few_shot(normalize=0.5)
    with pytest.raises(ValueError, match="normalize='imagenett'"):
        few_shot(normalize="imagenett")
    with pytest.raises(ValueError, match=r"is for images of 2 channels"):
        few_shot(normalize=((0, 0), (1, 1)))[0]


def test_a_random_transform_in_place_of_an_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"transform=RandomHorizontalFlip .* pass it as augment="):
        few_shot(transform=v2.RandomHorizontalFlip())
    assert isinstance(Augmentation(USUAL).transform, v2.Compose)


# On demand


class Files(Dataset[Any]):
    """A data set with a random transform of its own, that counts what is read."""

    def __init__(self, transform: Any = None) -> None:
        self.targets = [i // 10 for i in range(40)]
        self.transform = transform
        self.reads = 0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        image = PIXELS[index]
        return image if self.transform is None else self.transform(image), self.targets[index]


@pytest.mark.parametrize("augment", [None, USUAL, v2.RandomRotation(30)])
def test_images_on_demand_give_the_tasks_of_images_in_memory(augment: Any) -> None:
    files = Files()
    tasks = FewShot(files, 3, 1, 4, tasks=50, augment=augment, in_memory=False)
    assert files.reads <= 3
    expected = few_shot(augment=augment)
    for index in (0, 7):
        assert torch.equal(all_inputs(tasks, index), all_inputs(expected, index))
    assert torch.equal(tasks.stack([3, 4]).query.inputs, expected.stack([3, 4]).query.inputs)


def test_a_data_sets_own_random_transform_is_drawn_anew_on_demand() -> None:
    tasks = FewShot(Files(noise), 3, 1, 4, tasks=50, in_memory=False)
    again = FewShot(Files(noise), 3, 1, 4, tasks=50, in_memory=False)
    torch.rand(3)
    assert torch.equal(all_inputs(tasks, 5), all_inputs(again, 5))
    frozen = FewShot(Files(noise), 3, 1, 4, tasks=50)
    assert torch.equal(all_inputs(frozen, 5), all_inputs(frozen, 5))


def test_a_transform_that_gives_other_shapes_is_named_with_item_and_task() -> None:
    images = glyphs("test")

    def uneven(image: Tensor) -> Tensor:
        return image[:, : 10 + int(image.sum()) % 3]

    with pytest.raises(ValueError, match=r"after transform=uneven, item \d+ of .* has shape"):
        FewShot(images, 5, 1, 2, tasks=4, transform=uneven)
    unread = FewShot(images, 5, 1, 2, tasks=4, transform=uneven, in_memory=False)
    with pytest.raises(ValueError, match=r"task \d: after transform=uneven, item \d+ of .* shape"):
        [unread[i] for i in range(4)]
    large = FewShot(images, 5, 1, 2, tasks=4, augment=v2.RandomCrop(99))
    with pytest.raises(ValueError, match=r"augment=RandomCrop on item \d+ of .* in task 3 failed"):
        large[3]
