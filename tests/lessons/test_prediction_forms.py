"""The form of `predict`, the cards and the number line: what a notebook shows, and that the words stay the same."""

import json
import re

import nbformat
import pytest

from helpers.files import wrapped
from helpers.lessons import checks, predicting, showing
from helpers.lessons.calibrating import FEWEST, calibration, usual_hits
from helpers.lessons.predicting import predict, predictions, reveal, save_form
from helpers.lessons.widgets import prediction_forms
from helpers.lessons.widgets.prediction_forms import WIDGET_VIEW
from helpers.profiles import ROOT
from publishing.kernel import KERNEL_SETTINGS, code_cells, run_notebook


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """A build folder that does not exist yet."""
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


@pytest.fixture
def shown(monkeypatch):
    """What a live notebook is given to show, one bundle after the other."""
    bundles = []
    monkeypatch.setattr(showing, "is_rich", lambda: True)
    monkeypatch.setattr(predicting, "is_rich", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    return bundles


@pytest.fixture
def forms(shown, monkeypatch):
    """The forms that were made, in order."""
    made = []

    class Watched(prediction_forms.PredictionForm):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(prediction_forms, "PredictionForm", Watched)
    monkeypatch.setattr(prediction_forms, "display", lambda data, raw: shown.append(data))
    return made


def write(form, guess="", low="", high=""):
    for name, text in {"guess": guess, "low": low, "high": high}.items():
        form.fields[name].value = text


def entry(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "from_form": True}


# --- the form ----------------------------------------------------------------------


def test_a_stub_shows_a_form_that_keeps_what_a_call_would_keep(forms, shown):
    predict("C4", None)
    (form,) = forms
    assert shown[0]["text/plain"].startswith("C4: no prediction.") and WIDGET_VIEW in shown[0]
    version = {
        "version_major": 2,
        "version_minor": 0,
    }  # of the description of a widget: ipywidgets has no other
    assert shown[0][WIDGET_VIEW] == {**version, "model_id": form.box.model_id}
    assert "share of the parameters" in form.box.children[0].value
    write(form, "0.5", "0.4", "0.6")
    assert predictions() == {}, "only the button saves, or Enter"
    form.button.click()
    assert predictions() == {"C4": entry(0.5, 0.4, 0.6)}
    assert "Saved: you predict 0.5, and are 80% sure of 0.4 to 0.6." in form.status.value
    assert "run the cell that reveals C4" in form.status.value


FAULTS = {
    "nothing": (("", "", ""), "guess", "Write a number here"),
    "text": (("about half", "0.4", "0.6"), "guess", "is no number"),
    "percent": (("50%", "", ""), "guess", "without the sign"),
    "comma": (("0,5", "", ""), "guess", "0.5 and not 0,5"),
    "text in the range": (("0.5", "low", "0.6"), "low", "is no number"),
    "NaN": (("nan", "", ""), "guess", "NaN"),
    "turned": (("0.5", "0.6", "0.4"), "low", "the lower end comes first"),
    "outside": (("0.5", "0.6", "0.7"), "guess", "not inside your range, 0.6 to 0.7"),
    "no width": (("0.5", "0.5", "0.5"), "high", "Both ends are the same"),
    "one end": (("0.5", "0.4", ""), "high", "two ends"),
    "the other end": (("0.5", " ", "0.6"), "low", "two ends"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_said_beside_its_field_and_nothing_is_saved(forms, kind):
    texts, field, words = FAULTS[kind]
    predict("C4", 0.3)
    predict("C4", None)
    write(forms[0], *texts)
    forms[0].button.click()
    said = {name: view.value for name, view in forms[0].faults.items() if view.value}
    assert set(said) == {field} and words in said[field] and 'role="alert"' in said[field]
    assert predictions() == {} and "Nothing is saved yet" in forms[0].status.value
    write(forms[0], "0.5")
    forms[0].button.click()
    assert not any(view.value for view in forms[0].faults.values())
    assert predictions() == {"C4": entry(0.5)}, "a number without a range is kept as well"


def test_a_fault_leaves_what_was_saved(forms):
    predict("C4", None)
    write(forms[0], "0.5", "0.4", "0.6")
    forms[0].button.click()
    forms[0].fields["guess"].value = "half"
    forms[0].button.click()
    assert predictions() == {"C4": entry(0.5, 0.4, 0.6)}
    assert "0.5 (0.4 to 0.6), stays" in forms[0].status.value


@pytest.mark.parametrize("first", ["key", "text"])
def test_enter_saves_whether_the_key_or_the_text_comes_first(forms, first):
    """A page sends the key before the text that it ends; a slow one may send it after."""
    predict("C4", None)
    form = forms[0]
    write(form, "0.5", "0.4", "0.6")
    field = form.fields["high"]
    if first == "text":
        field.value = "0.7"
    field._handle_custom_msg({"event": "submit"}, [])
    if first == "key":
        field.value = "0.7"
    assert predictions() == {"C4": entry(0.5, 0.4, 0.7)}


def test_what_a_form_saved_survives_running_all_again(forms, monkeypatch, capsys):
    """The stub is still there: with None it takes back a number that was typed, not what the form saved."""
    predict("C4", None)
    write(forms[0], "0.5", "0.4", "0.6")
    forms[0].button.click()
    predict("C4", None)
    predict("C4", ...)
    assert predictions() == {"C4": entry(0.5, 0.4, 0.6)}
    assert [field.value for field in forms[2].fields.values()] == ["0.5", "0.4", "0.6"]
    monkeypatch.setattr(predicting, "is_rich", lambda: False)
    predict("C4", None)
    assert capsys.readouterr().out == "C4: your earlier prediction is kept: 0.5 (0.4 to 0.6).\n"
    predict("C4", 0.7)
    predict("C4", None)
    assert predictions() == {}


def test_a_form_takes_its_prediction_back(forms):
    predict("C4", None)
    assert forms[0].back.layout.display == "none"
    write(forms[0], "0.5")
    forms[0].button.click()
    assert forms[0].back.layout.display is None
    forms[0].back.click()
    assert predictions() == {} and forms[0].fields["guess"].value == ""
    assert "0.5, is taken back" in forms[0].status.value and forms[0].back.layout.display == "none"


def test_what_is_typed_into_a_form_is_shown_as_text(forms):
    predict("C4", None)
    write(forms[0], "<b>half</b>")
    forms[0].button.click()
    assert (
        "&lt;b&gt;half" in forms[0].faults["guess"].value and "<b>half" not in forms[0].faults["guess"].value
    )


def test_a_form_says_that_nothing_could_be_saved(forms, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_BUILD", str(tmp_path / "file" / "build"))
    faults, words = save_form("C4", {"guess": "0.5", "low": "", "high": ""})
    assert not faults and "Nothing could be saved" in words


@pytest.mark.parametrize("flag", ["false", "null", "1", '"yes"'])
def test_a_damaged_mark_of_the_form_is_put_aside(build, flag):
    build.mkdir()
    text = '{"C4": {"value": 0.5, "low": null, "high": null, "from_form": FLAG}}'
    (build / "predictions.json").write_text(text.replace("FLAG", flag))
    assert predictions() == {} and (build / "predictions.json.damaged").exists()


# --- the number line ---------------------------------------------------------------


def places(html, name, what="cx"):
    return [float(x) for x in re.findall(rf'<\w+ class="{name}" {what}="([-0-9.]+)', html)]


def line_of(shown, *prediction, measured, **options):
    predict("C4", *prediction)
    reveal("C4", measured, **options)
    return shown[-1]["text/html"]


def test_a_reveal_draws_the_range_the_guess_and_what_was_measured(shown):
    html = line_of(shown, 0.5, 0.4, 0.6, measured=0.774, interval=(0.7, 0.8), article="0.5")
    (bar,), (guess,), (measured,) = (
        places(html, "range", "x"),
        places(html, "guess"),
        places(html, "measured"),
    )
    assert bar < guess < measured and 'class="interval"' in html
    assert "you: 0.5 (0.4 to 0.6)" in html and "measured: 0.774" in html
    assert "The article says: 0.5" in html and "Which assumption" in html and "outside your range" in html
    assert 'role="img" aria-label="Number line. you: 0.5 (0.4 to 0.6). measured: 0.774, interval 0.7' in html


@pytest.mark.parametrize(
    ("prediction", "measured", "word"),
    [
        ((0.5, 0.4, 0.6), 0.45, "inside your range"),
        ((0.5, 0.4, 0.6), 0.4, "inside your range"),
        ((0.5, 0.4, 0.6), 0.3, "outside your range"),
        ((0.5,), 0.5, "beside your guess"),
        ((0,), 0, "beside your guess"),
        ((-1e6, -2e6, 3), 1e-9, "inside your range"),
        ((0.3,), 0.1 + 0.2, "beside your guess"),
        ((1e-320,), 0, "beside your guess"),
    ],
)
def test_every_number_stands_inside_the_picture(shown, prediction, measured, word):
    html = line_of(shown, *prediction, measured=measured)
    xs = [float(x) for x in re.findall(r' (?:cx|x)="([-0-9.]+)"', html)]
    assert word in html and xs and all(0 <= x <= showing.WIDTH for x in xs)
    assert 2 <= html.count("80 V 84") <= 6, "a few round numbers"


def test_a_reveal_without_a_prediction_says_how_to_make_one(shown):
    reveal("C4", 0.774)
    html = shown[0]["text/html"]
    assert (
        "no prediction of yours" in html and "fill in the form" in html and "predict(&quot;C4&quot;" in html
    )
    assert "<svg" not in html


def test_what_was_computed_is_not_called_measured(shown):
    html = line_of(shown, 20, 10, 30, measured=20.1, unit="%", how="predicted")
    assert "predicted: 20.1 %" in html and "measured:" not in html


def test_a_number_too_large_to_draw_stops_nothing(shown):
    html = line_of(shown, 1e308, -1e308, 1.5e308, measured=0.5)
    assert "inside your range" in html and "<svg" not in html
    calibration()
    assert "<svg" in shown[-1]["text/html"]


@pytest.mark.parametrize("measured", [float("nan"), float("inf")])
def test_a_measurement_that_went_wrong_draws_nothing_and_stops_nothing(shown, measured):
    html = line_of(shown, 0.5, 0.4, 0.6, measured=measured)
    assert "<svg" not in html and predicting.revealed() == {}


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"C4": "text"}', b'{"C4": NaN}', b"\xff"])
def test_a_damaged_file_of_revealed_numbers_is_put_aside(build, capsys, damage):
    build.mkdir()
    (build / "revealed.json").write_bytes(damage)
    predict("C4", 0.5, 0.4, 0.6)
    reveal("C4", 0.45)
    assert "revealed.json in the build folder cannot be read" in capsys.readouterr().out
    assert json.loads((build / "revealed.json").read_text()) == {"C4": 0.45}


# --- calibration -------------------------------------------------------------------


def foresee(n_held, n_missed):
    for k in range(n_held + n_missed):
        predict(f"00-{chr(97 + k)}", 1, 0.5, 1.5)
        reveal(f"00-{chr(97 + k)}", 1.2 if k < n_held else 3)


@pytest.mark.parametrize(
    ("n_held", "n_missed", "said"),
    [
        (2, FEWEST - 3, "nothing can be said yet"),
        (4, 1, "about 4 of 5, and usually 2 to 5"),
        (8, 2, "Yours agree with that."),
        (5, 5, "make your ranges wider"),
        (20, 0, "make your ranges narrower"),
    ],
)
def test_calibration_says_no_more_than_the_number_of_predictions_allows(capsys, n_held, n_missed, said):
    foresee(n_held, n_missed)
    capsys.readouterr()
    calibration()
    out = capsys.readouterr().out
    assert out.startswith(f"your 80% ranges: {n_held} of {n_held + n_missed} held") and said in " ".join(
        out.split()
    )


def test_the_usual_number_of_hits_is_that_of_a_binomial_distribution():
    from scipy.stats import binom

    for n in range(5, 41):
        least, most = usual_hits(n)
        assert binom.cdf(least, n, 0.8) > 0.05 >= binom.cdf(least - 1, n, 0.8)
        assert binom.sf(most - 1, n, 0.8) > 0.05 >= binom.sf(most, n, 0.8)


def test_calibration_draws_a_row_for_each_prediction_around_what_was_measured(shown):
    foresee(4, 2)
    predict("00-zero", 0.1, -0.1, 0.3)
    reveal("00-zero", 0.0)
    calibration()
    html = shown[-1]["text/html"]
    assert len(places(html, "range", "x")) == len(places(html, "guess")) == 7
    assert html.count("✓ 00-") == 5 and html.count("↻ 00-") == 2
    assert 'role="img" aria-label="Each range beside the answer. your 80% ranges: 5 of 7 held' in html


def test_calibration_sets_each_guess_at_its_distance_from_the_answer():
    """The middle is the answer, the left end 0 or less, the right end twice the answer or more."""
    guesses = (0.0, 5.0, 10.0, 15.0, 20.0, -7.0, 90.0)
    html = showing.calibration_plot({f"{g:g}": (g, 5.0, 15.0, 10.0) for g in guesses}, "words")
    ends = [float(x) for x in re.findall(r'<text x="(\d+)" y="\d+" text-anchor="(?:start|end)"', html)]
    left, right = min(ends), max(ends)
    shares = [0, 0.25, 0.5, 0.75, 1, 0, 1]
    assert places(html, "guess") == [pytest.approx(left + s * (right - left), abs=0.1) for s in shares]
    assert places(html, "range", "x") == [pytest.approx(left + 0.25 * (right - left), abs=0.1)] * len(guesses)


def test_what_is_not_revealed_is_not_counted(capsys):
    calibration()
    predict("C4", 0.5, 0.4, 0.6)
    calibration()
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "no predictions were noted" and said[-1] == "none of your predictions is revealed yet"


# --- cards -------------------------------------------------------------------------


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "measured, guess", [(2.0, 3.1), (-40.0, 65.0), (0.0012, 0.0019), (7.0, 7.0), (1e6, 1.01e6)]
)
def test_the_round_numbers_of_a_line_stand_where_they_belong(measured, guess):
    ends = (min(measured, guess) - 0.1 * abs(guess), max(measured, guess))
    html = showing.number_line(measured, None, guess, ends, "measured")
    ticks = [(float(x), float(v)) for x, v in re.findall(r'<text x="([\d.]+)" y="97"[^>]*>([^<]+)<', html)]
    assert 2 <= len(ticks) <= 7 and [v for _, v in ticks] == sorted({v for _, v in ticks})
    assert all(0 <= x <= showing.WIDTH for x, _ in ticks)
    (x_0, v_0), (x_1, v_1) = ticks[0], ticks[-1]
    for name, value in (("measured", measured), ("guess", guess)):
        (x,) = places(html, name)
        assert x == pytest.approx(x_0 + (x_1 - x_0) * (value - v_0) / (v_1 - v_0), abs=0.5)
    (begin,), (width,) = places(html, "range", "x"), map(float, re.findall(r'34" width="([-\d.]+)"', html))
    assert width == pytest.approx((x_1 - x_0) * (ends[1] - ends[0]) / (v_1 - v_0), abs=0.5)
    assert begin + width == pytest.approx(max(places(html, "measured") + places(html, "guess")), abs=0.2)


def test_on_a_number_line_the_guess_is_an_open_circle_around_what_was_measured():
    html = showing.number_line(2.0, None, 2.0, None, "measured")
    looks = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="42" r="(\d)" fill="(\w+)"', html)
    assert looks == [("measured", "170.0", "4", "currentColor"), ("guess", "170.0", "6", "none")]


@pytest.mark.parametrize("kind", showing.SIGNS)
def test_signs_can_be_read_and_borders_seen_in_light_and_in_dark(kind):
    colour = showing.SIGNS[kind][1]
    assert contrast(colour, "#ffffff") >= 4.5
    assert contrast(colour, "#111111") >= 3


@pytest.mark.parametrize(
    ("answer", "sign"),
    [(56_707_584, "✓</span> right"), (163_795_968, "↻</span> not yet"), (..., "–</span> your turn")],
)
def test_a_check_is_a_card_with_the_words_that_are_printed_elsewhere(
    shown, capsys, monkeypatch, answer, sign
):
    assert checks.check("03a", answer) is None
    (bundle,) = shown
    monkeypatch.setattr(showing, "is_rich", lambda: False)
    checks.check("03a", answer)
    assert bundle["text/plain"] + "\n" == capsys.readouterr().out
    html = bundle["text/html"]
    assert sign in html and "<b>03a</b> trainable of the main plan" in html
    message = checks.reply_to("03a", answer).message
    assert showing.in_html(message) in html


def test_a_reply_is_text_and_its_code_is_code():
    assert (
        showing.in_html("`return <x>` & **b**\nend") == "<code>return &lt;x&gt;</code> &amp; <b>b</b><br>end"
    )


# --- in a kernel -------------------------------------------------------------------

CELL = """\
from helpers.lessons import check, predict, reveal
predict("C4", None)
predict("C5", 60, 50, 70)
reveal("C5", 56.7, "M", article="65 M")
check("00a", 12)"""


def outputs(plain, folder):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    settings = KERNEL_SETTINGS | {"PYTHONPATH": str(ROOT), "COURSE_PLAIN": plain, "COURSE_BUILD": str(folder)}
    assert run_notebook(book, ROOT, settings) is None
    assert "widgets" not in book.metadata or not plain
    return code_cells(book)[0].outputs


def test_a_stored_notebook_has_text_and_a_live_one_has_the_same_words_on_cards(tmp_path):
    (stored,) = outputs("1", tmp_path / "stored")
    assert stored.output_type == "stream"
    live = outputs("", tmp_path / "live")
    words = [o.text if o.output_type == "stream" else o.data["text/plain"] + "\n" for o in live]
    assert "".join(words) == stored.text
    assert sum("text/html" in o.get("data", {}) for o in live) == 2
    assert all(wrapped(text) == text for text in words)
