"""The page of a study: everything is in it, whatever its names hold, and nothing comes from elsewhere."""

import html.parser
import json
import re

import pytest

from bsjax import InvalidArgument
from bsjax.errors import RunError
from experiments.harness import html as pages
from experiments.harness import report_page, report_parts

EVIL = "<script>alert('1')</script>&\"</style>"
PNG = bytes.fromhex("89504e470d0a1a0a")


class Parser(html.parser.HTMLParser):
    """Collects the tags, their attributes and the texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def study(tmp_path):
    """A folder with two schedules of three seeds, one of which has diverged and one of which still trains."""
    for seed in range(3):
        for rate in (0.1, 0.2):
            folder = tmp_path / "runs" / f"rate={rate},seed={seed}"
            folder.mkdir(parents=True)
            config = {"optimizer": {"learning_rate": rate}, "task": {"name": EVIL}, "run": {"seed": seed}}
            about = {"config": config, "command": f"python {EVIL}", "versions": {"jax": "1.0"}, "devices": ["cpu"]}
            (folder / "config.json").write_text(json.dumps(about))
            lines = [
                {"update": 4, "epoch": 1.0, "test_loss": 1.0 + seed},
                {"update": 8, "epoch": 2.0, "test_loss": rate},
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            summary = {"completed": True, "num_updates": 8, "final_test_loss": rate + seed, "wall_time_s": 3.0}
            if (rate, seed) == (0.2, 1):
                summary = {"completed": False, "num_updates": 3, "error": f"train_loss is nan {EVIL}"}
            if (rate, seed) != (0.2, 2):
                (folder / "summary.json").write_text(json.dumps(summary))
    return tmp_path


def test_a_study_without_a_figure_has_curves_results_runs_settings_and_commands(study):
    page = report_page.page(study)
    parsed = Parser(page)
    assert parsed.open == []  # every tag is closed
    sections = ["Results of the runs", "Runs", "Settings of all runs", "Commands and versions"]
    assert [text for text in parsed.texts if text in sections] == sections
    assert "1.1 [-1.384, 3.584]" in parsed.texts  # 0.1, 1.1 and 2.1: 1.1 ± 4.303 · 1/√3
    assert parsed.texts.count("complete") == 4 and parsed.texts.count("not complete") == 1
    assert f"diverged: train_loss is nan {EVIL}" in parsed.texts
    assert "task.name" in parsed.texts and "optimizer.learning_rate" not in parsed.texts  # shared, and not shared
    assert parsed.texts.count(f"python {EVIL}") == 1 and "jax 1.0; 1 × cpu, ? cores" in parsed.texts


def test_nothing_in_it_runs_or_is_loaded(study, tmp_path):
    (study / f"{'figure<img src=x onerror=alert(1)>'}.json").write_text(
        json.dumps({"versions": {}, "command": EVIL, "question": EVIL, "cases": {EVIL: None}})
    )
    (study / "figure<img src=x onerror=alert(1)>.png").write_bytes(PNG)
    (study / "figure<img src=x onerror=alert(1)>_table.csv").write_text(
        f'"{EVIL.replace(chr(34), chr(34) * 2)}",x\n1,2\n'
    )
    parsed = Parser(page := report_page.page(study))
    assert set(parsed.tags).isdisjoint({"script", "iframe", "link", "object", "a"}) and parsed.tags.count("style") == 1
    names = {name for name, _ in parsed.attributes}
    assert names <= {"charset", "lang", "name", "content", "http-equiv", "class", "alt", "src"}
    sources = [value for name, value in parsed.attributes if name == "src"]
    assert sources == ["data:image/png;base64,iVBORw0KGgo="]
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in parsed.attributes
    assert parsed.texts.count(EVIL) >= 3 and not re.search(r"https?://|url\(", page)


def test_the_smaller_picture_of_a_figure_is_shown_beside_its_table(study):
    (study / "figure5.json").write_text(json.dumps({"versions": {}, "verdict": "equal", "seeds": 3}))
    (study / "figure5.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (study / "figure5.png").write_bytes(PNG * 100)
    (study / "figure5_table.csv").write_text("schedule,difference,difference_low,difference_high\na,1.23456,-1,2\n")
    page = report_page.page(study)
    assert "data:image/svg+xml;base64," in page and "data:image/png" not in page  # no curves beside a figure
    assert {"verdict", "equal", "1.235 [-1, 2]"} <= set(Parser(page).texts)


def test_a_setting_that_older_runs_lack_is_no_difference(study):
    found = report_parts.find_runs(study)
    del found[0].settings["task.name"]
    common, differing = report_parts.split_settings(found)
    assert common == {"task.name": EVIL} and differing == ["optimizer.learning_rate", "run.seed"]


def test_the_folder_of_one_run_is_a_page_too(study):
    folder = study / "runs" / "rate=0.2,seed=2"
    assert "not complete" in Parser(report_page.page(folder)).texts
    (folder / "metrics.jsonl").write_text("")  # it has just begun
    assert "img" not in Parser(report_page.page(folder)).tags


def test_a_long_table_is_folded():
    rows = [{"number": i} for i in range(30)]
    assert pages.table(rows, "Runs").startswith("<details><summary>Runs: 30 rows</summary>")
    assert pages.table(rows[:3]).startswith("<div") and pages.table([]) == ""


def test_other_folders_and_damaged_files_are_refused(study, tmp_path):
    with pytest.raises(InvalidArgument, match=r"workdir is .*the folder of a study or of a run that has begun"):
        report_page.page(tmp_path / "missing")
    (study / "figure5.json").write_text("{")
    with pytest.raises(RunError, match=r"figure5.json cannot be read: .*make the figure again"):
        report_page.page(study)


def test_the_script_writes_the_page(study, call):
    result = call("report", f"--workdir={study}")
    assert (result.returncode, result.stdout) == (0, f"{study}/report.html\n"), result.stderr
    assert (study / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_figures_table_keeps_the_deviation_of_a_mean_and_has_times_last():
    row = {"schedule": "A", "test_loss_mean": "1.5", "test_loss_std": "0.1", "test_loss": "1.5", "wall_time_s": "2"}
    row |= {"examples_per_second": "9", "difference": "0.2", "difference_low": "0.1", "difference_high": "0.3"}
    [cells] = report_parts.merge_columns([row])
    assert list(cells.items()) == [
        ("schedule", "A"),
        ("test_loss", "1.5 ± 0.1"),
        ("difference", "0.2 [0.1, 0.3]"),
        ("wall_time_s", "2"),
        ("examples_per_second", "9"),
    ]
