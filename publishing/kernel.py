"""Run a notebook, cell by cell, in this very Python.

Shared by `make course`, `course notebooks` and the tests, so that a cell sees the same
environment in all three.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

# What every kernel of the course gets. Waiting threads that spin would starve a busy
# machine; a progress bar in a stored output differs from run to run, and so does a form.
KERNEL_SETTINGS = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COURSE_PLAIN": "1",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class OwnKernelManager(AsyncKernelManager):
    """Starts the Python that runs this script, whatever kernels the machine has registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())  # its command begins with sys.executable


@dataclass(frozen=True)
class Failure:
    """Where and why a notebook stopped."""

    number: int  # as in Jupyter's [n]: the first code cell is 1
    n_cells: int  # code cells in the notebook
    source: str
    error: str  # "ValueError: what it said"
    place: str  # "line 2 of the cell", or where the cell's call ended up

    def __str__(self) -> str:
        lines = "\n".join(f"    {line}" for line in self.source.rstrip().splitlines())
        return f"cell {self.number} of {self.n_cells}:\n\n{lines}\n\n{self.error}{self.place and f'  ({self.place})'}"


def code_cells(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that hold code, in order; empty ones are not run and not counted."""
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


def run_notebook(
    book: nbformat.NotebookNode,
    folder: Path,
    settings: dict[str, str],
    *,
    before_cell: Callable[[int], None] = lambda number: None,
    timeout: int | None = None,
    manager: type[AsyncKernelManager] = OwnKernelManager,
) -> Failure | None:
    """Run a notebook in place, from an empty kernel, until its end or its first failing cell.

    Args:
        book: its outputs are replaced cell by cell; cells after a failure lose theirs.
        folder: the kernel's working directory.
        settings: environment variables on top of this process's own.
        before_cell: called with the number of the cell that is about to run.
        timeout: seconds for one cell; None waits for ever.
        manager: starts the kernel; the tests start one of another Python.
    """
    cells = code_cells(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # no warning about its own sockets
    client = NotebookClient(
        book,
        kernel_manager_class=manager,
        timeout=timeout,
        coalesce_streams=True,
        record_timing=False,
        startup_timeout=300,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],
    )
    positions = {id(cell): index for index, cell in enumerate(book.cells)}
    with client.setup_kernel(env=os.environ | settings):
        for number, cell in enumerate(cells, start=1):
            before_cell(number)
            try:
                client.execute_cell(cell, positions[id(cell)], execution_count=number)
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                return failure(cell, number, len(cells), error)
            finally:
                tidy_outputs(cell)
    return None


def failure(cell: nbformat.NotebookNode, number: int, n_cells: int, error: Exception) -> Failure:
    """Say in a few words what stopped a cell; its whole traceback stays in its output."""
    if isinstance(error, CellTimeoutError):
        return Failure(number, n_cells, cell.source, "The cell took longer than it may.", "")
    if isinstance(error, DeadKernelError):
        return Failure(
            number, n_cells, cell.source, "The kernel died. The usual cause is too little memory.", ""
        )
    output = next(o for o in cell.outputs if o.output_type == "error")
    text = plain("\n".join(output.traceback))
    said = plain(output.evalue).strip()
    return Failure(
        number, n_cells, cell.source, f"{output.ename}: {said}" if said else output.ename, place(text)
    )


def plain(text: str) -> str:
    """Without the terminal's colour codes."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def place(traceback: str) -> str:
    """The cell's line and, where the error arose deeper, the last file and line."""
    frames = re.findall(
        r"^(?:Cell In\[\d+\], line (\d+)|File (\S+?):(\d+), in ([\w.]+))", traceback, re.MULTILINE
    )
    in_cell = [f"line {line} of the cell" for line, *_ in frames if line]
    deeper = [f"{Path(file).name} line {number}, in {name}" for _, file, number, name in frames if file]
    last_is_deeper = frames and frames[-1][1]
    return ", ".join(in_cell[:1] + (deeper[-1:] if last_is_deeper else []))


def tidy_outputs(cell: nbformat.NotebookNode) -> None:
    """Drop what only lives while the kernel does: widget ids and timings."""
    kept = []
    for output in cell.outputs:
        if "data" in output:
            output.data.pop(WIDGET_VIEW, None)
        if output.get("data", True):
            kept.append(output)
    cell.outputs = kept
    cell.metadata.pop("execution", None)
