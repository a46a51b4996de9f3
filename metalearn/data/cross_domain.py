"""The domains of BSCD-FSL (Guo et al. 2020, arXiv:1912.07200), whose classes are all for the test.

A network trained on miniImageNet adapts to tasks of ever more distant images: crop diseases,
satellite images (`metalearn.tasks.eurosat`), skin lesions and chest X-rays.
"""

from __future__ import annotations

import os

from .csv_rows import Row
from .images import LabelledImages
from .published import ClassFolders, LabelTable, Published, read_published

CROPS = {
    "Apple": "Apple_scab, Black_rot, Cedar_apple_rust, healthy",
    "Blueberry": "healthy",
    "Cherry_(including_sour)": "Powdery_mildew, healthy",
    "Corn_(maize)": (
        "Cercospora_leaf_spot Gray_leaf_spot, Common_rust_, Northern_Leaf_Blight, healthy"
    ),
    "Grape": "Black_rot, Esca_(Black_Measles), Leaf_blight_(Isariopsis_Leaf_Spot), healthy",
    "Orange": "Haunglongbing_(Citrus_greening)",
    "Peach": "Bacterial_spot, healthy",
    "Pepper,_bell": "Bacterial_spot, healthy",
    "Potato": "Early_blight, Late_blight, healthy",
    "Raspberry": "healthy",
    "Soybean": "healthy",
    "Squash": "Powdery_mildew",
    "Strawberry": "Leaf_scorch, healthy",
    "Tomato": (
        "Bacterial_spot, Early_blight, Late_blight, Leaf_Mold, Septoria_leaf_spot,"
        " Spider_mites Two-spotted_spider_mite, Target_Spot, Tomato_Yellow_Leaf_Curl_Virus,"
        " Tomato_mosaic_virus, healthy"
    ),
}
"""PlantVillage's crops and the diseases of each: 38 classes."""

LESIONS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumothorax",
)
"""The findings that BSCD-FSL takes, of images that have no other."""

OTHER_FINDINGS = (
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "No Finding",
    "Pleural_Thickening",
    "Pneumonia",
)


def _crop_classes() -> list[str]:
    """The names of the class folders."""
    names: list[str] = []
    for crop, diseases in CROPS.items():
        names += [f"{crop}___{disease}" for disease in diseases.split(", ")]
    return names


def _lesion(row: Row) -> tuple[str, str]:
    """The image file of a line of ISIC's ground truth, and the one lesion that it marks."""
    unknown = sorted(row.values.keys() - {"image", *map(str.lower, LESIONS)})
    if unknown:
        raise ValueError(
            f"{row.place}: there is a column {unknown[0]}, which is no class of ISIC 2018; take the"
            " file of task 3 of 2018"
        )
    marked = [name for name in LESIONS if row.values[name.lower()] not in ("0", "0.0")]
    if len(marked) != 1 or row.values[marked[0].lower()] not in ("1", "1.0"):
        raise ValueError(
            f"{row.place} marks {' and '.join(marked) or 'no class'}; mark one class by 1 and the"
            " others by 0"
        )
    return f"{row.values['image']}.jpg", marked[0]


def _finding(row: Row) -> tuple[str, str] | None:
    """The image file of a line of ChestX-ray14's table and its finding, if it is the only one."""
    findings = row.values["finding labels"].split("|")
    unknown = [name for name in findings if name not in FINDINGS + OTHER_FINDINGS]
    if unknown:
        raise ValueError(
            f"{row.place} has the finding {unknown[0]!r}, which is none of"
            f" {', '.join(sorted(FINDINGS + OTHER_FINDINGS))}; mend this line"
        )
    if len(findings) > 1 or findings[0] not in FINDINGS:
        return None
    return row.values["image index"], findings[0]


