"""CSV files that divide a folder's images: no class or file is in two splits, and every mistake is
named with its line.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from metalearn.tasks import FewShot, image_folder

GOOD = ["cat/0.png,cat,train", "cat/1.png,cat,train", "dog/0.png,dog,val", "owl/0.png,owl,test"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "own"
    for name in ("cat", "dog", "owl"):
        (top / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4)).save(top / name / f"{i}.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    return top


def names(folder: Path, content: str | bytes, split: str = "train") -> tuple[str, ...]:
    table = folder / "splits.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return image_folder(folder, split, splits=table, size=None, cache=False, progress=False).names


def lines(*rows: str, header: str = "filename,label,split") -> str:
    return "\n".join([header, *rows]) + "\n"


@pytest.mark.parametrize(
    "content",
    [
        lines(*GOOD),
        lines(*GOOD).replace("\n", "\r\n"),
        lines(*GOOD).replace("\n", "\r"),
        b"\xef\xbb\xbf" + lines(*GOOD).encode(),
        lines(*GOOD).encode("utf-16"),
        lines(*GOOD).replace(",", ";"),
        lines(*GOOD).replace(",", "\t"),
        lines(*GOOD, header=" Filename , LABEL,Split"),
        lines(*GOOD).replace(",val", ", Validation").replace(",train", ",TRAIN"),
        lines(*GOOD, "", "   ", GOOD[0]),
        lines(*GOOD).replace("/", "\\"),
        lines(*(f'"{row.split(",")[0]}",{row.partition(",")[2]}' for row in GOOD)),
        lines(*(f"3,{row}" for row in GOOD), header="number,filename,label,split"),
        lines(*(f"./cat/../{row}" for row in GOOD)),
    ],
)
def test_tables_as_spreadsheets_write_them_are_read(folder: Path, content: str | bytes) -> None:
    assert [names(folder, content, split) for split in ("train", "validation", "test")] == [
        ("cat",),
        ("dog",),
        ("owl",),
    ]


def test_absolute_paths_within_the_folder_are_read(folder: Path) -> None:
    assert names(folder, lines(*(f"{folder}/{row}" for row in GOOD))) == ("cat",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lines(*GOOD, "owl/1.png,owl,"),
            r"splits.csv line 6 has no split; fill it in, or delete the line",
        ),
        (lines(*GOOD, "owl/1.png,,test"), r"line 6 has no label; fill it in"),
        (lines(*GOOD, ",owl,test"), r"line 6 has no filename; fill it in"),
        (lines(*GOOD, "owl/1.png"), r"line 6 has 1 fields, but the first line names 3 columns"),
        (lines(*GOOD, "owl/1.png,owl,test,4"), r"line 6 has 4 fields"),
        (
            lines(*GOOD, "owl/1.png,owl,train"),
            (
                r"line 6 has class 'owl' in train, but .*line 5 has it in test; give each class one"
                r" split"
            ),
        ),
        (
            lines(*GOOD, "cat/0.png,bird,test"),
            r"line 6 lists .*cat/0.png as 'bird' \(test\), but .*line 2 has it as 'cat' \(train\)",
        ),
        (lines(*GOOD, "./cat//0.png,bird,test"), r"line 6 lists .*cat/0.png as 'bird'"),
        (
            lines(*GOOD, "owl/1.png,owl,tset"),
            r"line 6 has the split 'tset'; it may be train, val, test",
        ),
        (
            lines(*GOOD, "../outside.png,owl,test"),
            r"line 6 lists ../outside.png, which lies outside .*; list files within it",
        ),
        (lines(*GOOD, "/etc/hostname,owl,test"), r"line 6 lists /etc/hostname, which lies outside"),
        (lines(*GOOD, "owl/1.png\0,owl,test"), r"line 6 "),
        (lines(*GOOD, '"owl/1.png,owl,test'), r"line 6 cannot be read .*mend the quotes"),
        (
            "\n".join(GOOD),
            (
                r"splits.csv needs a first line with the columns filename and label .*its first"
                r" line is 'cat/0.png,cat,train'"
            ),
        ),
        (
            lines(*(row.rpartition(",")[0] for row in GOOD), header="filename,label"),
            r"has no column split, so its rows would be in every",
        ),
        (lines(*GOOD, header="filename,label,label"), r"has the column label twice"),
        (
            lines(*GOOD).encode() + b"owl/\xff.png,owl,test",
            r"splits.csv line 6 is not UTF-8 .*; save the file as UTF-8",
        ),
        ("", r"needs a first line"),
    ],
)
def test_mistakes_are_named_with_their_line_and_the_cure(
    folder: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        names(folder, content)


def test_a_path_of_windows_on_another_system_is_named(folder: Path) -> None:
    if os.name == "nt":
        pytest.skip("it is a path of this system")
    with pytest.raises(
        ValueError, match=r"line 6 lists C:\\own\\owl\\1.png, .*; write it relative"
    ):
        names(folder, lines(*GOOD, "C:\\own\\owl\\1.png,owl,test"))


def test_three_tables_are_read_together(folder: Path) -> None:
    tables = folder / "tables"
    tables.mkdir()
    for split, row in (
        ("train", "cat/0.png,cat"),
        ("val", "dog/0.png,dog"),
        ("test", "owl/0.png,owl"),
    ):
        (tables / f"{split}.csv").write_text(lines(row, header="filename,label"))
    assert image_folder(folder, "test", splits=tables, cache=False).names == ("owl",)
    with (tables / "test.csv").open("a") as file:
        file.write("cat/1.png,cat\n")
    with pytest.raises(ValueError, match=r"test.csv line 3 .*'cat' in test.*train.csv line 2"):
        image_folder(folder, "train", splits=tables, cache=False)


def test_too_few_classes_speak_of_the_division(tmp_path: Path) -> None:
    for c in range(12):
        (tmp_path / f"class{c}").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / f"class{c}" / "0.png")
    test = image_folder(tmp_path, "test", cache=False)
    with pytest.raises(
        ValueError,
        match=(r"2 classes but ways=5.*12 classes .*8 for train, 2 for validation"),
    ):
        FewShot(test, 5, 1, 1, tasks=1)
    assert len(image_folder(tmp_path, "test", splits=(4, 3, 5), cache=False).names) == 5


def test_split_folders_may_be_capitalized_and_lack_validation(tmp_path: Path) -> None:
    for split, name in (("Train", "a"), ("TEST", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / name / "0.png")
    assert [image_folder(tmp_path, split, cache=False).names for split in ("train", "test")] == [
        ("a",),
        ("b",),
    ]
    with pytest.raises(FileNotFoundError, match="has a train folder but none for validation"):
        image_folder(tmp_path, "validation")
