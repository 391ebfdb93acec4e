"""One table of a benchmark, and the line that says what it was measured on."""

from dataclasses import dataclass
from typing import Any

from experiments.statistics.cells import markdown_table


@dataclass(frozen=True)
class ResultTable:
    """A table with what it was measured on."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """First column to the left, the others to the right."""
        lines = markdown_table(self.columns, self.rows)
        return "\n".join(
            [f"**{self.title}**", "", *lines, "", *(f"{note}  " for note in self.notes)]
        ).rstrip()


def machine_note(result: dict[str, Any]) -> str:
    """Command, date, commit, machine and versions of a result."""
    machine = result["machine"]
    instructions = ", ".join(machine["instructions"]) or "none of AVX2, AVX-512, AMX"
    versions = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    return (
        f"`{result['command']}` on {machine['date']} at commit {machine['commit']}: "
        f"{machine['processor']}, {machine['cores']} cores ({instructions}), {machine['memory_gib']} GiB, "
        f"{machine['system']}; {versions}."
    )


def shared_machine(result: dict[str, Any]) -> tuple[str, ...]:
    """A warning, if other work had the machine before the run began; older results do not say."""
    load = result.get("load_average_before", 0)
    if load <= 0.5:
        return ()
    return (
        f"**The machine was shared**: its load average was {load:.1f} on {result['machine']['cores']} cores "
        "before the run; caches and memory were shared, too. Wall times say nothing.",
    )
