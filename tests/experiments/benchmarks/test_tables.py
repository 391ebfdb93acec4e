"""Benchmark results as tables, and the document that carries them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.benchmarks.document import CLASSES, processor_class, render_document, update_document
from experiments.benchmarks.tables import PARTS, tables_of
from experiments.benchmarks.training.step_profile import KINDS
from experiments.cli import app

REPOSITORY = Path(__file__).parents[3]
MACHINE = {
    "processor": "Example CPU",
    "instructions": ["avx2"],
    "cores": 2,
    "memory_gib": 24.0,
    "system": "Linux x86_64, Python 3.11.7",
    "libraries": {"torch": "2.13.0"},
    "commit": "0123456789",
    "date": "2026-01-31",
}


def _spread(median: float) -> dict[str, Any]:
    return {"median": median, "low": median - 1, "high": median + 1, "runs": 3}


def _trainer(title: str, speed: float) -> dict[str, Any]:
    return {
        "title": title,
        "precision": "float32",
        "loop_rows_per_cpu_s": _spread(speed),
        "step_rows_per_cpu_s": _spread(speed + 500),
        "loop_rows_per_s": _spread(speed - 500),
        "peak_mib": 1234.5,
    }


def _results() -> dict[str, dict[str, Any]]:
    common = {"machine": MACHINE, "command": "dashclip bench"}
    return {
        "training": {
            **common,
            "settings": {"rows": 1_000_000, "batch_size": 4096, "rounds": 3},
            "auc": {"best_reachable": 0.88, "ours": 0.7612, "fuxictr": 0.7601},
            "trainers": {"ours": _trainer("Ours", 10_000), "fuxictr": _trainer("FuxiCTR", 4_000)},
            "precision": "float32",
            "ratio_to_fastest_peer": 2.5,
            "float32_ratio_to_fastest_peer": 2.5,
            "precisions": {"rows": 8192, "auc": {"float32": 0.6, "bfloat16": 0.5995}, "difference": -0.0005},
            "profile": {
                "float32": {
                    "rows": 4096,
                    "ms": 140.0,
                    "kinds": {kind: {"ms": 20.0, "share": 1 / 7, "mb": 50.0} for kind in KINDS},
                    "limit_ms": {"products": 90.0, "memory": 8.0},
                    "share_of_limit": 0.7,
                }
            },
            "roofline": {
                "flop_per_row": 5_617_008,
                "embedding_bytes_per_row": 8_528,
                "float32_gflops": 75.0,
                "bfloat16_gflops": 2.0,
                "copy_gb_per_s": 15.0,
                "rows_per_s": {"float32": 13_000.0, "bfloat16": 400.0},
                "step_share": {"float32": 0.8},
                "end_to_end_share": {"float32": 0.77},
            },
        },
        "features": {
            **common,
            "settings": {"impressions": 5_000_000, "purchases": 2_000_000, "users": 200_000},
            "compared": {"rows": 5_000_000, "columns": 50, "differences": []},
            "identical": True,
            "cpu_ratio_to_pandas": 0.9,
            "memory_ratio_to_pandas": 0.3,
            "ours": {"cpu_s": 45.0, "wall_s": 46.0, "peak_mib": 900.0},
            "pandas": {"cpu_s": 50.0, "wall_s": 51.0, "peak_mib": 3000.0},
        },
        "loader": {
            **common,
            "rows": 900_000,
            "columns": 39,
            "peak_mib": 400.0,
            **{
                way: {"rows_per_s": 1_200_000.0, "rows_per_cpu_s": 1_250_000.0}
                for way in ("shuffled", "stored_order", "shuffled_with_history")
            },
        },
        "scaling": {
            **common,
            "settings": {"memory_limit": "400MB"},
            "rows": [1000, 2000],
            "build": {"cpu_s": [1.0, 2.0], "peak_mib": [300.0, 301.0]},
            "training": {"cpu_s": [3.0, 4.0], "peak_mib": [500.0, 502.0]},
        },
        "spark": {
            **common,
            "settings": {"master": "local[2]", "driver_memory": "2g"},
            "identical": True,
            "files": 20,
            "rows": 400_000,
            "purchases": 300_000,
            "columns": 40,
            "duckdb": {"cpu_s": 2.0, "wall_s": 3.0, "peak_mib": 300.0},
            "spark": {"cpu_s": 60.0, "start_cpu_s": 10.0, "wall_s": 70.0, "peak_mib": 1800.0},
        },
    }


def test_every_table_is_rectangular_and_says_what_it_was_measured_on() -> None:
    for part, result in _results().items():
        tables = tables_of(part, result)
        assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
        text = "\n".join(table.markdown() for table in tables)
        assert "Example CPU" in text
        assert "0123456789" in text
        assert "2026-01-31" in text


def test_the_training_table_gives_speeds_ratio_and_share_of_the_roofline() -> None:
    speed, profile, roofline = tables_of("training", _results()["training"])
    assert speed.rows[0] == ("Ours", "10,000 (9,999 to 10,001)", "10,500", "9,500", "0.7612", "1,234")
    assert "2.50x" in speed.markdown()
    assert "(difference -0.0005)" in speed.markdown()
    assert roofline.rows == (("float32", "75.0", "13,000", "80 %", "77 %"),)
    assert profile.rows[0] == ("matrix products", "20.0", "14 %", "50")
    assert profile.rows[-2] == ("**a step**", "140.0", "100 %", "350")
    assert profile.rows[-1] == ("limit: products + memory", "90.0 + 8.0", "70 %", "")


def test_more_threads_have_a_table_of_their_own_with_what_it_was_measured_on() -> None:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "low": 0.9 * value, "high": 1.1 * value}

    part = {"one": spread(20_000.0), "many": spread(34_000.0), "ratio": spread(1.7)}
    threads = {
        "threads": 2,
        "rows": 24_576,
        "rounds": 3,
        "load_average_before": 1.2,
        "precisions": {"float32": {"loop": part, "step": part}},
    }
    result = _results()["training"]
    assert len(tables_of("training", result | {"threads": None})) == 3
    *_, table = tables_of("training", result | {"threads": threads})
    assert table.rows[0] == ("float32, end to end", "20,000", "34,000", "1.70 (1.53 to 1.87)")
    assert "dashclip bench training --threads 2" not in table.markdown()
    own = threads | {"machine": MACHINE, "command": "dashclip bench training --threads 2"}
    *_, table = tables_of("training", result | {"threads": own})
    assert "dashclip bench training --threads 2" in table.markdown()


def test_a_difference_in_the_features_is_printed_not_hidden() -> None:
    result = _results()["features"]
    assert "compared: identical." in tables_of("features", result)[0].markdown()
    result["identical"] = False
    result["compared"]["differences"] = ["test/user_ctr_7d"]
    assert "different in test/user_ctr_7d" in tables_of("features", result)[0].markdown()


@pytest.mark.parametrize("part", ["features", "loader"])
def test_a_machine_that_others_used_is_said(part: str) -> None:
    result = _results()[part]
    assert "shared" not in tables_of(part, result)[0].markdown()
    shared = tables_of(part, result | {"load_average_before": 12.3})[0].markdown()
    assert "**The machine was shared**: its load average was 12.3 on" in shared


def test_files_that_differ_by_engine_are_said_to_differ() -> None:
    result = _results()["spark"]
    assert "every file the same" in tables_of("spark", result)[0].markdown()
    result["identical"] = False
    assert "NOT the same files" in tables_of("spark", result)[0].markdown()


def test_rendering_twice_changes_nothing_and_keeps_the_prose() -> None:
    document = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    once = render_document(document, _results())
    assert render_document(once, _results()) == once
    assert "How to read the numbers" in once
    for part in PARTS:
        assert once.count(f"<!-- bench:{part} -->") == 1


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ([], "other"),
        (["avx2"], "AVX2"),
        (["avx2", "avx512f"], "AVX-512"),
        (["avx2", "avx512f", "avx512_bf16"], "AVX512-BF16"),
        (["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "AMX"),
    ],
)
def test_the_class_of_a_processor_is_that_of_its_fastest_matrix_products(
    instructions: list[str], expected: str
) -> None:
    assert processor_class({"instructions": instructions}) == expected
    assert expected in CLASSES


def test_results_of_another_class_of_processor_stand_beside_those_that_are_there() -> None:
    document = "a\n<!-- bench:loader -->\n<!-- /bench:loader -->\nz\n"
    loader = _results()["loader"]
    amx = {**MACHINE, "processor": "Newer CPU", "instructions": ["avx2", "amx_bf16"]}
    first = render_document(document, {"loader": loader | {"machine": amx}})
    both = render_document(first, {"loader": loader})
    assert both.index("### On AVX2: Example CPU") < both.index("### On AMX: Newer CPU")
    assert both.startswith("a\n")
    assert both.endswith("-->\nz\n")
    replaced = render_document(both, {"loader": loader | {"rows": 123_456}})
    assert "123,456 rows" in replaced
    assert "900,000 rows" not in replaced.split("<!-- on:AMX -->")[0]
    assert replaced.count("### On") == 2
    assert replaced.split("<!-- on:AMX -->")[1] == both.split("<!-- on:AMX -->")[1]


def test_a_table_that_stands_in_no_class_is_refused_and_not_lost() -> None:
    document = "<!-- bench:loader -->\n**Loader**\n<!-- /bench:loader -->\n"
    with pytest.raises(ValueError, match=r"must stand between <!-- on:CLASS --> .* '\*\*Loader\*\*' outside"):
        render_document(document, {"loader": _results()["loader"]})
    document = "<!-- bench:loader -->\n<!-- on:Z80 -->\n<!-- /on:Z80 -->\n<!-- /bench:loader -->\n"
    with pytest.raises(ValueError, match="the classes Z80"):
        render_document(document, {"loader": _results()["loader"]})


def test_parts_that_were_not_measured_keep_their_old_tables(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text(render_document((REPOSITORY / "docs" / "benchmarks.md").read_text(), _results()))
    before = document.read_text()
    changed = _results()["scaling"] | {"rows": [5000, 10_000]}
    (tmp_path / "scaling.json").write_text(json.dumps(changed))
    assert update_document(document, tmp_path) == ["scaling"]
    after = document.read_text()
    assert "| 2x | 10,000 |" in after
    assert before.replace("| 1,000 |", "| 5,000 |").replace("| 2,000 |", "| 10,000 |") == after


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="needs <!-- bench:loader -->"):
        render_document("# Benchmarks", {"loader": _results()["loader"]})


def test_a_half_written_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loader.json").write_text('{"rows": 9')
    document = tmp_path / "benchmarks.md"
    document.write_text("")
    with pytest.raises(ValueError, match="measure again with `dashclip bench loader`"):
        update_document(document, tmp_path)


def test_the_tables_command_prints_what_was_measured_and_names_what_was_not(tmp_path: Path) -> None:
    (tmp_path / "loader.json").write_text(json.dumps(_results()["loader"]))
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- bench:loader -->\n<!-- /bench:loader -->\n")
    ran = CliRunner().invoke(app, ["bench", "tables", "--out", str(tmp_path), "--docs", str(document)])
    assert ran.exit_code == 0, ran.output
    assert "1,200,000" in ran.output
    assert "training: not measured yet" in ran.output
    assert "| shuffled | 1,200,000 | 1,250,000 |" in document.read_text()
