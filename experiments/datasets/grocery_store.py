"""The Grocery Store data set as a catalogue: every photo a product with an image, a title and an aisle.

Source: M. Klasson, C. Zhang and H. Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and
Semantic Labels", WACV 2019 (MIT licence). Smartphone photos of fruit, vegetables and packages on the shelf in
fine and coarse classes; each fine class has an iconic picture from a web shop and a description.

- A photo is a product, named by its path. Photos of a class share title, description and aisle.
- The iconic picture of a class is a product, too, with the split `iconic`.
- The aisle is the coarse class; the published split stays in a further column `split`.

The data set has no queries, grades or logs, so only products are written. Titles name the class: to classify
photos, encode them by their images alone.
"""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.artifacts import atomic_folder, atomic_write_json, json_file_has, refuse_to_replace_input
from features.inputs.tables import InputError
from features.progress import Progress, silent

#: The published lists of photos and what their split is called here.
SPLITS = (("train.txt", "train"), ("val.txt", "validation"), ("test.txt", "test"))
ICONIC = "iconic"
CLASS_FIELDS = 6


@dataclass(frozen=True)
class GroceryClass:
    """One fine class; the paths are relative to the data set's folder."""

    class_id: int
    name: str
    coarse_id: int
    coarse_name: str
    iconic_image: str
    description: str

    @property
    def title(self) -> str:
        """What a shopper would read: Golden-Delicious of Apple gives "Golden Delicious Apple"."""
        name, coarse = self.name.replace("-", " "), self.coarse_name.replace("-", " ")
        return name if coarse.casefold() in name.casefold() else f"{name} {coarse}"


@dataclass(frozen=True)
class Photo:
    """One picture, by its path relative to the data set's folder."""

    path: str
    class_id: int
    split: str


@dataclass(frozen=True)
class GroceryStoreSummary:
    """What was imported; the photos of the three splits and one iconic picture for each class."""

    classes: int
    coarse_classes: int
    train: int
    validation: int
    test: int
    iconic: int


def import_grocery_store(source: Path, out: Path, *, progress: Progress = silent) -> GroceryStoreSummary:
    """Write the products of the Grocery Store data set to the folder `out`, with copies of all pictures.

    `source` is the folder with `classes.csv`, or the repository whose folder `dataset` has it.

    Raises:
        InputError: a list, picture or description is missing, or a line cannot be read; names file and line.
        FileExistsError: `out` holds something that is not an import; an older import is replaced.
        ValueError: `out` would replace `source`.
    """
    refuse_to_replace_input(out, source)
    root = _root(source)
    classes = {found.class_id: found for found in _classes(root)}
    photos = [photo for name, split in SPLITS for photo in _photos(root, name, split, classes)]
    photos += [Photo(found.iconic_image, found.class_id, ICONIC) for found in classes.values()]
    _refuse_repeated(photos, root)
    counts = {
        split: sum(photo.split == split for photo in photos) for *_, split in (*SPLITS, (ICONIC, ICONIC))
    }
    summary = GroceryStoreSummary(
        classes=len(classes), coarse_classes=len({found.coarse_id for found in classes.values()}), **counts
    )
    with atomic_folder(
        out, ours=lambda found: json_file_has(found / "source.json", "coarse_classes")
    ) as folder:
        for done, photo in enumerate(photos):
            progress("copying pictures", done, len(photos))
            copy = folder / "images" / photo.path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / photo.path, copy)
        pq.write_table(_products(photos, classes), folder / "products.parquet")
        description = {
            "source": "Grocery Store Dataset",
            "simulated": False,
            "product": "a photo; `split` tells train, validation, test and iconic pictures apart",
            "aisle": "the coarse class",
            "absent": ["relevance", "impressions", "purchases"],
        }
        atomic_write_json(folder / "source.json", {**description, **asdict(summary)})
    return summary


