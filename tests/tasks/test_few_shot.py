"""The sampler: what a task holds, that it is a function of (seed, i) alone, and what is refused."""

import hashlib
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from metalearn.data.images import LabelledImages
from metalearn.episodes import Episode, stack
from metalearn.tasks.few_shot import FewShot
from metalearn.tasks.keyed_random import philox


def numbered(sizes: list[int], shuffle: int = 0) -> LabelledImages:
    """Every image is its own number, in base 256 over two pixels, so a draw tells which image it
    was.
    """
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(shuffle))]
    number = torch.arange(len(labels))
    return LabelledImages(
        torch.stack((number // 256, number % 256), 1).to(torch.uint8).view(-1, 1, 1, 2), labels
    )


def drawn(inputs: torch.Tensor) -> list[int]:
    return (inputs.flatten(1).mul(255).round().long() @ torch.tensor([256, 1])).tolist()


def same(a: Episode, b: Episode) -> bool:
    return all(
        torch.equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**64 - 1), index=st.integers(0, 10**9))
def test_a_task_has_distinct_classes_and_disjoint_support_and_query(data, seed, index):
    shots, queries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    least = shots + queries
    sizes = data.draw(
        st.lists(st.integers(least, least + 5), min_size=1, max_size=8)
        | st.lists(st.just(150), min_size=2, max_size=4)
    )
    ways = data.draw(st.integers(1, len(sizes)))
    source = numbered(sizes, shuffle=seed % 1000)
    support, query = FewShot(source, ways, shots, queries, tasks=10**9 + 1, seed=seed)[index]
    chosen, asked = drawn(support.inputs), drawn(query.inputs)
    assert len(set(chosen + asked)) == ways * least
    assert support.targets.tolist() == [c for c in range(ways) for _ in range(shots)]
    assert query.targets.tolist() == [c for c in range(ways) for _ in range(queries)]
    originals = [
        {
            int(source.labels[n])
            for n in chosen[c * shots : (c + 1) * shots] + asked[c * queries : (c + 1) * queries]
        }
        for c in range(ways)
    ]
    assert all(len(one) == 1 for one in originals)
    assert len(set.union(*originals)) == ways


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(12)), seed=st.integers(0, 2**64 - 1))
def test_a_task_does_not_depend_on_what_was_drawn_before(order, seed):
    source = numbered([9, 7, 12, 8])
    forward = [FewShot(source, 3, 2, 3, tasks=12, seed=seed)[i] for i in range(12)]
    tasks = FewShot(source, 3, 2, 3, tasks=12, seed=seed)
    assert all(same(tasks[i], forward[i]) for i in order)


def test_tasks_differ_by_index_and_by_seed():
    source = numbered([20] * 10)
    draws = {
        tuple(drawn(FewShot(source, 5, 1, 4, 50, seed)[i].query.inputs))
        for seed in range(4)
        for i in range(50)
    }
    assert len(draws) == 200


