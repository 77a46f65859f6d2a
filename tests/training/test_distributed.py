"""Two real processes: they talk, they give what one process gives, and the loss of one of them is survived."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from helpers.models.loading import weight_hash
from helpers.profiles import ROOT
from helpers.training import processes
from helpers.training import shell as train
from helpers.training.checkpoints import load_checkpoint
from helpers.training.loop import TokenLoss
from helpers.training.processes import ProcessError, launch_command, own_share
from helpers.training.sharding import blocks_of
from support import two_processes

pytestmark = pytest.mark.timeout(
    900
)  # seconds: a busy machine imports PyTorch slowly, and here three times over
SCRIPT = two_processes.__file__
BOUND = 90  # seconds in which a process must notice that another is lost: half is the launcher's own patience


def launch(*script) -> subprocess.Popen:
    """Two processes, started and not waited for."""
    return subprocess.Popen(
        launch_command(2, *map(str, script)),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What both processes of one launch saw: [process 0, process 1], and the folder."""
    out = tmp_path_factory.mktemp("two")
    process = launch(SCRIPT, "all", out)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return [json.loads((out / f"{i}.json").read_text()) for i in (0, 1)], out


# --- they talk ---------------------------------------------------------------------


def test_two_processes_really_talk_and_the_loss_is_wrapped_in_ddp(seen):
    for process in seen[0]:
        assert process["facts"] == {
            "world": 2,
            "all_reduce": 11.0,
            "backend": "gloo",
            "threads": 1,
            "wrapped": "DistributedDataParallel",
        }