def _root(source: Path) -> Path:
    for folder in (source, source / "dataset"):
        if (folder / "classes.csv").is_file():
            return folder
    raise InputError(
        f"{source} holds no classes.csv; give the folder `dataset` of the Grocery Store repository"
    )


def _classes(root: Path) -> Iterator[GroceryClass]:
    """Name, id, coarse name, coarse id, iconic picture, description file; paths start with a slash."""
    path = root / "classes.csv"
    seen: set[int] = set()
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        next(lines, None)
        for fields in lines:
            place = f"{path} line {lines.line_num}"
            if not fields:
                continue
            if len(fields) != CLASS_FIELDS:
                raise InputError(f"{place}: expected {CLASS_FIELDS} fields but found {len(fields)}")
            name, class_id, coarse_name, coarse_id, iconic, description = (field.strip() for field in fields)
            number = _whole(class_id, "class id", place)
            if number in seen:
                raise InputError(f"{place}: class id {number} occurs twice; each class needs its own")
            seen.add(number)
            text = _inside(root, description.removeprefix("/"), place).read_text(encoding="utf-8")
            picture = iconic.removeprefix("/")
            _inside(root, picture, place)
            coarse_number = _whole(coarse_id, "coarse class id", place)
            yield GroceryClass(number, name, coarse_number, coarse_name, picture, " ".join(text.split()))
    if not seen:
        raise InputError(f"{path} names no class; is the download complete?")


def _photos(root: Path, name: str, split: str, classes: dict[int, GroceryClass]) -> Iterator[Photo]:
    """Path, class id, coarse class id, separated by commas."""
    path = root / name
    if not path.is_file():
        raise InputError(f"{root} lacks {name}; get the whole Grocery Store data set")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        place = f"{path} line {number}"
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3:
            raise InputError(f"{place}: expected picture, class id, coarse class id, but found {line!r}")
        class_id = _whole(fields[1], "class id", place)
        if class_id not in classes:
            raise InputError(f"{place}: class id {class_id} is not in classes.csv")
        if classes[class_id].coarse_id != _whole(fields[2], "coarse class id", place):
            raise InputError(
                f"{place}: class {class_id} belongs to coarse class {classes[class_id].coarse_id} in "
                f"classes.csv, but to {fields[2]} here"
            )
        _inside(root, fields[0], place)
        yield Photo(fields[0], class_id, split)


def _inside(root: Path, name: str, place: str) -> Path:
    """The named file, which must exist and lie in `root`: names are kept when pictures are copied."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"{place}: {name!r} must be a path inside the data set")
    path = root / pure
    if not path.is_file():
        raise InputError(f"{place}: {path} is missing; get the whole Grocery Store data set")
    return path


def _refuse_repeated(photos: list[Photo], root: Path) -> None:
    seen: dict[str, str] = {}
    for photo in photos:
        if photo.path in seen:
            raise InputError(
                f"{root / photo.path} is listed twice ({seen[photo.path]} and {photo.split}); "
                "a picture is one product"
            )
        seen[photo.path] = photo.split


def _whole(text: str, meaning: str, place: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{place}: the {meaning} must be a whole number, not {text!r}")
    return int(text)


def _products(photos: list[Photo], classes: dict[int, GroceryClass]) -> pa.Table:
    of = [classes[photo.class_id] for photo in photos]
    columns: dict[str, Any] = {
        "product_id": pa.array([photo.path for photo in photos], pa.string()),
        "title": pa.array([found.title for found in of], pa.string()),
        "aisle": pa.array([found.coarse_name for found in of], pa.string()),
        "image": pa.array([f"images/{photo.path}" for photo in photos], pa.string()),
        "description": pa.array([found.description for found in of], pa.string()),
        "split": pa.array([photo.split for photo in photos], pa.string()),
        "class_id": pa.array([found.class_id for found in of], pa.int32()),
        "class_name": pa.array([found.name for found in of], pa.string()),
        "coarse_class_id": pa.array([found.coarse_id for found in of], pa.int32()),
    }
    return pa.table(columns)
