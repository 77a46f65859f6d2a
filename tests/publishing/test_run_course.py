"""`make course` and `course notebooks` on small notebooks made here."""

import json
import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from helpers import session as rooms
from helpers.results import Entry, Verdict
from publishing import kernel as notebook_kernel
from publishing import offline_html
from publishing import refresh as refresh_notebooks
from publishing import run as run_course
from publishing.cli import main

ROOT = Path(__file__).resolve().parents[2]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WHERE = {"model": "gpt-neo-mini", "model_hash": "0" * 64, "n_seeds": 0, "source": "live"}
CLAIM = Entry((Verdict("C4", "holds in part", value=0.453, unit="", note="counted", **WHERE),)).as_json()


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells; a cell that begins with # and a space is prose."""
    made = [
        nbformat.v4.new_markdown_cell(c) if c.startswith("# ") else nbformat.v4.new_code_cell(c)
        for c in cells
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def course(tmp_path, monkeypatch, capsys):
    """Runs the course of tmp_path as make does; results go to tmp_path/build."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Done:
        code = main(["run", "--folder", "notebooks", *arguments])
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def refresh(tmp_path, capsys):
    """Stores the outputs of the notebooks in tmp_path, as `course notebooks` does."""

    def run(*names: str) -> Done:
        return Done(main(["notebooks", "--folder", str(tmp_path), *names]), *capsys.readouterr())

    return run


@pytest.fixture
def two_notebooks(tmp_path):
    """The first one counts, the second records a claim."""
    write_notebook(tmp_path / "notebooks" / "00_first.ipynb", "# First", "x = 20", "print(x + 1)")
    store = (
        f"import os, json, pathlib\nfolder = pathlib.Path(os.environ['COURSE_BUILD']) / 'claims'\n"
        f"folder.mkdir(parents=True, exist_ok=True)\n(folder / 'C4.json').write_text({json.dumps(CLAIM)!r})"
    )
    write_notebook(tmp_path / "notebooks" / "01_second.ipynb", "# Second", store, "print('recorded')")
    return tmp_path


# --- the course --------------------------------------------------------------------


def test_the_course_runs_all_and_ends_with_the_claims(two_notebooks, course):
    before = {p: p.read_bytes() for p in two_notebooks.glob("notebooks/*")}
    done = course()
    assert done.returncode == 0, done.stderr
    assert re.search(r"1/2 00_first +2 cells .* done\n2/2 01_second +2 cells .* done\n", done.stdout)
    assert "C4" in done.stdout and "holds in part" in done.stdout
    assert "2 notebooks, 4 cells" in done.stdout and "build/course/00_first.html" in done.stdout
    assert json.loads((two_notebooks / "build" / "claims.json").read_text()) == [CLAIM]
    executed = nbformat.read(two_notebooks / "build" / "course" / "00_first.ipynb", as_version=4)
    assert executed.cells[2].outputs[0].text == "21\n"
    assert {p: p.read_bytes() for p in two_notebooks.glob("notebooks/*")} == before, (
        "notebooks/ was written to"
    )


def test_a_whole_run_forgets_older_claims_and_a_single_one_keeps_them(two_notebooks, course):
    old = two_notebooks / "build" / "claims" / "C5.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps(CLAIM | {"id": "C5"}))
    assert course("--notebook", "01_second").returncode == 0
    assert [c["id"] for c in json.loads((two_notebooks / "build" / "claims.json").read_text())] == [
        "C4",
        "C5",
    ]
    assert course().returncode == 0
    assert [c["id"] for c in json.loads((two_notebooks / "build" / "claims.json").read_text())] == ["C4"]


def test_one_notebook_runs_alone(two_notebooks, course):
    done = course("--notebook", "00_first")
    assert done.returncode == 0 and "1/1 00_first" in done.stdout
    assert not (two_notebooks / "build" / "course" / "01_second.ipynb").exists()


def test_a_failing_cell_is_shown_and_what_ran_is_kept(two_notebooks, course):
    write_notebook(
        two_notebooks / "notebooks" / "01_second.ipynb",
        "# Second",
        "print('before')",
        "rate = 3\nint('three')\nprint('never')",
        "print('after')",
    )
    write_notebook(two_notebooks / "notebooks" / "02_third.ipynb", "print('never')")
    done = course()
    assert done.returncode == 1
    told = done.stdout.partition("FAILED")[2]
    assert "01_second, cell 2 of 3" in told
    assert "    rate = 3\n    int('three')\n    print('never')" in told
    assert "ValueError: invalid literal for int() with base 10: 'three'  (line 2 of the cell)" in told
    assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    results = two_notebooks / "build" / "course"
    kept = nbformat.read(results / "01_second.ipynb", as_version=4)
    assert kept.cells[1].outputs[0].text == "before\n" and kept.cells[2].outputs[0].ename == "ValueError"
    assert kept.cells[3].outputs == [] and "before" in (results / "01_second.html").read_text()
    assert (results / "00_first.html").exists() and not (results / "02_third.ipynb").exists()
    assert (two_notebooks / "build" / "claims.json").exists()


def test_an_error_inside_a_called_function_names_its_place(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import json\njson.loads('{')")])
    stopped = notebook_kernel.run_notebook(book, tmp_path, {})
    assert re.search(r"line 2 of the cell, decoder.py line \d+, in JSONDecoder\.raw_decode", str(stopped))


def test_a_kernel_that_dies_is_told_as_such(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os; os._exit(1)")])
    stopped = notebook_kernel.run_notebook(book, tmp_path, {})
    assert "cell 1 of 1" in str(stopped) and "kernel died" in str(stopped)


def test_a_cell_that_takes_too_long_is_told_as_such(tmp_path):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time; time.sleep(30)")])
    stopped = notebook_kernel.run_notebook(book, tmp_path, {}, timeout=1)
    assert "longer than it may" in str(stopped)


def test_the_minutes_of_a_whole_run_are_kept_with_machine_and_versions(two_notebooks, course, monkeypatch):
    place = two_notebooks / "minutes.json"
    place.write_text(json.dumps({"smoke": {"seconds": {}}}))
    monkeypatch.setattr(rooms, "MINUTES", place)
    done = course("--record-minutes")
    assert done.returncode == 0 and "minutes.json" in done.stdout
    kept = json.loads(place.read_text())
    assert set(kept) == {"smoke", "tiny"} and set(kept["tiny"]["seconds"]) == {"00_first", "01_second"}
    assert all(seconds > 0 for seconds in kept["tiny"]["seconds"].values())
    assert kept["tiny"]["machine"] and kept["tiny"]["versions"]["torch"]
    (two_notebooks / "notebooks" / "01_second.ipynb").unlink()
    done = course("--record-minutes")
    assert done.returncode == 2 and "would drop the minutes of 01_second" in done.stderr
    assert json.loads(place.read_text()) == kept


def test_minutes_of_a_run_that_stopped_or_of_one_notebook_alone_are_not_kept(
    two_notebooks, course, monkeypatch
):
    monkeypatch.setattr(rooms, "MINUTES", two_notebooks / "minutes.json")
    write_notebook(two_notebooks / "notebooks" / "01_second.ipynb", "int('three')")
    assert course("--record-minutes").returncode == 1
    done = course("--record-minutes", "--notebook", "00_first")
    assert done.returncode == 2 and "leave out --notebook" in done.stderr
    assert not (two_notebooks / "minutes.json").exists()


def test_an_unknown_notebook_is_named_and_touches_nothing(two_notebooks, course):
    done = course("--notebook", "02_freezing")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "'02_freezing' is not known. Notebooks: 00_first, 01_second." in done.stderr
    assert not (two_notebooks / "build").exists()


def test_an_unknown_profile_is_one_line(two_notebooks, course, monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "huge")
    done = course()
    assert done.returncode == 2 and "huge" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def three_lessons(tmp_path, monkeypatch):
    """Three notebooks in notebooks/, seen from the folder above; one of the same name lies beside that."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "02_freezing.ipynb", "1")
    stems = ("01_block", "02_freezing", "02_freezing_more")
    return [write_notebook(tmp_path / "notebooks" / f"{stem}.ipynb", "1") for stem in stems]


@pytest.mark.parametrize(
    "name",
    ["02_freezing", "02_freezing.ipynb", "notebooks/02_freezing.ipynb", "notebooks/02_freezing", "02"],
)
def test_a_notebook_has_several_ways_to_be_named(three_lessons, name):
    if name == "02":
        three_lessons.pop().unlink()
    assert run_course.lessons(three_lessons[0].parent, name) == [three_lessons[1]]


def test_a_slip_in_a_name_is_told_the_nearest(three_lessons):
    with pytest.raises(run_course.CourseError, match="is not known. .* Did you mean '02_freezing'.$"):
        run_course.lessons(three_lessons[0].parent, "02_freezng")


@pytest.mark.parametrize(
    "name",
    ["../02_freezing", "./02_freezing.ipynb", "nowhere/02_freezing", "/02_freezing", "notebooks/02", ".", "..", "0",
     "02_freezing.ipynb.ipynb", "notebooks/", "x" * 5000 + "/02_freezing"],
)  # fmt: skip
def test_a_path_that_leads_to_no_lesson_is_refused(three_lessons, name):
    with pytest.raises(run_course.CourseError, match="is not known. Notebooks: 01_block, 02_freezing"):
        run_course.lessons(three_lessons[0].parent, name)


# --- the kernel --------------------------------------------------------------------


def test_the_kernel_is_this_python_whatever_is_registered(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "elsewhere", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys\nprint(sys.executable)")])
    assert notebook_kernel.run_notebook(book, tmp_path, {}) is None
    assert book.cells[0].outputs[0].text.strip() == sys.executable


def test_the_kernel_gets_the_settings_of_the_course(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    ask = "import os\nprint(os.environ['OMP_WAIT_POLICY'], os.environ['HF_HUB_OFFLINE'], os.getcwd())"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ask)])
    notebook_kernel.run_notebook(book, tmp_path, notebook_kernel.KERNEL_SETTINGS | notebook_kernel.OFFLINE)
    assert book.cells[0].outputs[0].text == f"PASSIVE 1 {tmp_path}\n"


