"""One step of stage 1 against loops: whose features stand where, and which pairs are hard."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from embeddings.catalog.products import ProductCatalog
from embeddings.stages.stage1 import PretrainBatch, PretrainTask
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import pretrain_task, product_parts

PRODUCTS = 24
SHARE, TEMPERATURE = 0.3, 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("step"), products=PRODUCTS)


def features(task: PretrainTask, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
    """Unit vectors of images and titles by the encoder that is trained."""
    product, products = task.encoder.product, batch.products
    text_BTH = product.text_tokens(products.ids_BT, products.mask_BT)
    image_BD = product.image_features(product.image_tokens(products.pixels_BCHW))
    return image_BD.detach(), product.text_features(text_BTH, products.mask_BT).detach()


def grouped(batch: PretrainBatch, groups: list[int]) -> PretrainBatch:
    return batch._replace(group_B=torch.tensor(groups))


def test_the_contrast_has_the_teachers_columns_and_its_share_of_the_targets(data: Path) -> None:
    """When the encoder has moved away from its teacher, all columns are the teacher's features."""
    settings = {"queue_size": 12, "soft_target_share": SHARE, "temperature": TEMPERATURE}
    task = pretrain_task(data, batch_size=4, augmentation=None, **settings)
    before, batch, *_ = task.micro_batches(0, 0)
    before, batch = grouped(before, [0, 1, 2, 3]), grouped(batch, [4, 1, 5, 4])
    teacher_image_CD, teacher_text_CD = (
        torch.cat(parts) for parts in zip(features(task, batch), features(task, before), strict=True)
    )
    groups = [*batch.group_B.tolist(), *before.group_B.tolist()]
    task.before_step(99)  # past the rise of the share; the teacher is where the encoder is
    task.module.train()
    with torch.no_grad():
        task.module.online.vision_proj.weight.add_(0.5)
        task.module.online.text_proj.bias.add_(0.5)
    task.module(before)
    torch.testing.assert_close(task.module.queue.image_QD[:4], teacher_image_CD[4:])
    torch.testing.assert_close(task.module.queue.text_QD[:4], teacher_text_CD[4:])
    found = float(task.module(batch)["itc"].detach())

    def loop(share: float) -> float:
        total = 0.0
        image_BD, text_BD = features(task, batch)
        for own_BD, teacher_CD, other_CD in (
            (image_BD, teacher_image_CD, teacher_text_CD),
            (text_BD, teacher_text_CD, teacher_image_CD),
        ):
            for row in range(4):
                log_share_C = (own_BD[row] @ other_CD.T / TEMPERATURE).log_softmax(dim=0)
                teacher_C = (teacher_CD[row] @ other_CD.T / TEMPERATURE).softmax(dim=0)
                same_C = torch.tensor([float(group == groups[row]) for group in groups])
                target_C = share * teacher_C + (1 - share) * same_C / same_C.sum()
                total -= float(target_C @ log_share_C) / 2 / 4
        return total

    assert found == pytest.approx(loop(SHARE), rel=1e-5)
    assert abs(loop(0.0) - loop(SHARE)) > 1e-3, "a teacher without a say would give the same"


def test_a_title_gets_the_image_most_like_it_and_an_image_the_title_most_like_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image i looks like title i + 1 above all, so title i like image i - 1: the directions differ."""
    task = pretrain_task(data, batch_size=16, augmentation=None, temperature=0.01)
    batch = next(task.micro_batches(0, 0))
    rows, product = len(batch.group_B), task.encoder.product
    batch = grouped(batch, list(range(rows)))
    title_BD = one_hot(torch.arange(rows), product.text_proj.out_features).float()
    image_BD = normalize(title_BD + 2 * title_BD.roll(-1, dims=0), dim=1)
    shown_BIH = product.image_tokens(batch.products.pixels_BCHW).detach()
    titles = {tuple(ids): row for row, ids in enumerate(batch.products.ids_BT.tolist())}
    pairs: list[tuple[int, int]] = []

    def look(ids_NT: Tensor, mask_NT: Tensor, image_NIH: Tensor) -> Tensor:
        image_N = torch.cdist(image_NIH.flatten(1), shown_BIH.flatten(1)).argmin(dim=1)
        pairs.extend(zip((titles[tuple(ids)] for ids in ids_NT.tolist()), image_N.tolist(), strict=True))
        return torch.zeros(len(ids_NT), 2)

    monkeypatch.setattr(product, "image_features", lambda *_: image_BD)
    monkeypatch.setattr(product, "text_features", lambda *_: title_BD)
    monkeypatch.setattr(product, "match_logits", look)
    task.module(batch)
    assert pairs[:rows] == [(row, row) for row in range(rows)]
    assert pairs[rows : 2 * rows] == [(row, (row - 1) % rows) for row in range(rows)]
    assert pairs[2 * rows :] == [((row + 1) % rows, row) for row in range(rows)]


@pytest.mark.parametrize("within_groups", [True, False])
@pytest.mark.parametrize("share, most, kept", [(0.5, 4, 4), (0.25, 2000, 6), (0.01, 2000, 2)])
def test_products_kept_aside_are_a_share_but_two_at_least_and_no_more_than_asked(
    data: Path, within_groups: bool, share: float, most: int, kept: int
) -> None:
    changes = {"most_validation_products": most, "validation_within_groups": within_groups}
    parts = product_parts(ProductCatalog.open(data), share, **changes)
    assert parts.validation_P.sum() == kept
    np.testing.assert_array_equal(parts.train_P, ~parts.validation_P)
