"""The page of a study, in a real browser and as text."""

import base64
import csv
import dataclasses
import io
import re

import pytest
import torch
from browser import browser, check_page, show
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from study_helpers import REPLACEMENTS, base, batches, studied

import aafit
from aafit.errors import UserError
from aafit.studies.page import study_page, write_study_page
from aafit.studies.study import PARTS


@pytest.fixture(scope="module")
def found():
    return studied()


@pytest.fixture(scope="module")
def opened(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = write_study_page(found, folder / "first" / "study.html")
    moved = made.rename(folder / "moved.html")
    made.parent.rmdir()
    with browser(folder) as driver:
        driver.get(moved.as_uri())
        yield driver


def curve(opened, index=0, kind="form"):
    return opened.find_elements(By.CSS_SELECTOR, f"svg.{kind} path.tuned")[index].get_attribute("d")


def first_cells(opened, table):
    return [
        row.text for row in opened.find_elements(By.CSS_SELECTOR, f"#{table} tbody tr:not([hidden]) > :first-child")
    ]


def test_it_opens_wherever_it_is(opened, found):
    check_page(opened)
    text = opened.find_element(By.TAG_NAME, "body").text
    assert all(sentence in text for sentence in found.verdict)
    assert opened.find_element(By.CSS_SELECTOR, "ul.overview svg.small").rect["y"] < 900


def pages_on_paper(opened):
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"]
    return len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed)))


def test_two_layers_are_printed_on_one_page(opened):
    assert pages_on_paper(opened) == 1


def test_a_slider_moves_every_curve(opened, found):
    last = [curve(opened, index) for index in (0, 1)]
    slider = opened.find_element(By.CSS_SELECTOR, "details.layer .steps input")
    slider.send_keys(Keys.HOME)
    first = [curve(opened, index) for index in (0, 1)]
    assert first[0] != last[0]
    assert first[1] != last[1]
    assert "step 0 (start)" in opened.find_element(By.CSS_SELECTOR, "details.layer .steps output").text
    assert {one.get_attribute("value") for one in opened.find_elements(By.CSS_SELECTOR, ".steps input")} == {"0"}
    slider.send_keys(Keys.END)
    assert [curve(opened, index) for index in (0, 1)] == last


def test_play_goes_from_the_start_to_the_end(opened):
    last = curve(opened)
    opened.execute_script("scrollTo(0, 0)")
    button = opened.find_element(By.CSS_SELECTOR, ".steps button")
    button.click()
    assert button.text == "Stop"
    assert curve(opened) != last
    button.click()
    opened.find_element(By.CSS_SELECTOR, ".steps input").send_keys(Keys.END)
    assert (button.text, curve(opened)) == ("Play", last)


def test_a_heading_sorts_and_words_filter(opened, found):
    show(opened, 1200)
    names = first_cells(opened, "audit-table")
    heading = opened.find_elements(By.CSS_SELECTOR, "#audit-table th button")[4]
    heading.click()
    by_gradient = sorted(found.audit.rows, key=lambda row: -row.gradient)
    assert first_cells(opened, "audit-table") == [row.name for row in by_gradient] != names
    heading.click()
    assert first_cells(opened, "audit-table") == [row.name for row in by_gradient][::-1]
    assert opened.find_element(By.CSS_SELECTOR, "#audit-table th[aria-sort]").get_attribute("aria-sort") == "ascending"
    field = opened.find_element(By.CSS_SELECTOR, "[data-filters=audit-table]")
    field.send_keys("ACT2 gamma")
    assert first_cells(opened, "audit-table") == ["act2.gamma"]
    field.send_keys(Keys.CONTROL + "a", Keys.DELETE)
    assert len(first_cells(opened, "audit-table")) == len(names)


def test_values_under_the_pointer_and_by_the_keys(opened, found):
    picture = opened.find_element(By.CSS_SELECTOR, "#layer-act1 svg.form")
    readout = opened.find_element(By.CSS_SELECTOR, "#layer-act1 .readout")
    ActionChains(opened).scroll_to_element(picture).move_to_element(picture).perform()
    shown = re.fullmatch(r"input (\S+): original \(ReLU\) (\S+), initial (\S+), tuned (\S+) ± (\S+)", readout.text)
    shape = found.shapes[0]
    at = int((shape.u_U - float(shown[1])).abs().argmin())
    for group, values in enumerate((shape.u_U, shape.original_U, shape.initial_U, shape.tuned_U, shape.error_U), 1):
        assert float(shown[group]) == pytest.approx(values[at].item(), rel=1e-3, abs=1e-6)
    before = readout.text
    picture.send_keys(Keys.ARROW_RIGHT)
    assert readout.text != before


def test_a_layer_is_a_row_that_opens(opened, found):
    show(opened, 1200)
    row = opened.find_element(By.CSS_SELECTOR, "#layer-act2")
    summary = row.find_element(By.TAG_NAME, "summary")
    shape = next(shape for shape in found.shapes if shape.path == "act2")
    assert f"{shape.changed:.1%}" in summary.text
    assert shape.nearest_text() in summary.text
    opened.execute_script("arguments[0].open = false", row)
    opened.find_element(By.CSS_SELECTOR, ".overview a[href='#layer-act2']").click()
    assert row.get_attribute("open") is not None
    assert all(word in row.text for word in ("Nearest known function", "Inputs", "Audit", "standard error"))