@pytest.mark.parametrize("name", two_processes.RUNS)
def test_two_processes_give_the_weights_of_one(seen, name):
    (zero, one), out = seen
    model, alone = two_processes.run(**two_processes.RUNS[name])
    together = load_file(out / f"{name}.safetensors")
    base = two_processes.build_model(two_processes.CONFIG, seed=1)
    assert max((together[n] - p).abs().max().item() for n, p in model.named_parameters()) < 1e-5
    assert max((together[n] - p).abs().max().item() for n, p in base.named_parameters()) > 1e-3, (
        "nothing was learned"
    )
    assert zero[name]["hash"] == one[name]["hash"] and zero[name]["proof"] and one[name]["proof"]
    for a, b in zip(alone.history.steps, zero[name]["steps"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["norms"] == pytest.approx(b["norms"], abs=1e-5)
        assert a.get("replay") == (
            pytest.approx(b["replay"], abs=1e-5) if name.startswith("replay") else None
        )


def test_both_processes_report_the_loss_of_the_whole_batch(seen):
    zero, one = seen[0]
    assert zero["even"]["steps"] == one["even"]["steps"]


def test_only_the_main_process_writes(seen):
    _, out = seen
    assert sorted(p.name for p in (out / "even").iterdir() if not p.name.startswith(".")) == [
        "step-00000002",
        "step-00000004",
    ]
    assert not list(out.rglob(".partial-*"))


def test_a_run_with_dropout_that_was_stopped_goes_on_bit_for_bit_in_both(seen):
    zero, one = seen[0]
    assert zero["resumed"]["again"] == zero["resumed"]["unbroken"] == one["resumed"]["again"]
    saved = load_checkpoint(seen[1] / "resumed").tensors
    assert not torch.equal(saved["random/cpu"], saved["process1/random/cpu"]), (
        "both processes threw the same dice"
    )


def test_a_run_of_two_processes_can_be_taken_up_by_one(seen):
    _, out = seen
    model, result = two_processes.run(folder=out / "even", evaluate=lambda m: {"held_out_loss": 1.0})
    assert weight_hash(model) == seen[0][0]["even"]["hash"] and result.proof.ok


def test_a_loss_that_is_nan_in_one_process_stops_both_before_the_weights_are_touched(seen):
    for process in seen[0]:
        assert "At step 0 the loss is nan" in process["nan"]


# --- DDP's two traps ---------------------------------------------------------------


def test_a_tensor_thawed_after_wrapping_gets_another_gradient_in_each_process(seen):
    zero, one = (process["thawed"] for process in seen[0])
    assert zero["early"] == one["early"]
    assert zero["late"] > 0 and abs(zero["late"] - one["late"]) > 1e-3


def test_freezing_after_wrapping_breaks_the_second_step(seen):
    for process in seen[0]:
        assert "Expected to have finished reduction" in process["frozen_late"]


# --- FSDP2 -------------------------------------------------------------------------


def test_sharded_training_with_frozen_parameters_gives_the_weights_of_one_process(seen):
    _, out = seen
    model, _ = two_processes.run()
    together = load_file(out / "fsdp.safetensors")
    assert max((together[n] - p).abs().max().item() for n, p in model.named_parameters()) < 1e-5


def test_sharding_holds_half_in_each_process_and_keeps_tie_and_freezing(seen):
    zero, one = (process["fsdp"] for process in seen[0])
    assert zero["type"] == "FSDPTokenLoss" and zero["block"] == "FSDPGPTNeoBlock"
    assert zero["n_held"] + one["n_held"] == zero["n_before"]
    assert abs(zero["n_held"] - one["n_held"]) < 0.01 * zero["n_before"]
    assert zero["tied"] and one["tied"]
    model = two_processes.build_model(two_processes.CONFIG)
    two_processes.MAIN.apply(model)
    assert zero["n_frozen"] == sum(not p.requires_grad for p in model.parameters())


def test_the_blocks_are_the_models_layers():
    model = two_processes.build_model(two_processes.CONFIG)
    assert list(blocks_of(model)) == list(model.transformer.h)


def test_the_loss_as_a_module_adds_no_parameter():
    model = two_processes.build_model(two_processes.CONFIG)
    assert [id(p) for p in TokenLoss(model).parameters()] == [id(p) for p in model.parameters()]


# --- from a shell ------------------------------------------------------------------


def arguments(out):
    return [
        "--text",
        str(ROOT / "data" / "plain_tales.txt"),
        "--out",
        str(out),
        "--profile",
        "smoke",
        "--steps",
        "2",
        "--lr",
        "3e-4",
        "--batch",
        "3",
        "--freeze",
        "attention+embeddings",
    ]


def test_the_run_from_a_shell_gives_in_two_processes_what_it_gives_in_one(tmp_path, capsys):
    process = launch("-m", "helpers.training.shell", *arguments(tmp_path / "two"), "--processes", "2")
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert train.main(arguments(tmp_path / "one")) == 0
    two, one = (json.loads((tmp_path / name / "report.json").read_text("utf-8")) for name in ("two", "one"))
    assert two["n_processes"] == 2 and one["n_processes"] == 1 and two["proof_ok"]
    for a, b in zip(two["evaluations"], one["evaluations"], strict=True):
        assert a["held_out_loss"] == pytest.approx(b["held_out_loss"], abs=1e-5)
    assert said.count("held-out loss before") == 1 and said.count("result: ") == 1, (
        "more than one process printed"
    )


def test_bad_input_is_said_once_by_two_processes(tmp_path):
    process = launch("-m", "helpers.training.shell", *arguments(tmp_path / "run"), "--batch", "1")
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    assert errors.count("error: A batch of 1 window cannot be shared by 2") == 1
    assert not (tmp_path / "run").exists()


def test_too_few_processes_are_refused_with_the_launchers_trap(tmp_path, capsys):
    assert train.main([*arguments(tmp_path / "run"), "--processes", "2"]) == 2
    said = capsys.readouterr().err
    assert "Asked for: 2 processes; taking part: 1" in said and "--multi_gpu" in said
    assert not (tmp_path / "run").exists()


def test_accelerates_cpu_flag_still_starts_one_process_only(tmp_path):
    """The reason for `launch_command`. When this fails, accelerate has changed: take the warning out of the course."""
    script = tmp_path / "count.py"
    script.write_text(
        "from accelerate import Accelerator\nprint('n =', Accelerator(cpu=True).num_processes)\n"
    )
    command = [word.replace("--multi_gpu", "--cpu") for word in launch_command(2, str(script))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("n =")[1:] == [" 1\n"], done.stderr


# --- a lost process ----------------------------------------------------------------


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended, or never got so far"
        time.sleep(0.02)


def newest(folder) -> int:
    return max((int(p.name[5:]) for p in folder.glob("step-*")), default=0)


@pytest.mark.parametrize("lost", [1, 0])
def test_a_lost_process_ends_the_other_with_a_message_and_costs_no_checkpoint(tmp_path, lost):
    first = launch(SCRIPT, "long", tmp_path, 4000)
    wait_for(lambda: newest(tmp_path / "run") >= 3, first)
    pids = [int((tmp_path / f"pid-{i}").read_text()) for i in (0, 1)]
    os.kill(pids[lost], signal.SIGKILL)
    began = time.monotonic()
    _, said = first.communicate(timeout=BOUND)
    assert first.returncode != 0 and time.monotonic() - began < BOUND
    assert not any(is_alive(pid) for pid in pids)
    assert "another process of this run has ended" in said.lower(), said[-3000:]
    assert "the same command goes on from the newest" in said
    kept = load_checkpoint(tmp_path / "run")
    assert kept.step >= 3 and not kept.damaged


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_after_the_loss_of_a_process_the_same_command_ends_where_an_unbroken_run_does(seen, tmp_path):
    first = launch(SCRIPT, "long", tmp_path, 12)
    wait_for(lambda: newest(tmp_path / "run") >= 2, first)
    os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGKILL)
    first.communicate(timeout=BOUND)
    if newest(tmp_path / "run") == 12:
        pytest.skip("the machine was so fast that the run had ended before the kill")
    again = launch(SCRIPT, "long", tmp_path, 12)
    _, said = again.communicate(timeout=600)
    assert again.returncode == 0, said[-3000:]
    hashes = {(tmp_path / f"hash-{i}").read_text() for i in (0, 1)}
    assert hashes == {process["unbroken"] for process in seen[0]}


# --- without a launcher ------------------------------------------------------------


class Rank:
    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes = process_index, num_processes


@pytest.mark.parametrize("n_rows, n", [(8, 2), (5, 2), (7, 3), (2, 2)])
def test_shares_hold_every_row_once_and_differ_by_one_at_most(n_rows, n):
    shares = [own_share(torch.arange(n_rows).numpy(), Rank(i, n)) for i in range(n)]
    assert sorted(r for share in shares for r in share) == list(range(n_rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_smaller_than_the_number_of_processes_is_refused():
    with pytest.raises(ProcessError, match="1 window cannot be shared by 2"):
        own_share(torch.arange(1).numpy(), Rank(0, 2))


def test_the_launch_command_runs_this_python_with_one_thread_a_process():
    command = launch_command(2, "a.py", "x")
    assert command[0] == sys.executable and command[-2:] == ["a.py", "x"]
    assert "--multi_gpu" in command and "--cpu" not in command


def test_a_script_that_fails_in_two_processes_is_an_error_with_its_last_lines(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys\nsys.exit('no such luck')\n")
    with pytest.raises(ProcessError, match="no such luck"):
        processes.launch(2, str(script))


def test_after_its_time_nothing_of_a_launch_is_left_at_work(tmp_path):
    script = tmp_path / "sleeps.py"
    script.write_text(
        "import os, pathlib, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
        "(folder / os.environ['RANK']).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )

    def too_long():
        while not all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"):
            time.sleep(0.1)
        raise subprocess.TimeoutExpired("a launch", 0)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ProcessError, match="not done after 300 seconds"),
    ):
        whole, calls = subprocess.Popen.communicate, []

        def communicate(self, *arguments, **options):
            calls.append(self)
            return too_long() if len(calls) == 1 else whole(self, *arguments, **options)

        patch.setattr(subprocess.Popen, "communicate", communicate)
        processes.launch(2, str(script), str(tmp_path))
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


def test_an_error_of_one_process_alone_is_no_lost_process():
    assert not processes.means_lost_process(RuntimeError("Connection closed by peer"))


def test_processes_end_their_group_before_python_ends(tmp_path):
    """Left to the interpreter's end, gloo's threads abort a process now and then, after all its work is done."""
    script = tmp_path / "ends.py"
    script.write_text(
        "import atexit, os, pathlib, sys, torch\nimport torch.distributed as dist\n"
        "from helpers.training import processes\n"
        "said = pathlib.Path(sys.argv[1]) / os.environ['RANK']\n"
        "atexit.register(lambda: said.write_text(str(dist.is_initialized())))\n"  # after join's own
        "processes.join(torch.device('cpu'))\ndist.all_reduce(torch.ones(9), async_op=True)\n"
    )
    processes.launch(2, str(script), str(tmp_path))
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["False", "False"], "left open"


MARKED = """import atexit, os, sys, torch
from helpers.training import processes
to = os.open(os.path.join(sys.argv[1], os.environ.get("RANK", "alone")), os.O_CREAT | os.O_WRONLY)
class Kept:
    def __del__(self, write=os.write, to=to):
        write(to, b"Python's own ending")
sys.kept = Kept()  # let go of by Python's own ending, as a tensor that one of gloo's threads still holds
atexit.register(os.write, to, b"atexit, ")
processes.join(torch.device("cpu"))
print("its last words", end="")  # no end of line: still in the buffer
processes.end(int(sys.argv[2]))
"""


def test_pythons_own_ending_is_left_out_among_several_processes(tmp_path):
    """A thread of gloo's that lets go of a tensor in it aborts the process: a race that no test can wait for."""
    script = tmp_path / "marked.py"
    script.write_text(MARKED)
    alone = subprocess.run(
        [sys.executable, script, tmp_path, "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    together = processes.launch(2, str(script), str(tmp_path), "0")
    endings = {name: (tmp_path / name).read_text() for name in ("alone", "0", "1")}
    assert endings == {"alone": "atexit, Python's own ending", "0": "atexit, ", "1": "atexit, "}
    assert (alone.stdout, together) == ("its last words", 2 * "its last words")


def test_the_exit_code_of_one_of_several_processes_is_kept(tmp_path):
    script = tmp_path / "marked.py"
    script.write_text(MARKED)
    with pytest.raises(ProcessError, match="failed in 2 processes"):
        processes.launch(2, str(script), str(tmp_path), "3")
