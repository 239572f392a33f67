"""The report stands alone, shows every part of a run, and is made of what a stranger's text cannot break."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from lodestar import metrics, strict_json
from lodestar.cautions import cautions
from lodestar.errors import DataError
from lodestar.recipe.folder import RunFolder
from lodestar.report import write_report
from lodestar.report.facts import read_facts
from lodestar.report.figures import over_optimisation, running_win_rate, score_against_kl, step_seconds
from lodestar.report.metrics import GROUPS
from lodestar.report.page import render

SECTIONS = ["samples", "better", "curves", "reward-model", "training", "time", "services", "config"]


def _metrics(run: RunFolder) -> Path:
    return run.store.path("ppo/figures") / "metrics.jsonl"


def _samples(run: RunFolder) -> Path:
    return run.store.path("evaluate/figures") / "samples.jsonl"


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of elements that are no scripts or styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


def test_every_section_is_there_and_linked(example_run: RunFolder) -> None:
    page = Elements(render(read_facts(example_run.root)))
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == SECTIONS
    links = {str(attributes["href"]).removeprefix("#") for tag, attributes in page.tags if tag == "a"}
    assert set(SECTIONS) <= links


def test_nothing_points_outside(example_run: RunFolder) -> None:
    page = Elements(render(read_facts(example_run.root)))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe"), tag
        for name in ("src", "href", "data", "srcset"):
            assert not (attributes.get(name) or "#").startswith(("http", "//")), (tag, attributes)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_text_of_samples_is_shown_and_never_run(example_run: RunFolder) -> None:
    rows = [json.loads(line) for line in _samples(example_run).read_text().splitlines()]
    for row in rows:
        row["after"]["text"] = "</script><script>alert(1)</script><b>bold</b>"
        row["prompt"] = "<img src=x onerror=alert(1)>"
    _samples(example_run).write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Elements(render(read_facts(example_run.root)))
    assert "</script><script>alert(1)</script>" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_every_metric_that_is_exported_has_its_curve(example_run: RunFolder) -> None:
    charted = {metric.name for group in GROUPS.values() for metric in group}
    assert set(metrics.TRAINING) <= charted
    page = Elements(render(read_facts(example_run.root)))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {f"m-{name}" for name in charted} <= ids


def test_every_figure_is_one_that_plotly_accepts_and_a_reader_is_told_of(example_run: RunFolder) -> None:
    html = render(read_facts(example_run.root))
    page = Elements(html)
    embedded = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert embedded is not None
    figures = json.loads(embedded.group(1))
    labels = {
        attributes["id"]: attributes["aria-label"] for _, attributes in page.tags if attributes.get("role") == "img"
    }
    assert figures.keys() == labels.keys()
    assert all(len(str(label)) > 15 for label in labels.values())
    plain = json.loads(re.sub(r'"@[a-z-]+"', '"#123456"', json.dumps(figures)))
    for figure in plain.values():
        go.Figure(figure["data"], figure["layout"])


def test_the_headline_says_what_the_interval_allows(example_run: RunFolder) -> None:
    summary = json.loads((example_run.root / "summary.json").read_text())
    for rate, said in [
        ((0.8, 0.7, 0.9), "beats"),
        ((0.5, 0.4, 0.6), "cannot be told apart"),
        ((0.2, 0.1, 0.3), "loses to"),
    ]:
        summary["win_rate"] |= dict(zip(("value", "low", "high"), rate, strict=True))
        (example_run.root / "summary.json").write_text(json.dumps(summary))
        assert said in Elements(render(read_facts(example_run.root))).text


@pytest.mark.parametrize(
    ("told", "steps", "said"),
    [
        ({"over_optimised_at": 30, "steps": 30}, 40, "alarm of step 30 ended PPO after 30 of 40 steps"),
        ({"over_optimised_at": 30, "steps": 40}, 40, "alarm was raised at step 30"),
        ({"steps": 12}, 40, "PPO ended after 12 of 40 steps."),
        ({"steps": 40, "cut_short": {"reward": {"done": 1, "total": 80}}}, 40, "reward at 1 of 80 steps"),
    ],
)
def test_the_headline_never_praises_what_stopped_itself_or_was_cut_short(
    example_run: RunFolder, told: dict[str, object], steps: int, said: str
) -> None:
    path = example_run.root / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    text = Elements(render(read_facts(example_run.root))).text
    assert said in text
    assert "beats the SFT model" not in text
    assert "wins 84.2% of" in text
    assert cautions({"steps": steps}, steps) == []


def test_figures_are_written_for_people(example_run: RunFolder) -> None:
    rows = [json.loads(line) for line in _metrics(example_run).read_text().splitlines()]
    rows[-1]["kl_k1"] = 1.0e-13
    _metrics(example_run).write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = render(read_facts(example_run.root))
    assert not re.search(r"\d[eE][-+]\d\d", Elements(page).text)
    figures = read_facts(example_run.root)
    axes_of_steps = [over_optimisation(figures), running_win_rate(figures), step_seconds(figures.steps)]
    for figure in axes_of_steps:
        assert figure is not None
        assert figure.layout["xaxis"]["dtick"] == int(figure.layout["xaxis"]["dtick"]) >= 1


def test_score_and_judge_are_drawn_on_one_scale_by_step_first(example_run: RunFolder) -> None:
    figure = over_optimisation(read_facts(example_run.root))
    assert figure is not None
    assert [trace["name"] for trace in figure.data] == ["score", "held-out judge", "alarm"]
    assert figure.data[0]["x"] == list(range(1, 41))
    assert figure.titles[figure.axis] == "PPO step"
    rows = read_facts(example_run.root).steps
    change = (rows[-1]["gold"] - rows[0]["gold"]) / rows[0]["gold_std"]
    assert figure.data[1]["y"][-1] == pytest.approx(change)


def test_a_sample_of_the_synthetic_world_stands_beside_the_best_reply(example_run: RunFolder) -> None:
    rows = [json.loads(line) for line in _samples(example_run).read_text().splitlines()]
    for row in rows:
        row["prompt"] = "what is the home and the color of the owl ? answer mia piratically"
    _samples(example_run).write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Elements(render(read_facts(example_run.root))).text
    assert "The best reply: arr mia , the owl lives in the tower and it is brown , matey !" in text
    assert "The simulated people like whoever asks called by name" in text


def test_best_of_n_stands_at_the_offset_that_the_learner_recorded(example_run: RunFolder) -> None:
    """With several reward sources the run's offset is not the one of the reward model's card."""
    rows = [json.loads(line) for line in _metrics(example_run).read_text().splitlines()]
    _metrics(example_run).write_text("".join(json.dumps(row | {"offset": -12.58}) + "\n" for row in rows))
    figure = score_against_kl(read_facts(example_run.root))
    assert figure is not None
    by_name = {trace["name"]: trace for trace in figure.data}
    assert by_name["best of n"]["y"] == pytest.approx([0.6 + 0.25 + 12.58, 1.25 + 0.25 + 12.58])
    assert by_name["PPO, held-out prompts"]["y"] == pytest.approx([2.71 + 12.58])
    assert by_name["PPO, held-out prompts"]["x"] == [rows[-1]["kl_after"]]
    for row in rows:
        del row["offset"]
    _metrics(example_run).write_text("".join(json.dumps(row) + "\n" for row in rows))
    unknown = score_against_kl(read_facts(example_run.root))
    assert unknown is not None
    assert [trace["name"] for trace in unknown.data] == ["PPO, by step"]
    assert "did not record what it subtracted" in unknown.says


def test_the_report_says_that_a_stage_was_cut_short(example_run: RunFolder) -> None:
    path = example_run.store.path("sft/figures") / "fit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cut_short": {"done": 110, "total": 240}}))
    text = Elements(render(read_facts(example_run.root))).text
    assert text.count("max_seconds cut it short at 110 of 240 steps.") == 1


def test_a_figure_that_was_no_number_is_left_out_of_its_curve(example_run: RunFolder) -> None:
    rows = [json.loads(line) for line in _metrics(example_run).read_text().splitlines()]
    rows[3] |= {"kl_k3": math.inf, "score": math.nan, "kl_sequence": math.nan}
    _metrics(example_run).write_text("".join(strict_json.dumps(row) + "\n" for row in rows))
    facts = read_facts(example_run.root)
    assert facts.steps[3]["not_finite"] == {"kl_k3": "inf", "score": "nan", "kl_sequence": "nan"}
    assert "nan" not in str(score_against_kl(facts))
    render(facts)


def test_samples_go_from_the_largest_gain_to_the_largest_loss(example_run: RunFolder) -> None:
    facts = read_facts(example_run.root)
    gains = [float(gain.replace("−", "-")) for gain in re.findall(r'class="gain [a-z]*">([^<]+)<', render(facts))]
    everything = [after - before for before, after in facts.judged_pairs]
    for part in (gains[:3], gains[3:]):  # those at the head, and those that unfold
        assert part == sorted(part, reverse=True)
        assert part[0] == pytest.approx(max(everything), abs=0.006)
        assert part[-1] == pytest.approx(min(everything), abs=0.006)
    assert len(gains) == 3 + 8


def test_an_unfinished_run_gets_what_there_is(example_run: RunFolder) -> None:
    (example_run.root / "summary.json").unlink()
    shutil.rmtree(example_run.root / "evaluate")
    lines = _metrics(example_run).read_text().splitlines()[:7]
    _metrics(example_run).write_text("\n".join(lines) + "\n")
    text = Elements(render(read_facts(example_run.root))).text
    assert "This run is not finished: 7 of 40 PPO steps are done." in text
    assert "Curves" in text


def test_a_run_that_has_just_begun_gets_a_page_too(example_run: RunFolder) -> None:
    config = (example_run.root / "config.yaml").read_text()
    shutil.rmtree(example_run.root)
    example_run.root.mkdir()
    (example_run.root / "config.yaml").write_text(config)
    assert "0 of 40 PPO steps" in render(read_facts(example_run.root))


def test_a_damaged_line_is_named(example_run: RunFolder) -> None:
    with _metrics(example_run).open("a") as file:
        file.write('{"step": 41,\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:41: is not JSON"):
        write_report(example_run.root)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_every_figure_without_a_request_or_an_error(example_run: RunFolder) -> None:
    write_report(example_run.root)
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={example_run.root / 'browser'}",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=20000",
        "--window-size=500,16000", "--dump-dom", f"file://{example_run.root / 'report.html'}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    assert "net::ERR" not in done.stderr
    drawn = re.findall(r'<div class="plot js-plotly-plot" id="([^"]+)"', done.stdout)
    assert len(drawn) == (example_run.root / "report.html").read_text().count('role="img"') > 30
    assert done.stdout.count('class="main-svg"') >= len(drawn)
