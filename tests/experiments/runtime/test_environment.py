"""What results record of how they were made."""

from experiments.runtime.environment import environment, provenance_of


def test_runs_of_one_machine_are_told_in_one_word_each() -> None:
    made = environment()
    found = provenance_of("dashclip sweep", [made, made])
    assert found["commit"] == made["commit"]
    assert found["machine"] == f"{made['cores']} cores of {made['cpu']}"
    assert found["created"] == made["created"]


def test_what_an_older_record_lacks_is_unknown() -> None:
    older = {"created": "2026-01-01", "commit": "abc"}
    found = provenance_of(None, [older, {}])
    assert found == {
        "command": None,
        "commit": "abc, unknown",
        "created": "2026-01-01",
        "machine": "unknown cores of unknown",
        "torch": "unknown",
    }
    assert provenance_of(None, [{}])["created"] == "unknown"
