"""The examples in docstrings run, and what the literature names has one, and its source."""

import doctest
import importlib
import inspect
from types import ModuleType

import pytest

from tests.test_layout import MODULES, ROOT

WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in MODULES
    if ">>> " in path.read_text(encoding="utf-8")
]
#: What the literature knows by name: a docstring says where from.
FROM_THE_LITERATURE = [
    ("ranking.cross_network", "CrossNetwork"),
    ("ranking.towers", "DcnTower"),
    ("ranking.towers", "DashClipTower"),
    ("ranking.metrics", "roc_auc"),
    ("ranking.metrics", "normalized_log_loss"),
    ("ranking.metrics", "calibration"),
    ("ranking.metrics", "grouped_auc"),
    ("embeddings.training.losses", "itc_loss"),
    ("embeddings.training.losses", "itm_loss"),
    ("embeddings.training.losses", "pqc_loss"),
    ("embeddings.encoders.dashclip", "DashClipEncoder"),
    ("embeddings.evaluation.retrieval", "retrieval_metrics"),
    ("embeddings.tables.lsa", "lsa_vectors"),
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("module, name", FROM_THE_LITERATURE, ids=lambda value: value)
def test_what_the_literature_names_has_an_example_and_its_source(module: str, name: str) -> None:
    text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
    assert ">>> " in text
    assert "https://" in text