def test_progress_bars_and_widgets_leave_nothing_that_changes(tmp_path):
    bar = "from tqdm import tqdm\nprint(sum(tqdm(range(4))))"
    slider = "import ipywidgets\nipywidgets.IntSlider(3)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(bar), nbformat.v4.new_code_cell(slider)])
    assert notebook_kernel.run_notebook(book, tmp_path, notebook_kernel.KERNEL_SETTINGS) is None
    assert [o.text for o in book.cells[0].outputs] == ["6\n"]
    assert list(book.cells[1].outputs[0].data) == ["text/plain"] and "widgets" not in book.metadata


# --- pages -------------------------------------------------------------------------


class Requests(HTMLParser):
    """Collects what a browser would fetch for a page; a link that waits for a click is not one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster") or (
                name == "href" and tag in ("link", "use", "image")
            ):
                self.found.append(value or f"<empty {tag}>")


def fetched(page: str) -> list[str]:
    """Addresses that a page asks for, beyond what it holds itself."""
    parser = Requests()
    parser.feed(page)
    in_styles = re.findall(r"url\(\s*['\"]?((?!data:|#)[^'\")]+)", page) + re.findall(r"@import[^;]+", page)
    in_scripts = re.findall(r"\bimport\(|importScripts|fetch\(|XMLHttpRequest", page)
    return [a for a in parser.found if not a.startswith("data:")] + in_styles + in_scripts


def test_a_page_asks_for_nothing_over_the_network():
    prose = (
        "# Loss $L$\n\n[![Open In Colab](https://colab.research.google.com/assets/badge.svg)](https://example.org)"
        '\n\n<img src="https://example.org/a.png" alt="a far picture">\n\nNext: [02](02_freezing.ipynb)'
    )
    picture = nbformat.v4.new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell("plot()", outputs=[picture])]
    page = offline_html.notebook_html(nbformat.v4.new_notebook(cells=cells), "01_block", ROOT)
    assert fetched(page) == []
    assert "Open In Colab</a>" in page and "a far picture" in page and 'href="02_freezing.html"' in page
    assert PIXEL[:40] in page and "<title>01_block</title>" in page


def test_the_test_of_pages_sees_a_request():
    assert fetched(
        '<script src="https://example.org/a.js"></script><style>a {background: url(b.png)}</style>'
    ) == ["https://example.org/a.js", "b.png"]


def test_formulas_are_drawn_without_scripts():
    prose = "Inline $h' = x + \\mathrm{MSA}(\\mathrm{LN}(x))$ and\n\n$$R = \\frac{P_{trainable}}{P_{total}}$$"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose)])
    page = offline_html.notebook_html(book, "a", ROOT)
    assert page.count("<math") == 2 and "<mfrac>" in page and "$" not in page.partition("<body")[2]


def test_a_formula_that_cannot_be_translated_stays_readable():
    assert offline_html.drawn("a_b_c < 1", "inline") == "<code>a_b_c &lt; 1</code>"


# --- stored outputs ----------------------------------------------------------------


def test_refreshing_stores_outputs_and_says_what_changed(tmp_path, refresh):
    path = write_notebook(tmp_path / "00_a.ipynb", "# A", "print('same')", "print(1 + 1)")
    assert refresh().returncode == 0
    stored = nbformat.read(path, as_version=4)
    assert [c.execution_count for c in stored.cells[1:]] == [1, 2] and stored.cells[2].outputs[
        0
    ].text == "2\n"
    assert stored.metadata == refresh_notebooks.KERNEL
    assert "0 say something else" in refresh().stdout
    stored.cells[2].outputs[0].text = "3\n"
    nbformat.write(stored, path)
    told = refresh("00_a").stdout
    assert "1 says something else" in told and "cell 2: '3' is now '2'" in told


def test_refreshing_twice_gives_the_same_file(tmp_path, refresh):
    path = write_notebook(
        tmp_path / "00_a.ipynb", "# A", "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    )
    refresh()
    first = path.read_bytes()
    refresh()
    assert path.read_bytes() == first


def test_a_failing_cell_leaves_the_stored_notebook_as_it_was(tmp_path, refresh):
    path = write_notebook(tmp_path / "00_a.ipynb", "print(1)", "1 / 0")
    write_notebook(tmp_path / "01_b.ipynb", "print(2)")
    first = path.read_bytes()
    done = refresh()
    assert done.returncode == 1 and path.read_bytes() == first
    assert "00_a: FAILED, cell 2 of 2" in done.stdout and "ZeroDivisionError: division by zero" in done.stdout
    assert "01_b: 1 cell run" in done.stdout, "the others are refreshed all the same"
    assert not list(tmp_path.glob("*.partial"))


def test_normalising_removes_what_means_nothing():
    noisy = {"execution": {"iopub": "now"}, "tags": ["keep"], "reason": "r"}
    cell = nbformat.v4.new_code_cell("x = 1\n", metadata=noisy)
    language = {"name": "python", "version": "3.11.7"}
    book = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": language})
    refresh_notebooks.normalise(book)
    assert book.metadata == refresh_notebooks.KERNEL
    assert book.cells[0].metadata == {"tags": ["keep"], "reason": "r"} and book.cells[0].source == "x = 1"


def test_the_set_up_cell_shows_what_it_found_and_not_its_code():
    sources = ("from helpers import session; session.enter()", "print(1)")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    refresh_notebooks.normalise(book)
    set_up, other = (cell.metadata for cell in book.cells)
    assert set_up == {"jupyter": {"source_hidden": True}, "cellView": "form"} and not other


def test_folded_code_is_folded_in_the_page_and_its_output_is_open(tmp_path):
    cell = nbformat.v4.new_code_cell("set_up_course()", metadata={"jupyter": {"source_hidden": True}})
    cell.outputs = [nbformat.v4.new_output("stream", text="No GPU")]
    page = offline_html.notebook_html(nbformat.v4.new_notebook(cells=[cell]), "code", tmp_path)
    inside = page[page.index("<summary>Code</summary>") :]
    assert inside.index("set_up_course") < inside.index("</details>") < inside.index("No GPU")


def test_hints_stay_folded_in_the_page(tmp_path):
    text = "<details><summary>Hint 1</summary>\n\nLook *here*.\n\n</details>"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    page = offline_html.notebook_html(book, "hints", tmp_path)
    inside = page[page.index("<summary>Hint 1") :]
    assert inside.index("Look") < inside.index("</details>")
