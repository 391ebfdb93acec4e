"""docs/benchmarks.md: the tables of each part between markers, in one section for each class of processor.

Classes differ several times over in matrix products, so a part that is measured on another class is put
beside what stands there; on the same class it replaces it.

<!-- bench:training -->          a part
<!-- on:AVX2 --> ... <!-- /on:AVX2 -->       its tables on a class
<!-- on:AMX --> ... <!-- /on:AMX -->
<!-- /bench:training -->
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.tables import GPU, PARTS, read_result, tables_of
from features.artifacts import atomic_write_bytes

#: By the instruction that matters most for matrix products, the slowest first.
_CLASS_OF = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX"}
_PLAIN = "other"
_GPU = "GPU"
CLASSES = (_PLAIN, *_CLASS_OF.values(), _GPU)


def processor_class(machine: Mapping[str, Any]) -> str:
    """The class of a processor that `describe_machine` described.

    >>> processor_class({"instructions": ["avx2", "avx512f", "avx512_bf16"]})
    'AVX512-BF16'
    """
    found = [name for instruction, name in _CLASS_OF.items() if instruction in machine["instructions"]]
    return found[-1] if found else _PLAIN


def render_document(document: str, results: Mapping[str, dict[str, Any]]) -> str:
    """`document` with the tables of each measured part in the section of its processor's class.

    Other parts, and the sections of other classes, stay as they are.

    Raises:
        ValueError: a part's markers are missing, or a table stands in no section.
    """
    for part, result in results.items():
        start, end = f"<!-- bench:{part} -->\n", f"<!-- /bench:{part} -->"
        before, *middle = re.split(f"{start}(.*?){end}", document, flags=re.DOTALL)
        if len(middle) != 2:
            raise ValueError(
                f"the document needs <!-- bench:{part} --> and then <!-- /bench:{part} --> exactly once, "
                f"but has them {len(middle) // 2} times; put them where the table of {part!r} shall stand"
            )
        sections = _sections(part, middle[0])
        for name, of_class in _by_class(part, result).items():
            sections[name] = "\n\n".join(
                (
                    f"### On {_title(name, of_class)}",
                    *(table.markdown() for table in tables_of(part, of_class)),
                )
            )
        text = "\n".join(
            f"<!-- on:{name} -->\n\n{sections[name]}\n\n<!-- /on:{name} -->"
            for name in sorted(sections, key=CLASSES.index)
        )
        document = f"{before}{start}{text}\n{end}{middle[1]}"
    return document


def update_document(path: Path, results: Path, *, parts: Sequence[str] = (*PARTS, GPU)) -> list[str]:
    """Write the tables of `results` into the document at `path`; the parts that were found."""
    found = {part: result for part in parts if (result := read_result(results, part)) is not None}
    if GPU in found and not found[GPU]["accelerator"]:
        del found[GPU]  # a trial on a processor
    rendered = render_document(path.read_text(encoding="utf-8"), found)
    atomic_write_bytes(path, rendered.encode())
    return list(found)


def _sections(part: str, text: str) -> dict[str, str]:
    """The tables of each class that stand between the markers of a part."""
    marked = re.compile(r"<!-- on:([\w-]+) -->\n(.*?)<!-- /on:\1 -->", re.DOTALL)
    outside = marked.sub("", text).strip()
    sections = {name: tables.strip() for name, tables in marked.findall(text)}
    if outside or not set(sections) <= set(CLASSES):
        raise ValueError(
            f"the tables of {part!r} must stand between <!-- on:CLASS --> and <!-- /on:CLASS -->, the class "
            f"being one of {', '.join(CLASSES)}, but the document has "
            + (f"{outside[:60]!r} outside" if outside else f"the classes {', '.join(sections)}")
        )
    return sections


def _by_class(part: str, result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The result of each class in it: runs of encoders are kept from several machines."""
    if part == GPU:
        return {_GPU: result}
    if part != "encoders":
        return {processor_class(result["machine"]): result}
    found: dict[str, dict[str, Any]] = {}
    for setting, run in result["runs"].items():
        of_class = found.setdefault(processor_class(run["machine"]), {**result, "runs": {}})
        of_class["runs"][setting] = run
    return found


def _title(name: str, result: dict[str, Any]) -> str:
    if name == _GPU:
        return f"a GPU: {result['accelerator']}"
    machine = result.get("machine") or next(iter(result["runs"].values()))["machine"]
    return f"{name}: {machine['processor']}"
