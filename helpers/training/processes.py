"""Several processes, one run: whose share of a batch is whose, who writes, and what a lost process means.

A launcher (`accelerate launch`, `torchrun`) starts the same script several times. Each process holds the
whole model and works on its own share of a batch; PyTorch's DistributedDataParallel (DDP) takes the mean of
their gradients. In a run of one process, everything here does nothing.
"""

from __future__ import annotations

import atexit
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, TorchDynamoPlugin, gather_object
from torch import nn

from helpers.files import counted
from helpers.profiles import ROOT, drop_library_settings, launcher_settings, wanted_elsewhere
from helpers.training import checkpoints

PATIENCE = timedelta(minutes=10)  # how long a process waits for one that lives and says nothing
LOST = ("closed by peer", "reset by peer", "broken pipe", "timed out", "timeout")  # gloo's words for it


class ProcessError(RuntimeError):
    """What one process of several found out alone, and must say itself. The message says what to do."""


def launch_command(n_processes: int, *script: str) -> list[str]:
    """The command that runs a script in several processes on this machine, one thread each; start it in `ROOT`.

    ``--multi_gpu`` is right without a GPU as well: with ``--cpu`` accelerate 1.15 starts one
    process, whatever number it is given, and says nothing.

    Args:
        script: a file and its arguments, or "-m", a module and its arguments.
    """
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launch += [
        "--num_processes",
        str(n_processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_cpu_threads_per_process",
        "1",
        "--main_process_port",
        "0",
    ]
    # so that a script finds the helpers
    as_module = () if script[0] == "-m" else ("-m", "helpers.training.processes")
    return [*launch, *as_module, *script]


def launch(n_processes: int, *script: str, seconds: float = 300) -> str:
    """Run a script in several processes, to its end, and return what they printed.

    Raises:
        ProcessError: it failed, or took longer than ``seconds``; with the last lines of its errors.
    """
    run = subprocess.Popen(
        launch_command(n_processes, *script),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, errors = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise ProcessError(
            f"{' '.join(script)} was not done after {seconds:g} seconds. Give it more time, or less to do."
        ) from error
    finally:
        if run.poll() is None:
            run.terminate()  # the launcher then ends its processes; killed, it would leave them at work
            run.communicate()
    if run.returncode != 0:
        # the launcher's log follows
        own = re.split(r"^[EW]\d{4} ", errors, maxsplit=1, flags=re.MULTILINE)[0]
        raise ProcessError(
            f"{' '.join(script)} failed in {counted(n_processes, 'process')}:\n{(own or errors)[-2000:]}"
        )
    return printed


def join(device: torch.device) -> Accelerator:
    """This process's place among those that the launcher started; alone, if there was no launcher.

    On GPUs each process gets one of its own, as the current device; call it before the model is loaded.
    accelerate's own variables (precision, gradient accumulation, compilation) change nothing here.

    Raises:
        ProcessError: the environment asks for another way of training, or names no possible place.
    """
    accelerator = _accelerator(device)
    # A Trainer that compiled left its own here.
    accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")
    if accelerator.num_processes > 1:
        atexit.register(_leave)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _told_to_stop)  # Python lets the main thread alone do this
    return accelerator


def _accelerator(device: torch.device) -> Accelerator:
    if wanted := wanted_elsewhere():
        raise ProcessError(
            f"The environment sets {', '.join(wanted)}: this course trains whole models in each process "
            "and does not split them. Unset it, or launch without it."
        )
    _require_place()
    drop_library_settings()
    is_new = not PartialState._shared_state
    try:
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            gradient_accumulation_steps=1,
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except (
        ValueError,
        TypeError,
        KeyError,
        ImportError,
        NotImplementedError,
        OSError,
        RuntimeError,
    ) as error:
        if is_new:
            # half made, it would fail again in each question
            AcceleratorState._reset_state(reset_partial_state=True)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ProcessError(
            f"accelerate cannot start here: {said}. The launcher's settings are "
            f"{launcher_settings() or 'none'}; unset what you did not set on purpose, or start Python "
            "again."
        ) from error


def _require_place() -> None:
    """Raises ProcessError where RANK, LOCAL_RANK and WORLD_SIZE name no place, or only some of them are there.

    accelerate would stop with a traceback, or wait for processes that nobody started.
    """
    found = launcher_settings()
    numbers = {
        name: found[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT") if name in found
    }
    wrong = [
        name
        for name, value in numbers.items()
        if not (value.isascii() and value.isdigit() and len(value) < 9)
    ]
    alone = found.get("WORLD_SIZE", "1") == "1" and "LOCAL_RANK" not in found
    missing = (
        []
        if alone
        else [n for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if n not in found]
    )
    problem = (
        f"not a number: {', '.join(wrong)}"
        if wrong
        else f"missing: {', '.join(missing)}"
        if missing
        else None
    )
    if problem is None and not alone:
        ranks = int(found["RANK"]), int(found["LOCAL_RANK"])
        if max(ranks) >= int(found["WORLD_SIZE"]) or int(found["MASTER_PORT"]) >= 2**16:
            problem = "these numbers do not fit each other"
    if problem:
        raise ProcessError(
            f"The environment says that a launcher started this process ({found}), but {problem}. "
            "Unset these variables, or start with accelerate launch or torchrun."
        )


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end(code: int = 0) -> NoReturn:
    """End a program that may be one process of several, after its work: like `sys.exit`, but for one thing.

    Among several processes Python's own ending is left out. One of gloo's threads may still hold a
    tensor, and a thread that lets go of a tensor while Python ends aborts the process, now and then:
    "terminate called without an active exception" (pytorch/pytorch#190489). Leaving the group does not
    wait for such a thread where something else, as a sharded model, still knows the group.
    """
    if n_processes() == 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def n_processes() -> int:
    """How many processes take part in this run; 1 without a launcher."""
    return PartialState().num_processes if PartialState._shared_state else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return n_processes() == 1 or PartialState().is_main_process


def from_all(value: Any) -> list:
    """The value that each process brings, in their order. All of them must call it."""
    return gather_object([value]) if n_processes() > 1 else [value]


# --- one step in several processes -------------------------------------------------


def own_share(rows: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """This process's rows of a batch: no row twice, none left out, sizes that differ by one at most.

    Raises:
        ProcessError: fewer rows than processes, so that one would have nothing to do.
    """
    if len(rows) < accelerator.num_processes:
        raise ProcessError(
            f"A batch of {counted(len(rows), 'window')} cannot be shared by {accelerator.num_processes} "
            f"processes. Use a batch of {accelerator.num_processes} or more, or fewer processes."
        )
    return np.array_split(rows, accelerator.num_processes)[accelerator.process_index]


def in_parts(
    batch: torch.Tensor, micro: int, accelerator: Accelerator, module: nn.Module
) -> Iterator[torch.Tensor]:
    """The batch in parts of ``micro`` windows; gradients travel between processes with the last part only.

    So processes whose shares have different numbers of parts still meet exactly once a step.
    """
    parts = batch.split(micro)
    for i, part in enumerate(parts):
        with accelerator.no_sync(module) if i + 1 < len(parts) else nullcontext():
            yield part


def sum_over_processes(accelerator: Accelerator, number: float) -> float:
    return accelerator.reduce(
        torch.tensor(number, dtype=torch.float64, device=accelerator.device), "sum"
    ).item()


# --- resume and loss ---------------------------------------------------------------


def random_states() -> dict[str, torch.Tensor]:
    """The random state of every process: the main one's under its plain names, then "process1/…"."""
    first, *others = from_all(checkpoints.random_state())
    return first | {f"process{i}/{name}": t for i, state in enumerate(others, 1) for name, t in state.items()}


def own_random_state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This process's part of `random_states`; the main one's, where it took no part in the saved run."""
    mark = f"process{PartialState().process_index}/" if n_processes() > 1 else "process0/"
    return {n.removeprefix(mark): t for n, t in tensors.items() if n.startswith(mark)} or tensors


def require_one_step(step: int, folder) -> None:
    """Processes that resumed at different steps do not see one folder.

    Raises:
        ProcessError: with the step of each.
    """
    steps = from_all(step)
    if len(set(steps)) > 1:
        raise ProcessError(
            f"The processes found different checkpoints in '{folder}': they stand at steps {steps}. "
            "Give a folder that all of them can read."
        )


def require_processes(wanted: int | None) -> None:
    """Raises ProcessError where the launcher started another number of processes than was wanted."""
    found = n_processes()
    if wanted is not None and wanted != found:
        raise ProcessError(
            f"Asked for: {counted(wanted, 'process')}; taking part: {found}. `accelerate launch --cpu` starts "
            "one process, whatever --num_processes says: use `accelerate launch --multi_gpu "
            f"--num_processes {wanted}`, also without a GPU, or torchrun."
        )


def means_lost_process(error: RuntimeError) -> bool:
    """Whether an error of a collective operation says that another process is gone."""
    said = str(error).lower()
    return n_processes() > 1 and (isinstance(error, dist.DistError) or any(words in said for words in LOST))


def lost_process(folder) -> ProcessError:
    """What to say and do when another process is gone. From here on SIGTERM is ignored, to finish saying it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return ProcessError(
        f"Another process of this run has ended, so process {PartialState().process_index} cannot go "
        f"on. {_what_is_left(folder)}"
    )


def _told_to_stop(number, frame):
    """A launcher sends SIGTERM to the processes that are left when one has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise ProcessError(
        f"Process {PartialState().process_index} was told to stop: another process of this run has "
        f"ended, or the run was cancelled. {_what_is_left(None)}"
    )


def _what_is_left(folder) -> str:
    where = f" in '{folder}'" if folder else ""
    return f"Every checkpoint{where} is as it was; the same command goes on from the newest."


if __name__ == "__main__":  # python -m helpers.training.processes SCRIPT ARGUMENTS
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    end()