def test_layers_are_filtered_and_sorted(opened, found):
    def paths():
        return [
            row.get_attribute("id") for row in opened.find_elements(By.CSS_SELECTOR, "#layer-rows > :not([hidden])")
        ]

    assert paths() == ["layer-act1", "layer-act2"]
    opened.execute_script("scrollTo(0, 0)")
    choice = Select(opened.find_element(By.CSS_SELECTOR, "[data-sorts]"))
    choice.select_by_value("changed")
    assert paths() == [f"layer-{one.path}" for one in sorted(found.shapes, key=lambda one: -one.changed)]
    choice.select_by_value("calls")
    assert paths() == ["layer-act1", "layer-act2"]
    field = opened.find_element(By.CSS_SELECTOR, "[data-filters=layer-rows]")
    field.send_keys("act2")
    assert paths() == ["layer-act2"]
    field.send_keys(Keys.CONTROL + "a", Keys.DELETE)


def test_tables_and_figures_can_be_downloaded(opened, found):
    opened.execute_script(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () { fetch(this.href).then(one => one.text())"
        ".then(text => window.saved.push([this.download, text])); }"
    )

    def downloaded(label):
        opened.execute_script("arguments[0].click()", opened.find_element(By.CSS_SELECTOR, f"[aria-label='{label}']"))
        WebDriverWait(opened, 10).until(lambda one: one.execute_script("return window.saved.length"))
        return opened.execute_script("return window.saved.shift()")

    name, text = downloaded("Download Steps as CSV")
    assert name == "step-table.csv"
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0][0] == "step"
    assert len(rows) == len(found.identification.steps) + 1
    name, text = downloaded("Download act1: original, initial and tuned activation as SVG")
    assert name == "layer-act1.svg"
    assert "stroke=" in text
    assert downloaded("Download act1: original, initial and tuned activation as PNG")[0] == "layer-act1.png"


def test_long_names_of_layers_fit_a_telephone(found, tmp_path):
    # The verdict names the layer that changed most.
    most = max(found.shapes, key=lambda shape: shape.changed).path
    path = "encoder.layers.0." + 3 * "a_very_long_name_" + "w" * 60

    def renamed(rows):
        return tuple(dataclasses.replace(row, path=path if row.path == most else "b") for row in rows)

    named = dataclasses.replace(
        found,
        shapes=renamed(found.shapes),
        inputs=renamed(found.inputs),
        replaced=renamed(found.replaced),
    )
    made = write_study_page(named, tmp_path / "study.html")
    with browser(tmp_path) as driver:
        driver.get(made.as_uri())
        check_page(driver)


def test_without_the_script_the_curves_are_there(found):
    text = study_page(found)
    frames = re.findall(r'<svg class="form".*?</svg></svg>', text, re.DOTALL)
    assert len(frames) == 2
    assert all(
        f'<path class="{kind}" d="M' in frames[0]
        for kind in ("inputs", "original", "initial", "tuned", "error", "veil")
    )


def test_names_cannot_break_the_page(found):
    facts = {"command": "</script><script>alert(1)</script>", "network": "<b>A & B, 3 parameters"}
    text = study_page(dataclasses.replace(found, provenance=found.provenance | facts))
    assert "<script>alert" not in text
    assert "<b>A" not in text
    assert "&lt;b&gt;A &amp; B" in text


def test_fifty_layers_stay_small_on_the_screen_and_on_paper(found, tmp_path):
    layers = {f"blocks.{index}.act": index % 2 for index in range(50)}

    def renamed(rows, key):
        return tuple(dataclasses.replace(rows[which], **{key: path}) for path, which in layers.items())

    shapes = renamed(found.shapes, "path")
    shapes = tuple(dataclasses.replace(shape, steps_SU=torch.randn(40, 121)) for shape in shapes)
    steps = tuple(dataclasses.replace(found.identification.steps[-1], number=number) for number in range(40))
    identification = dataclasses.replace(
        found.identification, state=dataclasses.replace(found.identification.state, steps=steps)
    )
    replaced = renamed(found.replaced, "path")
    many = dataclasses.replace(
        found, shapes=shapes, inputs=renamed(found.inputs, "path"), replaced=replaced, identification=identification
    )
    text = study_page(many)
    assert text.count('<svg class="form"') == 50
    assert len(text.encode()) < 5e6
    made = write_study_page(many, tmp_path / "study.html")
    with browser(tmp_path) as driver:
        driver.get(made.as_uri())
        show(driver, 1440)
        assert driver.execute_script("return document.documentElement.scrollHeight") < 12_000
        # All layers are opened for the paper; five or so stand on a page.
        assert 5 < pages_on_paper(driver) <= 25


def test_another_file_is_not_overwritten(found, tmp_path):
    page = write_study_page(found, tmp_path / "study.html")
    assert write_study_page(found, page) == page
    other = studied(replacements={"act1": REPLACEMENTS["act1"]})
    with pytest.raises(UserError, match="is not the page of this study"):
        write_study_page(other, page)
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UserError, match="is not the page of this study"):
        write_study_page(other, tmp_path / "notes.html")
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_one_call_makes_the_page_and_the_next_loads_it(tmp_path, caplog):
    options = {"heldout": batches(768), "steps": 2, "samples": 64, "report": tmp_path / "net.html"}
    with caplog.at_level("INFO", logger="aafit"):
        first = aafit.study(base(), batches(512), REPLACEMENTS, **options)
    assert first.page == tmp_path / "net.html"
    assert first.folder.parent == tmp_path / "net.parts"
    assert re.findall(r"\d s  (\w+)$", caplog.text, re.M) == [*PARTS, "done"]
    again = aafit.study(base(), batches(512), REPLACEMENTS, **options)
    assert again.as_dict() == first.as_dict()
    with pytest.raises(UserError, match="is not the page of this study"):
        aafit.study(base(), batches(512), REPLACEMENTS, **(options | {"seed": 5}))
    assert len(list((tmp_path / "net.parts").iterdir())) == 1
