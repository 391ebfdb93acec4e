"""`dashclip importance`: which features carry a trained ranker."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def importance(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of one variant, or the folder of a sweep's variant (all its seeds)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for importance.json; the run's, or that of its sweep, if not given."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Permutations of each run.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the permutations.")] = 0,
    methods: Annotated[
        str, typer.Option(help="Of permutation, ablation and integrated_gradients, separated by commas.")
    ] = "permutation,ablation,integrated_gradients",
    split: Annotated[str, typer.Option(help="Rows to evaluate: test or validation.")] = "test",
    slices: Annotated[
        bool,
        typer.Option("--slices/--no-slices", help="Also within user, query and product slices and aisles."),
    ] = True,
    slice_repeats: Annotated[int, typer.Option(min=1, help="Permutations within each slice.")] = 2,
    pairs: Annotated[int, typer.Option(min=0, help="Correlated pairs of features to permute together.")] = 10,
    batch_rows: Annotated[
        int, typer.Option(min=1, help="Rows scored at once: changes memory, never a result.")
    ] = 4096,
    naive: Annotated[
        bool, typer.Option("--naive", help="Also time Captum's FeaturePermutation, which takes minutes.")
    ] = False,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Mark the data as simulated, if no sweep.json does.")
    ] = False,
    drop_below: Annotated[
        float | None,
        typer.Option(
            help="Retrain without the features that cost less AUC than this on the validation days."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Seeds measured at the same time.")] = 1,
) -> None:
    """Measure which features a trained ranker lives on: permutation, ablation, integrated gradients.

    Features are those of the schema, and groups of them. AUC and LogLoss are exact, over all rows of the
    split. Several seeds are combined, methods and seeds compared, correlated features permuted together.
    Writes importance.json and beside it a page, pictures and a CSV for people. Parts that are done are kept
    in importance_parts/: a stopped command goes on where it was.

    Example: `dashclip importance runs/demo/dcn_pq_sim_history`,
    `dashclip importance runs/first --drop-below 0.0002`
    """
    import torch

    from experiments.importance.measure import default_out, measure, measure_parts, run_folders
    from experiments.importance.result import methods_named
    from experiments.importance.run_parts import MeasureOptions
    from experiments.reports.importance.page import write_importance_report
    from experiments.reports.importance.text import feature_table, group_table, sentences
    from experiments.runtime.progress import progress_bars
    from experiments.runtime.terminal import Console

    torch.set_num_threads(threads)
    console = Console()
    folders = run_folders(runs)
    target = out or default_out(runs)
    target.mkdir(parents=True, exist_ok=True)
    options = MeasureOptions(
        repeats=repeats,
        permutation_seed=seed,
        split=split,
        methods=methods_named(methods),
        slices=slices,
        slice_repeats=slice_repeats,
        pairs=pairs,
        batch_rows=batch_rows,
    )
    with progress_bars(console) as bars:
        parts = target / "importance_parts"
        if min(processes, len(folders)) > 1:
            measure_parts(
                folders,
                options,
                parts=parts,
                scratch=target,
                processes=processes,
                threads=threads,
                progress=bars,
            )
        report = measure(
            folders,
            options,
            command="dashclip " + shlex.join(sys.argv[1:]),
            parts=parts,
            scratch=target,
            progress=bars,
        )
        if simulated:
            report = report.model_copy(update={"simulated": True})
        if naive:
            from experiments.importance.captum_comparison import compare_with_captum

            speedup = compare_with_captum(folders[0], split=split, seed=seed, progress=bars)
            report = report.model_copy(update={"speedup": speedup, "speedup_to_naive": speedup["speedup"]})
        if drop_below is not None:
            from experiments.importance.selection import select_and_retrain

            selection = select_and_retrain(
                folders, options, threshold=drop_below, out=target / "importance_selection", progress=bars
            )
            report = report.model_copy(update={"selection": selection})
    report.write(target / "importance.json")
    with console.status("drawing"):
        paths = write_importance_report(target)
    for table in (feature_table(report), group_table(report)):
        console.print(table)
    for sentence in sentences(report):
        console.print(f"• {sentence}", markup=False, highlight=False)
    for path in (target / "importance.json", paths["csv"], paths["page"]):
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