def digest() -> str:
    pixels = torch.arange(4000).mul(37).remainder(251).to(torch.uint8)
    images = LabelledImages(pixels.view(-1, 1, 2, 2), torch.arange(1000) // 25)
    tasks = FewShot(images, 5, 1, 15, tasks=100, seed=7)
    content = [t.numpy().tobytes() for i in (0, 99, 42) for part in tasks[i] for t in part]
    return hashlib.sha256(b"".join(content)).hexdigest()


def test_tasks_are_the_same_in_another_process_and_in_workers(fresh_process):
    assert fresh_process(digest) == digest()
    tasks = FewShot(numbered([10] * 6), 3, 1, 2, tasks=4)
    for i, pair in enumerate(DataLoader(tasks, batch_size=2, num_workers=1)):
        assert all(
            same(Episode(*(type(p)(*(t[j] for t in p)) for p in pair)), tasks[2 * i + j])
            for j in range(2)
        )


def test_threads_that_share_a_sampler_draw_the_same_tasks():
    tasks = FewShot(numbered([20] * 30), 5, 1, 5, tasks=400)
    alone = [tasks[i] for i in range(400)]
    found: dict[int, Episode] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({i: tasks[i] for i in range(k, 400, 4)}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 400 and all(same(found[i], alone[i]) for i in range(400))


def test_the_reused_generator_equals_a_new_one_after_any_use():
    philox(1, 1).standard_normal(3, dtype=np.float32)
    philox(1, 2).integers(0, 9, 3, dtype=np.uint32)
    new = np.random.Generator(np.random.Philox(key=np.array([2**64 - 1, 5], dtype=np.uint64)))
    assert np.array_equal(philox(2**64 - 1, 5).integers(0, 1000, 50), new.integers(0, 1000, 50))


@pytest.mark.parametrize("sizes", [[6] * 5, [6, 6, 6, 7, 140]])
def test_classes_and_images_are_drawn_uniformly(sizes):
    tasks = FewShot(numbered(sizes), 2, 1, 1, tasks=4000)
    labels = tasks.dataset.labels
    firsts = [drawn(tasks[i].support.inputs)[0] for i in range(4000)]
    classes = Counter(int(labels[n]) for n in firsts)
    assert all(abs(classes[c] / 4000 - 1 / 5) < 5 * (0.16 / 4000) ** 0.5 for c in range(5))
    within = Counter(n for n in firsts if labels[n] == 0)
    total = sum(within.values())
    assert (
        all(abs(count / total - 1 / 6) < 5 * (5 / 36 / total) ** 0.5 for count in within.values())
        and len(within) == 6
    )


def test_a_data_loader_stacks_tasks():
    stacked = next(iter(DataLoader(FewShot(numbered([10] * 6), 3, 2, 4, tasks=8), batch_size=4)))
    assert isinstance(stacked, Episode)
    assert stacked.support.inputs.shape == (4, 6, 1, 1, 2) and stacked.query.targets.shape == (
        4,
        12,
    )
    assert (
        stacked.query.inputs.dtype == torch.float32 and stacked.query.targets.dtype == torch.int64
    )


def test_a_stack_holds_the_single_tasks():
    for dataset in (
        numbered([10] * 6, shuffle=3),
        TensorDataset(torch.rand(60, 3), torch.arange(60) % 6),
    ):
        tasks = FewShot(dataset, ways=3, shots=1, queries=2, tasks=20)
        assert same(tasks.stack([4, 0, 19]), stack(tasks[i] for i in (4, 0, 19)))


def test_changing_a_task_in_place_changes_no_other():
    tasks = FewShot(numbered([10] * 3), 3, 1, 2, tasks=2)
    before = tasks[0]
    for part in tasks[0]:
        part.inputs.add_(1)
        part.targets.add_(1)
    assert same(tasks[0], before)


def test_the_length_and_what_lies_past_it():
    tasks = FewShot(numbered([10] * 3), 2, 1, 1, tasks=3)
    assert len(tasks) == len(list(tasks)) == 3
    assert same(tasks[-1], tasks[2])
    for index in (3, -4):
        with pytest.raises(IndexError, match="there are 3"):
            tasks[index]


def test_settings_record_the_draw_and_the_source():
    source = numbered([4, 4]).classes([1, 0], split="test")
    assert FewShot(source, 2, 1, 3, tasks=9, seed=5).settings() == {
        "ways": 2,
        "shots": 1,
        "queries": 3,
        "tasks": 9,
        "seed": 5,
        "data": {"split": "test"},
    }


class Listed(Dataset):
    def __init__(self, items: list, classes: tuple[str, ...] = ()) -> None:
        self.items = items
        self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def test_pil_images_arrays_and_tensors_give_the_same_tasks():
    pixels = torch.randint(
        0, 256, (12, 3, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    labels = [i % 3 for i in range(12)]
    reference = FewShot(LabelledImages(pixels, torch.tensor(labels)), 3, 2, 2, tasks=5)
    kinds = [
        [
            (Image.fromarray(p.permute(1, 2, 0).numpy()), y)
            for p, y in zip(pixels, labels, strict=True)
        ],
        [(p / 255, np.int64(y)) for p, y in zip(pixels, labels, strict=True)],
        [(p.numpy(), torch.tensor([y])) for p, y in zip(pixels, labels, strict=True)],
    ]
    for items in kinds:
        tasks = FewShot(Listed(items), 3, 2, 2, tasks=5)
        assert tasks._inputs.dtype == torch.uint8
        assert all(same(tasks[i], reference[i]) for i in range(5))
    assert all(
        same(
            FewShot(reference.dataset, 3, 2, 2, tasks=5)[i],
            FewShot(TensorDataset(pixels / 255, torch.tensor(labels)), 3, 2, 2, tasks=5)[i],
        )
        for i in range(5)
    )


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3)]
)
def test_every_eight_bit_mode_of_pil_is_read(mode, channels):
    tasks = FewShot(Listed([(Image.new(mode, (4, 3)), y) for y in (0, 0, 1, 1)]), 2, 1, 1, tasks=1)
    assert tasks[0].support.inputs.shape == (2, channels, 3, 4)


def test_floats_between_the_levels_and_vectors_are_kept_as_they_are():
    values = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    tasks = FewShot(TensorDataset(values, torch.arange(8) % 2), 2, 1, 3, tasks=1)
    kept = {tuple(row) for part in tasks[0] for row in part.inputs.tolist()}
    assert kept == {tuple(row) for row in values.tolist()}
    mixed = FewShot(
        TensorDataset(
            torch.stack((torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.4]))), torch.tensor([0, 0])
        ),
        1,
        1,
        1,
        1,
    )
    assert sorted(mixed[0].support.inputs.tolist() + mixed[0].query.inputs.tolist()) == [
        [0.0, 1.0],
        pytest.approx([0.3, 0.4]),
    ]


