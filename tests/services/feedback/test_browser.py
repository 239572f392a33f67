"""Whole sessions in Chromium: by keyboard alone, by drag, at 360 px, and with scripting off.

LODESTAR_SCREENSHOTS=folder keeps what was on the screen.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import staleness_of
from selenium.webdriver.support.ui import Select, WebDriverWait

from lodestar.feedback import Campaign, Item, PairVerdict, RankingVerdict, RatingVerdict

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"),
    pytest.mark.slow,
]
GUIDE = "# What is better\n\nPrefer the reply that is **true**, then the one that is kind.\n\n1. Read both.\n2. Choose."
PROMPT = "what color is the sky ?"


def driver(*, scripting: bool = True) -> webdriver.Chrome:
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
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    if not scripting:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    browser = driver()
    yield browser
    browser.quit()


def come_in(browser: webdriver.Chrome, page: Any, name: str, role: Any = "annotator") -> None:
    browser.get(page.site.invitation(page.invite(name, role)))
    go(browser, Keys.ENTER)  # the button has the focus
    assert browser.current_url == page.site.link + "/"


def press(browser: webdriver.Chrome, *keys: str) -> None:
    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def go(browser: webdriver.Chrome, *keys: str) -> None:
    """Presses, and waits for the page to which the last key leads."""
    page = browser.find_element(By.TAG_NAME, "html")
    press(browser, *keys)
    WebDriverWait(browser, 20).until(staleness_of(page))


def follow(browser: webdriver.Chrome, by: str, what: str) -> None:
    """Clicks, and waits for the page to which it leads."""
    page = browser.find_element(By.TAG_NAME, "html")
    browser.find_element(by, what).click()
    WebDriverWait(browser, 20).until(staleness_of(page))


def send_writing(browser: webdriver.Chrome) -> None:
    page = browser.find_element(By.TAG_NAME, "html")
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    WebDriverWait(browser, 20).until(staleness_of(page))


def keep(browser: webdriver.Chrome, name: str) -> None:
    if folder := os.environ.get("LODESTAR_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def complaints(browser: webdriver.Chrome) -> list[str]:
    """Of the console: a refused script or style would be here."""
    found = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in found if "status of 422" not in message]


def hosts(browser: webdriver.Chrome) -> set[str]:
    """That were asked for anything since the last look."""
    found = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if url.startswith("http"):
                found.add(url.split("/")[2].split(":")[0])
    return found


def test_pairs_by_keyboard(chromium: webdriver.Chrome, lite: Any) -> None:
    items = [
        Item(str(i), PROMPT, ("the sky is blue .", "the sky is a dish ,\x1b[31m <script>document.title='x'</script>"))
        for i in range(4)
    ]
    lite.add(Campaign(name="pairs", form="pair", instructions=GUIDE + " ![x](http://example.org/x.png)"), items)
    come_in(chromium, lite, "ada")
    hosts(chromium), complaints(chromium)
    chromium.get(f"{lite.site.link}/c/pairs")
    keep(chromium, "pair")
    go(chromium, "a", Keys.ENTER)
    go(chromium, "7", Keys.ENTER)
    go(chromium, "u")
    assert "2 answered" not in chromium.page_source
    assert chromium.find_element(By.CSS_SELECTOR, 'input[value="b3"]').is_selected()
    go(chromium, "=", Keys.ENTER)
    go(chromium, "x", Keys.ENTER)
    go(chromium, "s")
    said = lite.counted("pairs")
    strengths = [(one.verdict.strength, one.verdict.both_bad) for one in said]
    assert strengths == [(2, False), (0, False), (0, True)]
    assert "Nothing more for you" in chromium.page_source
    assert chromium.title == "pairs"
    assert hosts(chromium) == {"127.0.0.1"}
    assert complaints(chromium) == []


def test_the_rating_form_by_keyboard(chromium: webdriver.Chrome, lite: Any) -> None:
    campaign = Campaign(name="rating", form="rating", rank_after=True, instructions=GUIDE)
    lite.add(campaign, [Item("1", PROMPT, ("blue .", "a dish ."))])
    come_in(chromium, lite, "ada")
    chromium.get(f"{lite.site.link}/c/rating")
    press(chromium, "6", *"nnnnnnyn")
    keep(chromium, "rating")
    go(chromium, Keys.ENTER)
    assert "Page 2 / 3" in chromium.page_source
    go(chromium, Keys.ENTER)
    assert "missing" in chromium.page_source
    go(chromium, "2", *"ynnnnnnn", Keys.ENTER)
    assert "Page 3 / 3" in chromium.page_source
    press(chromium, "b", "1")
    keep(chromium, "rating-rank")
    go(chromium, Keys.ENTER)
    (said,) = lite.counted("rating")
    first, second = said.shown
    assert isinstance(said.verdict, RatingVerdict)
    assert (said.verdict.overall[first], said.verdict.overall[second]) == (6, 2)
    assert said.verdict.marks["harmful_advice"][first] is True
    assert said.verdict.marks["fails_instruction"][second] is True
    assert said.verdict.ranking == RankingVerdict(order=((second,), (first,)))
    assert complaints(chromium) == []


def test_rankings_by_keyboard_and_by_drag(chromium: webdriver.Chrome, lite: Any) -> None:
    replies = ("blue .", "green .", "a dish .", "I will not say .")
    lite.add(Campaign(name="ranking", form="ranking"), [Item(str(i), PROMPT, replies) for i in range(2)])
    come_in(chromium, lite, "ada")
    chromium.get(f"{lite.site.link}/c/ranking")
    press(chromium, "d", "1", "b", Keys.ARROW_DOWN, "=")  # A B C D → D A B C → D A C B → D A C=B
    keep(chromium, "ranking")
    go(chromium, Keys.ENTER)
    (said,) = lite.counted("ranking")
    a, b, c, d = said.shown
    assert said.verdict == RankingVerdict(order=((d,), (a,), tuple(sorted((b, c)))))
    rows = chromium.find_elements(By.CSS_SELECTOR, "#ranking > li")
    drag = ActionChains(chromium).move_to_element_with_offset(rows[0], -200, 0).click_and_hold()
    for y in (60, 60, 60, 60, 60, 60):
        drag.move_by_offset(0, y)
    drag.release().perform()
    order = [row.get_attribute("data-reply") for row in chromium.find_elements(By.CSS_SELECTOR, "#ranking > li")]
    assert order != ["0", "1", "2", "3"]
    assert sorted(order) == ["0", "1", "2", "3"]
    go(chromium, Keys.ENTER)
    last = lite.counted("ranking")[-1]
    assert [index for tied in last.verdict.order for index in tied] == [last.shown[int(place)] for place in order]
    assert complaints(chromium) == []


def test_aspects_by_keyboard(chromium: webdriver.Chrome, lite: Any) -> None:
    lite.add(Campaign(name="aspects", form="aspects"), [Item("1", PROMPT, ("blue .", "a dish ."))])
    come_in(chromium, lite, "ada")
    chromium.get(f"{lite.site.link}/c/aspects")
    press(chromium, "5", "1")
    keep(chromium, "aspects")
    go(chromium, Keys.ENTER)
    (said,) = lite.counted("aspects")
    assert [said.verdict.ratings[index] for index in said.shown] == [5, 1]


def test_demonstrations_and_prompts_by_keyboard(chromium: webdriver.Chrome, lite: Any) -> None:
    lite.add(Campaign(name="demo", form="demonstration"), [Item("1", PROMPT)])
    lite.add(Campaign(name="prompts", form="prompt"), [Item("1", "", style="few_shot")])
    come_in(chromium, lite, "ada")
    chromium.get(f"{lite.site.link}/c/demo")
    press(chromium, "the sky is blue , as you see . sux=7")  # letters are letters here
    keep(chromium, "demonstration")
    send_writing(chromium)
    assert [one.verdict.completion for one in lite.counted("demo")] == ["the sky is blue , as you see . sux=7"]
    chromium.get(f"{lite.site.link}/c/prompts")
    press(chromium, "translate", Keys.TAB, "cat", Keys.TAB, "chat")
    keep(chromium, "few-shot")
    send_writing(chromium)
    (said,) = lite.counted("prompts")
    assert said.verdict.rendered == "translate\n\nQuery: cat\nResponse: chat"


def test_a_phone_shows_every_form_without_scrolling_sideways(chromium: webdriver.Chrome, lite: Any) -> None:
    long = "a" * 300 + " b"
    forms: dict[Any, int] = {"pair": 2, "rating": 2, "ranking": 4, "aspects": 2, "demonstration": 0, "prompt": 0}
    for form, count in forms.items():
        item = Item("1", PROMPT + long, tuple(f"{i}{long}" for i in range(count)), style="few_shot")
        lite.add(Campaign(name=form, form=form, instructions=GUIDE), [item])
    come_in(chromium, lite, "lena", "lead")
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for path in ["/", *(f"/c/{form}" for form in forms), "/lead", "/lead/c/pair", "/lead/people"]:
            chromium.get(lite.site.link + path)
            assert chromium.execute_script("return document.documentElement.scrollWidth") <= 360, path
            targets = chromium.find_elements(By.CSS_SELECTOR, "button, .choice, .step, select")
            assert all(one.size["height"] >= 40 for one in targets if one.is_displayed()), path
            if path in ("/c/pair", "/c/ranking"):
                keep(chromium, f"phone{path.replace('/', '-')}")
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_can_be_answered_with_scripting_off(lite: Any) -> None:
    lite.add(Campaign(name="pairs", form="pair"), [Item("1", PROMPT, ("blue .", "a dish ."))])
    lite.add(Campaign(name="ranking", form="ranking"), [Item("1", PROMPT, ("x", "y"))])
    right = PairVerdict(label=1.0, strength=3)
    lite.add(
        Campaign(name="pairs", form="pair"), [Item("try", "practise", ("x", "y"), role="practice", expected=right)]
    )
    browser = driver(scripting=False)
    try:
        browser.get(lite.site.invitation(lite.invite("ada")))
        follow(browser, By.CSS_SELECTOR, "button.primary")
        browser.get(f"{lite.site.link}/c/pairs")
        for _ in range(2):
            browser.find_element(By.CSS_SELECTOR, 'input[value="a1"]').click()
            follow(browser, By.CSS_SELECTOR, 'button[value="send"]')
            if "The guide says" in browser.page_source:
                keep(browser, "practice")
                follow(browser, By.ID, "go-on")
        browser.get(f"{lite.site.link}/c/ranking")
        for place, value in enumerate("21"):
            Select(browser.find_element(By.NAME, f"place.{place}")).select_by_value(value)
        follow(browser, By.CSS_SELECTOR, 'button[value="send"]')
    finally:
        browser.quit()
    assert [one.role for one in lite.counted("pairs")] == ["practice", "ordinary"]
    (said,) = lite.counted("ranking")
    assert said.verdict.order == ((said.shown[1],), (said.shown[0],))


def test_a_lead_watches_a_campaign_sets_work_aside_and_invites(chromium: webdriver.Chrome, lite: Any) -> None:
    items = [Item(str(i), PROMPT, (f"blue {i} .", f"a dish {i} ."), models=("ppo", "sft")) for i in range(40)]
    lite.add(Campaign(name="r1.label", form="pair", overlap=4), items)
    for name in ("ada", "bob", "eve", "left"):
        browser = lite.browser(name, groups="cooks" if name < "c" else "")
        for _ in range(40):
            html = browser.open("r1.label").text
            good = html.index("blue") < html.index("a dish")
            browser.send(
                "r1.label", choice="a2" if name == "left" or good else "b2", note="a note" if name == "bob" else ""
            )
    come_in(chromium, lite, "lena", "lead")
    chromium.get(f"{lite.site.link}/lead/c/r1.label")
    keep(chromium, "lead")
    (doubted,) = chromium.find_elements(By.CSS_SELECTOR, "tr.doubted")
    assert doubted.text.startswith("left")
    assert "preferred the reply shown first" in doubted.text
    doubted.find_element(By.NAME, "reason").send_keys("always left")
    go(chromium, Keys.ENTER)
    assert not chromium.find_elements(By.CSS_SELECTOR, "tr.doubted")
    assert "40: always left (lena)" in chromium.page_source
    assert {one.set_aside for one in lite.judgements("r1.label") if one.annotator == "left"} == {"always left (lena)"}
    chromium.get(f"{lite.site.link}/lead/c/r1.label/item?id=3")
    assert "ppo" in chromium.page_source
    keep(chromium, "item")
    chromium.get(f"{lite.site.link}/lead/people")
    chromium.find_element(By.NAME, "name").send_keys("zoe")
    go(chromium, Keys.ENTER)
    assert "/join/" in chromium.find_element(By.CSS_SELECTOR, "input.link").get_attribute("value")
    assert complaints(chromium) == []