CROP_DISEASE = Published(
    name="crop-disease",
    title="CropDisease",
    places=("crop_disease", "CropDiseases", "plant-disease", "plantvillage", ""),
    layout=ClassFolders(("", "train", "dataset/train", "color", "raw/color")),
    splits={"test": _crop_classes()},
    put="dataset/train with its 38 class folders",
    source=(
        "PlantVillage (https://www.kaggle.com/saroz014/plant-disease), which is raw/color of"
        " https://github.com/spMohanty/PlantVillage-Dataset too"
    ),
)
_TRUTH = "ISIC2018_Task3_Training_GroundTruth"
ISIC = Published(
    name="isic",
    title="ISIC 2018",
    places=("isic", "ISIC", "ISIC2018", ""),
    layout=LabelTable(
        tables=(f"{_TRUTH}/{_TRUTH}.csv", f"{_TRUTH}.csv"),
        columns=("image", *map(str.lower, LESIONS)),
        images=("ISIC2018_Task3_Training_Input",),
        labels=_lesion,
    ),
    splits={"test": list(LESIONS)},
    put=f"the folders ISIC2018_Task3_Training_Input and {_TRUTH}",
    source=(
        "task 3 of ISIC 2018 (https://challenge.isic-archive.com/data/#2018, training data and"
        " ground truth)"
    ),
)
CHESTX = Published(
    name="chestx",
    title="ChestX-ray14",
    places=("chestx", "chestX", "ChestX-ray14", "ChestX", ""),
    layout=LabelTable(
        tables=("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"),
        columns=("image index", "finding labels"),
        images=("images", "images_*/images", "images_*"),
        labels=_finding,
    ),
    splits={"test": list(FINDINGS)},
    put="Data_Entry_2017.csv and the unpacked images (images, or images_001 to images_012)",
    source=(
        "the NIH chest X-rays (https://nihcc.app.box.com/v/ChestXray-NIHCC, or"
        " https://www.kaggle.com/nih-chest-xrays/data)"
    ),
)


def crop_disease(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """CropDisease, which is PlantVillage (Mohanty et al. 2016): leaves of 38 kinds, well or ill.

    All classes are for the test, in another domain than that of training (BSCD-FSL, Guo et al.
    2020, arXiv:1912.07200). As there, images are those of `dataset/train` if the folder has a part
    for training.

    Args:
        root: a folder that holds `crop_disease/dataset/train/<class>/*`, as the archive of Kaggle
            is unpacked, or `crop_disease/<class>/*`; or one of these folders.
        split: "test"; there are no classes for training or validation.
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no CropDisease in `root`; the message says what to put where.
        ValueError: if another split is wanted, or a class folder is missing or has no images.

    Example:
        >>> crop_disease("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no CropDisease in /nowhere: put dataset/train with ...
    """
    return read_published(
        CROP_DISEASE, root, split, size=size, in_memory=in_memory, cache=cache, progress=progress
    )


def isic(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """ISIC 2018, task 3 (HAM10000, Tschandl et al. 2018): 10,015 skin lesions of seven kinds.

    All classes are for the test, in another domain than that of training (BSCD-FSL, Guo et al.
    2020, arXiv:1912.07200).

    Args:
        root: a folder that holds `isic/ISIC2018_Task3_Training_Input/*.jpg` and
            `isic/ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv`; or
            that folder.
        split: "test"; there are no classes for training or validation.
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no ISIC 2018 in `root`, or an image is missing. The message
            says what to put where.
        ValueError: if another split is wanted, or a line of the ground truth marks no class or two.

    Example:
        >>> isic("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no ISIC 2018 in /nowhere: put the folders ...
    """
    return read_published(
        ISIC, root, split, size=size, in_memory=in_memory, cache=cache, progress=progress
    )


def chestx(
    root: str | os.PathLike[str],
    split: str = "test",
    *,
    size: int = 84,
    in_memory: bool = True,
    cache: bool | str | os.PathLike[str] = True,
    progress: bool = True,
) -> LabelledImages:
    """ChestX-ray14 (Wang et al. 2017, arXiv:1705.02315) as seven classes.

    All classes are for the test, in another domain than that of training. As in BSCD-FSL (Guo et
    al. 2020, arXiv:1912.07200), they are the images with a single finding of Atelectasis,
    Cardiomegaly, Effusion, Infiltration, Mass, Nodule or Pneumothorax. Of the 112,120 images only
    these are decoded. Grey images are repeated in three channels.

    Args:
        root: a folder that holds `chestx/Data_Entry_2017.csv` and `chestx/images/*.png`, or
            `chestx/images_001/images/*.png` to `images_012`; or that folder.
        split: "test"; there are no classes for training or validation.
        size: as in `image_folder`.
        in_memory: as in `image_folder`.
        cache: as in `image_folder`.
        progress: as in `image_folder`.

    Raises:
        FileNotFoundError: if there is no ChestX-ray14 in `root`, or an image is missing. The
            message says what to put where.
        ValueError: if another split is wanted, or a line of the table has an unknown finding.

    Example:
        >>> chestx("/nowhere")
        Traceback (most recent call last):
        FileNotFoundError: there is no ChestX-ray14 in /nowhere: put Data_Entry_2017.csv and ...
    """
    return read_published(
        CHESTX, root, split, size=size, in_memory=in_memory, cache=cache, progress=progress
    )