def test_labels_need_not_count_from_zero():
    labels = torch.tensor([-5, -5, 1000, 1000, 7, 7])
    support, query = FewShot(
        TensorDataset(torch.arange(6).view(6, 1) / 10, labels), 3, 1, 1, tasks=1
    )[0]
    pairs = zip(
        support.inputs[:, 0].mul(10).round().int().tolist(),
        query.inputs[:, 0].mul(10).round().int().tolist(),
        strict=True,
    )
    assert {frozenset(pair) for pair in pairs} == {
        frozenset((0, 1)),
        frozenset((2, 3)),
        frozenset((4, 5)),
    }


def test_subsets_of_data_sets_are_data_sets():
    half = Subset(numbered([6, 6, 6]), [i for i in range(18) if i % 2 == 0])
    assert FewShot(half, 1, 1, 1, tasks=1)[0].query.inputs.shape == (1, 1, 1, 2)


BIG = [(torch.zeros(1, 2, 2), y) for y in (0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        (
            [(torch.zeros(1, 2, 2), 0.5)],
            TypeError,
            r"label of item 0 of Listed is 0.5, not an integer",
        ),
        (
            [(torch.zeros(1, 2, 2), None)],
            TypeError,
            r"None, not an integer or a string; number the classes",
        ),
        (
            [(torch.zeros(1, 2, 2), "cat"), (torch.zeros(1, 2, 2), 1)],
            TypeError,
            r"the labels of Listed mix int and str",
        ),
        ([(torch.zeros(1, 2, 2), torch.tensor([0, 1]))], TypeError, "not an integer"),
        (
            [*BIG, (torch.zeros(1, 3, 3), 1)],
            ValueError,
            r"item 4 of Listed has shape \(1, 3, 3\) but item 0 has \(1, 2, 2\).*Resize",
        ),
        ([torch.zeros(1, 2, 2)], TypeError, r"item 0 of Listed is not a pair"),
        ([("a.png", 0)], TypeError, "item 0 of Listed is a str, not an image"),
        ([(torch.zeros(1, 2, 2, dtype=torch.int64), 0)], TypeError, "holds torch.int64"),
        (
            [(Image.new("I", (2, 2), 70000), 0)],
            ValueError,
            "item 0 of Listed has values from 70000 to 70000, which do not fit 16 bits",
        ),
        ([], ValueError, "Listed is empty"),
    ],
)
def test_items_that_do_not_fit_are_named(items, error, message):
    with pytest.raises(error, match=message):
        FewShot(Listed(items), 1, 1, 1, tasks=1)


def test_a_data_set_without_a_length_is_refused():
    with pytest.raises(TypeError, match="generator has no length"):
        FewShot((pair for pair in BIG), 1, 1, 1, tasks=1)


def test_more_ways_than_classes_and_too_few_images_are_refused_by_name():
    with pytest.raises(ValueError, match="has 2 classes but ways=3; ask for at most 2 ways"):
        FewShot(Listed(BIG), 3, 1, 1, tasks=1)
    with pytest.raises(ValueError, match="has 0 classes but ways=1"):
        FewShot(
            LabelledImages(
                torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
            ),
            1,
            1,
            1,
            tasks=1,
        )
    source = numbered([30, 8, 9])
    source.names = ("alpha", "beta", "gamma")
    with pytest.raises(
        ValueError,
        match=(r"class 'beta' has 8 images .*shots=5 and queries=15 need 20"),
    ):
        FewShot(source, 2, 5, 15, tasks=1)


@pytest.mark.parametrize("numbers", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)])
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        FewShot(Listed(BIG), *numbers)


def test_a_seed_outside_the_key_is_refused():
    with pytest.raises(ValueError, match="seed=-1 must lie in"):
        FewShot(Listed(BIG), 1, 1, 1, tasks=1, seed=-1)


def test_labelled_images_index_and_take_classes():
    source = numbered([2, 3, 4])
    image, label = source[4]
    assert torch.equal(image, source.images[4] / 255) and label == source.labels[4]
    taken = source.classes([2, 0], seed=3)
    assert (
        taken.names == ("2", "0")
        and taken.labels.bincount().tolist() == [4, 2]
        and taken.description == {"seed": 3}
    )
    assert torch.equal(taken.images[taken.labels == 0], source.images[source.labels == 2])


@pytest.mark.parametrize(
    ("images", "labels", "names", "error"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), (), TypeError),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), (), TypeError),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0.5, 1.0]), (), TypeError),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), ("a",), TypeError),
        (
            torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
            torch.zeros(3, dtype=torch.int64),
            (),
            TypeError,
        ),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a",), ValueError),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, -1]), ("a",), ValueError),
    ],
)
def test_labelled_images_refuse_what_does_not_fit(images, labels, names, error):
    with pytest.raises(error):
        LabelledImages(images, labels, names)


@pytest.mark.parametrize("indices", [[2], [-1], [0, 0]])
def test_classes_that_do_not_exist_or_repeat_are_refused(indices):
    with pytest.raises(ValueError, match="there are 2 classes"):
        numbered([2, 2]).classes(indices)
