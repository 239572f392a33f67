"""`lodestar demo --people`, whole: real processes, and a person in Chromium who uses the keyboard alone.

LODESTAR_SCREENSHOTS=folder keeps what was on the screen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import WebDriverWait

from lodestar.data.files import read_feedback
from lodestar.rpc.state import ServiceState

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"),
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]
BIN = Path(sys.executable).parent
PAIRS = 8
SMALL = [
    "stages.data.demonstration_rows=400",
    "stages.data.prompt_rows=48",
    "stages.data.evaluation_rows=16",
    "stages.sft.max_seconds=4",
    "stages.sample.prompts=12",
    "stages.sample.batch=12",
    "stages.sample.max_tokens=12",
    f"stages.label.budget={PAIRS}",
    "stages.reward.epochs=3",
    "stages.ppo.steps=1",
    "stages.ppo.batch=8",
    "stages.ppo.max_tokens=12",
    "stages.taught={folds: 3, prompts: 8}",
]


class Demo:
    """The command as a person starts it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "people"
        self._log = folder / "log"
        self.start()

    def start(self, *flags: str) -> None:
        command = [BIN / "lodestar", "demo", "--people", *flags, f"runs_dir={self.root.parent}", *SMALL]
        with self._log.open("ab") as log:
            quiet = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=quiet | {"COLUMNS": "160", "OMP_NUM_THREADS": "1"}
            )

    def until(self, there: Callable[[], bool], seconds: float = 420) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.2)

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def status(self) -> str:
        done = subprocess.run(
            [BIN / "lodestar", "status", str(self.root)],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "300"},
            check=True,
        )
        return done.stdout


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.process.terminate()
    made.process.wait(60)


@pytest.fixture
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_page_load_timeout(120)
    yield browser
    browser.quit()


def keep(browser: webdriver.Chrome, name: str) -> None:
    if folder := os.environ.get("LODESTAR_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def go(browser: webdriver.Chrome, *keys: str) -> None:
    """Presses, and waits for the page to which the last key leads."""
    page = browser.find_element(By.TAG_NAME, "html")
    for key in keys:
        ActionChains(browser).send_keys(key).perform()
    WebDriverWait(browser, 60).until(staleness_of(page))


def answers(link: str) -> bool:
    """Whether the page is there; who has no session is sent to the way in."""
    try:
        with urllib.request.urlopen(link, timeout=10) as found:
            return found.status == 200
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def judge(browser: webdriver.Chrome) -> None:
    """The shorter reply is the better one."""
    first, second = (len(one.text.split()) for one in browser.find_elements(By.CSS_SELECTOR, ".text")[1:3])
    go(browser, "=" if first == second else "a" if first < second else "b", Keys.ENTER)


def test_a_person_judges_the_demo_over_kills_and_sees_what_it_learned(demo: Demo, chromium: webdriver.Chrome) -> None:
    kept = demo.root / "feedback"
    demo.until(lambda: "judge at http://" in demo.said)
    invitation = (kept / "lead.link").read_text().strip()
    assert invitation not in demo.said, "standard output is a file here: no secret goes there"
    assert f"who judges comes in by the link in {kept / 'lead.link'}" in demo.said
    chromium.get(invitation)
    go(chromium, Keys.ENTER)
    (link,) = set(re.findall(r"judge at (http\S+)", demo.said))
    chromium.get(link)
    keep(chromium, "demo-pair")
    for _ in range(3):
        judge(chromium)

    demo.until(lambda: f"3 of {PAIRS} judgements by 1 person" in demo.said)
    assert f"3 of {PAIRS} judgements by 1 person, agreement not known yet; judge at {link}" in demo.status

    state = demo.root / "services" / "feedback-0.json"
    pid = ServiceState.read(state).pid
    os.kill(pid, signal.SIGKILL)
    demo.until(lambda: ServiceState.read(state).pid != pid and answers(link))
    assert "feedback-0 was killed by signal 9; restarting it" in demo.said
    chromium.get(link)
    judge(chromium)

    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(120) == 130, demo.said
    before = len(demo.said)
    demo.start("--resume")
    demo.until(lambda: f"{PAIRS} questions for people, which were asked before; judge at {link}" in demo.said[before:])
    chromium.get(link)
    for _ in range(PAIRS - 4):
        judge(chromium)
    assert "Nothing more for you" in chromium.page_source or "asks no more" in chromium.page_source

    assert demo.process.wait(600) == 0, demo.said
    splits = ("train", "held_out", "evaluation")
    rows = [row for name in splits for row in read_feedback(demo.root / "label" / "feedback" / f"{name}.jsonl")]
    assert [row.annotator for row in rows] == ["lead"] * PAIRS
    figures = demo.root / "taught" / "figures"
    found = json.loads((figures / "taught.json").read_text())
    decided = [row for row in found["judged"] if row["says"] != "a tie"]
    assert (found["answers"], len(found["judged"]), found["accuracy"]["n"]) == (PAIRS, PAIRS, len(decided))
    agreed = sum(row["says"] == "agrees" for row in decided)
    assert found["accuracy"]["value"] == pytest.approx(agreed / len(decided) if decided else 0.5)
    assert f"is right about {agreed} of {len(decided)} answers that it had not seen" in demo.said or not decided
    chromium.get((figures / "taught.html").as_uri())
    keep(chromium, "taught")
    assert "The same requests before and after" in chromium.page_source
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
