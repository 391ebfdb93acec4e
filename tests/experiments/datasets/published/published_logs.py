"""Generated stand-ins for published logs, in the exact layout of their files; nothing in them is real."""

import gzip
from pathlib import Path

import numpy as np

from experiments.datasets.published.avazu import COLUMNS, NO_DEVICE


def criteo(folder: Path, *, rows: int = 70, days: int | None = None, seed: int = 0) -> Path:
    """`train.txt`, or `days` files `day_0`, ... of that many rows each: no header, tabs, empty fields.

    C1 decides the click, but for a tenth of the rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for name in ["train.txt"] if days is None else [f"day_{day}" for day in range(days)]:
        kind_N = rng.integers(0, 4, rows)
        clicked_N = (kind_N == 0) ^ (rng.random(rows) < 0.1)
        lines = []
        for kind, clicked in zip(kind_N.tolist(), clicked_N.tolist(), strict=True):
            numbers = ["" if rng.random() < 0.2 else str(int(rng.integers(-3, 5000))) for _ in range(13)]
            ids = ["" if rng.random() < 0.1 else f"{int(rng.integers(0, 20)) * 7919:08x}" for _ in range(25)]
            lines.append("\t".join([str(int(clicked)), *numbers, f"{kind + 0xFFFFFFF0:08x}", *ids]))
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def avazu(folder: Path, *, rows: int = 120, packed: bool = True, seed: int = 0) -> Path:
    """`train.gz`, or `train`: ten days of hours in their order; half of the devices have no id."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [",".join(COLUMNS)]
    for row in range(rows):
        day, hour = divmod(row * 240 // rows, 24)
        device = NO_DEVICE if rng.random() < 0.5 else f"{int(rng.integers(0, 9)):08x}"
        ad = int(rng.integers(0, 5))
        values = {
            "id": str(10_000_000_000_000_000_000 + row),
            "click": str(int(rng.random() < 0.1 + 0.15 * ad)),
            "hour": f"1410{21 + day}{hour:02d}",
            "C1": "1005",
            "banner_pos": str(int(rng.integers(0, 2))),
            "device_id": device,
            "C14": str(15_700 + ad),
            "C20": "-1",
        }
        for name in COLUMNS:
            hashed = name.startswith(("site_", "app_", "device_ip", "device_model"))
            default = f"{int(rng.integers(0, 30)):08x}" if hashed else str(int(rng.integers(0, 4)))
            values.setdefault(name, default)
        lines.append(",".join(values[name] for name in COLUMNS))
    text = ("\n".join(lines) + "\n").encode()
    if packed:
        (folder / "train.gz").write_bytes(gzip.compress(text))
    else:
        (folder / "train").write_bytes(text)
    return folder


def open_bandit(folder: Path, *, rows: int = 140, products: int = 5, seed: int = 0) -> Path:
    """`random/men` and `bts/men`: row numbers without a name, seven days, hashed features, affinities."""
    rng = np.random.default_rng(seed)
    affinities = [f"user-item_affinity_{number}" for number in range(products)]
    users = [f"user_feature_{number}" for number in range(4)]
    head = ["", "timestamp", "item_id", "position", "click", "propensity_score", *users, *affinities]
    for policy in ("random", "bts"):
        home = folder / policy / "men"
        home.mkdir(parents=True)
        lines = [",".join(head)]
        for row in range(rows):
            day, hour = divmod(row * 168 // rows, 24)
            past = rng.integers(0, 3, products)
            product = int(rng.integers(0, products))
            fields = [
                str(row),
                f"2019-11-{24 + day} {hour:02d}:{row % 60:02d}:13.442536+00:00",
                str(product),
                str(1 + int(rng.integers(0, 3))),
                str(int(rng.random() < (0.8 if past[product] == 2 else 0.1))),
                repr(1 / products),
                *(f"{int(rng.integers(0, 3)):032x}" for _ in users),
                *(f"{count}.0" for count in past),
            ]
            lines.append(",".join(fields))
        (home / "men.csv").write_text("\n".join(lines) + "\n")
        context = [",".join(["", "item_id", *(f"item_feature_{number}" for number in range(4))])]
        for product in range(products):
            hashes = [f"{int(rng.integers(0, 3)):032x}" for _ in range(3)]
            context.append(",".join([str(product), str(product), repr(product / 3 - 0.5), *hashes]))
        (home / "item_context.csv").write_text("\n".join(context) + "\n")
    return folder


def complete_journey(folder: Path, *, households: int = 6, days: int = 210, seed: int = 0) -> Path:
    """The two files that are read, with upper-case names, padded texts and numbered days."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [
        "household_key,BASKET_ID,DAY,PRODUCT_ID,QUANTITY,SALES_VALUE,STORE_ID,RETAIL_DISC,TRANS_TIME,WEEK_NO,"
        "COUPON_DISC,COUPON_MATCH_DISC"
    ]
    basket = 26_984_851_472
    for day in range(1, days + 1):
        for household in rng.permutation(households)[: households // 2].tolist():
            basket += 1
            taste = [1, 2, 3] if household % 2 else [4, 5, 6]
            time = f"{int(rng.integers(0, 24))}{int(rng.integers(0, 60)):02d}"
            for product in rng.permutation(taste)[:2].tolist():
                lines.append(
                    f"{household + 1},{basket},{day},{1000 + product},1,1.39,364,-0.6,{time},"
                    f"{(day + 6) // 7},0,0"
                )
    (folder / "transaction_data.csv").write_text("\n".join(lines) + "\n")
    products = [
        "PRODUCT_ID,MANUFACTURER,DEPARTMENT,BRAND,COMMODITY_DESC,SUB_COMMODITY_DESC,CURR_SIZE_OF_PRODUCT"
    ]
    products += [
        f"{1000 + number},2,GROCERY,National,FRZN ICE,ICE - CRUSHED/CUBED {number},{number} LB   "
        for number in range(1, 7)
    ]
    products.append("1099,3, ,Private, , , ")
    (folder / "product.csv").write_text("\n".join(products) + "\n")
    return folder
