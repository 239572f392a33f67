"""What somebody with bad intentions, a bad network or a bad disk does to the page."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from lodestar_services.feedback import campaigns, database, export, people
from lodestar_services.feedback.database import Database
from lodestar_services.feedback.tables import metadata
from lodestar_services.feedback.web.security import HEADERS

from lodestar.errors import ConfigError, FailedPrecondition, InvalidArgument, Unavailable
from lodestar.feedback import Campaign, Item

EVIL = "<script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>\x1b[2J\x9b31m\u202edlrow"


# --- what models write ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["pair", "rating", "ranking", "aspects"])
def test_text_of_models_is_shown_and_never_obeyed(lite: Any, form: Any) -> None:
    items = [Item("1", EVIL, (EVIL + "a", EVIL + "b"))]
    lite.add(
        Campaign(name="p", form=form, instructions=EVIL + " ![x](//evil.example/y) [l](javascript:alert(1))"), items
    )
    html = lite.browser("ada").open("p").text
    for part in ("<script>a", "<img", "\x1b", "\x9b", "\u202e", 'javascript:alert(1)"'):
        assert part not in html, part
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert '<span class="odd" title="U+001B">\\x1b</span>[2J' in html
    assert '<span class="odd" title="U+202E">U+202E</span>' in html


def test_notes_names_and_groups_of_people_are_escaped_for_leads(lite: Any, some_pairs: Any) -> None:
    lite.add(Campaign(name="p", form="pair", overlap=2), some_pairs(1))
    for name, choice in (("ada", "a1"), ("bob", "b1")):
        browser = lite.browser(name, groups="<b>group</b>")
        browser.open("p")
        browser.send("p", choice=choice, note=EVIL)
    lead = lite.browser("lena", "lead")
    for path in ("/lead", "/lead/c/p", "/lead/c/p/item?id=0", "/lead/people"):
        html = lead.get(path).text
        assert "<script>a" not in html
        assert "\x1b" not in html
        assert "<b>group" not in html


# --- who comes in --------------------------------------------------------------------------------------------------
def test_every_answer_has_the_headers_failures_included(lite: Any, caplog: Any) -> None:
    ada = lite.browser("ada")
    lite.add(Campaign(name="p", form="pair"), [Item("1", "q", ("x", "y"))])
    answers = [ada.get(path) for path in ("/", "/c/p", "/c/none", "/nothing", "/lead", "/static/none", "/healthz")]
    answers.append(lite.anonymous().get("/"))
    assert [one.status_code for one in answers] == [200, 200, 404, 404, 403, 404, 200, 401]
    lite.site.clock = None  # type: ignore[assignment]  # a fault of ours
    with caplog.at_level(logging.CRITICAL):
        answers.append(ada.get("/"))
    assert answers[-1].status_code == 500
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe-inline" not in HEADERS["content-security-policy"]


def test_cookies_are_for_this_site_alone_and_not_for_scripts(lite: Any) -> None:
    browser = lite.anonymous()
    response = browser.client.post("/join", data={"token": lite.invite("ada")})
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    lite.site.link = lite.site.link.replace("http://", "https://")
    cookie = browser.client.post("/join", data={"token": lite.invite("eve")}).headers["set-cookie"]
    assert cookie.startswith("__Host-lodestar=")
    assert "secure" in cookie.lower()


def test_an_invitation_is_opened_before_it_signs_in(lite: Any) -> None:
    token = lite.invite("ada")
    previewer = lite.anonymous()
    assert previewer.get(f"/join/{token}").status_code == 200
    assert "set-cookie" not in previewer.client.get(f"/join/{token}").headers
    assert previewer.get("/").status_code == 401


def test_guessing_invitations_is_stopped(lite: Any) -> None:
    stranger = lite.anonymous()
    codes = [stranger.get(f"/join/{'x' * 40}{i}").status_code for i in range(12)]
    assert codes == [404] * 10 + [429] * 2
    assert stranger.client.post("/join", data={"token": lite.invite("ada")}).status_code == 429


def test_a_withdrawn_person_is_out_at_once_and_a_new_link_replaces_the_old_one(lite: Any) -> None:
    token = lite.invite("ada")
    ada = lite.anonymous()
    ada.client.post("/join", data={"token": token})
    lead = lite.browser("lena", "lead")
    lead.get("/lead/people")
    lead.post("/lead/people/revoke", name="ada")
    assert ada.get("/").status_code == 401
    assert ada.get(f"/join/{token}").status_code == 404
    html = lead.post("/lead/people", name="ada", role="annotator").text
    fresh = html.split("/join/")[1].split('"')[0]
    assert fresh != token
    assert ada.get(f"/join/{fresh}").status_code == 200
    assert ada.get(f"/join/{token}").status_code == 404
    assert "withdrew the invitation of ada" in lead.get("/lead").text


def test_sessions_end(lite: Any) -> None:
    ada = lite.browser("ada")
    assert ada.get("/").status_code == 200
    lite.clock.now += people.SESSION_SECONDS + 1
    assert ada.get("/").status_code == 401
    bob = lite.browser("bob")
    assert bob.post("/leave").status_code == 401
    assert bob.get("/").status_code == 401


def test_forms_of_other_sites_and_sessions_change_nothing(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(1))
    ada, bob, lead = page.browser("ada"), page.browser("bob"), page.browser("lena", "lead")
    bob.get("/")
    theirs = bob.hidden["csrf"]
    ada.open("p")
    data = ada.hidden | {"do": "send", "choice": "a1"}
    for csrf in ("", theirs):
        assert ada.client.post("/c/p", data=data | {"csrf": csrf}).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert ada.client.post("/c/p", data=data, headers=cross).status_code == 403
    for path in ("/leave", "/c/p/undo", "/lead/people", "/lead/people/revoke", "/lead/c/p/close", "/lead/c/p/restore"):
        assert lead.client.post(path, data={"csrf": theirs, "name": "eve"}).status_code == 403, path
    assert lead.client.post("/lead/c/p/aside", data={"csrf": theirs, "name": "ada", "reason": "x"}).status_code == 403
    assert not page.judgements("p")


def test_annotators_do_not_reach_the_leads_pages(lite: Any, some_pairs: Any) -> None:
    lite.add(Campaign(name="p", form="pair"), some_pairs(1))
    ada = lite.browser("ada")
    ada.get("/")
    for path in ("/lead", "/lead/people", "/lead/c/p", "/lead/c/p/export", "/lead/c/p/item?id=0"):
        assert ada.client.get(path).status_code == 403, path
    for path in ("/lead/people", "/lead/people/revoke", "/lead/c/p/close", "/lead/c/p/restore"):
        assert ada.post(path, name="x").status_code == 403, path
    assert not campaigns_closed(lite)


def campaigns_closed(page: Any) -> bool:
    return page.site.database.transact(lambda c: campaigns.find(c, "p").closed)


def test_no_token_and_no_answer_is_in_a_log(lite: Any, caplog: Any, some_pairs: Any) -> None:
    caplog.set_level(logging.DEBUG)
    lite.add(Campaign(name="p", form="pair"), some_pairs(2))
    token = lite.invite("ada")
    ada = lite.anonymous()
    ada.client.get(f"/join/{token}")
    ada.client.post("/join", data={"token": token})
    ada.open("p")
    ada.send("p", choice="a1", note="my secret note")
    ada.get(f"/join/{token[:-1]}!")
    ada.open("p")
    csrf, lite.site.clock = ada.hidden["csrf"], None  # type: ignore[assignment]  # a fault of ours, with its traceback
    ada.send("p", choice="a1", note="my secret note")
    ours = "\n".join(
        record.getMessage() + str(record.exc_text or "")
        for record in caplog.records
        if not record.name.startswith("http")  # the test's own client
    )
    assert "a page failed" in ours
    for secret in (token, token[:-1], "my secret note", ada.client.cookies["lodestar"], csrf):
        assert secret not in ours


# --- what is sent --------------------------------------------------------------------------------------------------
def test_what_is_too_long_or_cannot_be_kept_is_said_by_field(lite: Any, some_pairs: Any) -> None:
    lite.add(Campaign(name="p", form="pair"), some_pairs(1))
    ada = lite.browser("ada")
    ada.open("p")
    form = dict(ada.hidden)
    response = ada.send("p", choice="a1", note="n" * 4001)
    assert response.status_code == 422
    assert "This has 4001 characters; at most 4000 can be kept." in response.text
    assert ada.send("p", choice="a1", note="a\0b").status_code == 422
    assert ada.client.post("/c/p", data=form | {"note": "n" * 2**20}).status_code == 413
    assert ada.client.post("/c/p", data=form | {f"x{i}": "1" for i in range(300)}).status_code == 413
    urlencoded = {"content-type": "application/x-www-form-urlencoded"}
    assert ada.client.post("/c/p", content=b"note=%ff%fe", headers=urlencoded).status_code == 400
    assert ada.client.post("/c/p", content=b"do=send&do=skip", headers=urlencoded).status_code == 400
    assert ada.client.post("/c/p", json={"do": "send"}).status_code == 400
    assert not lite.judgements("p")


@pytest.mark.parametrize(
    ("campaign", "item", "field"),
    [
        ({}, Item("", "q", ("x", "y")), "items[0].id"),
        ({}, Item("1", " ", ("x", "y")), "items[0].prompt"),
        ({}, Item("1", "q", ("x",)), "items[0].completions"),
        ({}, Item("1", "q", ("x", "x")), "items[0].completions"),
        ({}, Item("1", "q", ("x", "a\0b")), "items[0].completions[1]"),
        ({}, Item("1", "q" * (2**18 + 1), ("x", "y")), "items[0].prompt"),
        ({}, Item("1", "q", ("x", "y"), models=("one",)), "items[0].models"),
        ({}, Item("1", "q", ("x", "y"), priority=float("nan")), "items[0].priority"),
        ({}, Item("1", "q", ("x", "y"), role="gold"), "items[0].expected"),
        ({"form": "ranking"}, Item("1", "q", tuple("abcdefghij")), "items[0].completions"),
        ({"form": "prompt"}, Item("1", "", style="use_case"), "items[0].style"),
    ],
)
def test_an_item_that_cannot_be_asked_is_refused_by_field(
    lite: Any, campaign: dict[str, Any], item: Item, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        lite.add(Campaign(**{"name": "p", "form": "pair"} | campaign), [item])
    assert raised.value.field == field


def test_the_same_items_may_be_added_again_and_others_of_their_ids_may_not(page: Any, some_pairs: Any) -> None:
    campaign = Campaign(name="p", form="pair")
    page.add(campaign, some_pairs(2))
    page.add(campaign, some_pairs(3))
    with pytest.raises(FailedPrecondition, match="'1' was added with other content"):
        page.add(campaign, [Item("1", "other", ("x", "y"))])
    with pytest.raises(FailedPrecondition, match=r"other settings \(overlap\)"):
        page.add(Campaign(name="p", form="pair", overlap=2), some_pairs(2))
    page.close("p")
    with pytest.raises(FailedPrecondition, match="closed"):
        page.add(campaign, some_pairs(5))


# --- the database --------------------------------------------------------------------------------------------------
def _send_while_away(page: Any, some_pairs: Any, away: Any, back: Any) -> None:
    """An answer meets a database that does not work; the page offers it again, and it counts once."""
    note = "später würde größer " * 190  # more bytes than a page of SQLite's
    page.add(Campaign(name="p", form="pair"), some_pairs(2))
    ada = page.browser("ada")
    ada.open("p")
    away()
    response = ada.send("p", choice="a3", note=note)
    assert response.status_code == 503
    assert "send it again" in response.text
    again = dict(ada.hidden)
    assert again["note"] == note
    back()
    for _ in range(2):
        assert ada.client.post("/c/p", data=again, follow_redirects=True).status_code == 200
    assert [(one.note, one.verdict.strength) for one in page.judgements("p")] == [(note, 3)]


def test_a_locked_database_loses_nothing(lite: Any, some_pairs: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    lite.site.database.close()
    lite.site.database = Database(tmp_path / "feedback")
    other = sqlite3.connect(tmp_path / "feedback" / "feedback.sqlite", isolation_level=None)
    _send_while_away(lite, some_pairs, lambda: other.execute("BEGIN IMMEDIATE"), lambda: other.execute("ROLLBACK"))
    other.close()


def test_a_full_disk_loses_nothing(lite: Any, some_pairs: Any) -> None:
    def limit(pages: int) -> None:
        lite.site.database.transact(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))

    def fill() -> None:
        limit(1)  # SQLite takes the present size where this is less
        for size in (3000, 30):  # and then every page of it is filled
            with contextlib.suppress(Unavailable):
                while True:
                    lite.site.database.transact(people.record, "x", "y" * size, now=0.0)

    _send_while_away(lite, some_pairs, fill, lambda: limit(1_000_000))


def test_a_postgresql_that_goes_away_and_comes_back_loses_nothing(
    postgres: Any, run_page: Any, some_pairs: Any
) -> None:
    with run_page(postgres.new_database()) as page:
        try:
            _send_while_away(page, some_pairs, postgres.stop, postgres.start)
        except BaseException:
            postgres.start()
            raise


def test_a_database_of_an_earlier_version_is_migrated_with_its_data(where: Any, run_page: Any) -> None:
    old = Database(where)
    config = Config()
    config.set_main_option("script_location", "lodestar_services.feedback:migrations")
    with old.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            sa.text(
                "INSERT INTO people (name, role, token_digest, invited_at) VALUES ('ada', 'annotator', :digest, 1.0)"
            ),
            {"digest": people.digest("the old link")},
        )
        settings = Campaign(name="p", form="pair").model_dump_json()
        connection.execute(
            sa.text("INSERT INTO campaigns (name, settings, position, created_at) VALUES ('p', :settings, 0, 1.0)"),
            {"settings": settings},
        )
    old.close()
    with run_page(where) as page:
        with page.site.database.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        page.add(Campaign(name="p", form="pair"), [Item("1", "q", ("x", "y"))])
        ada = page.anonymous()
        ada.client.post("/join", data={"token": "the old link", "groups": "new"})
        ada.open("p")
        ada.send("p", choice="a1")
        assert [one.groups for one in page.counted("p")] == [("new",)]


def test_processes_that_start_at_once_migrate_once(where: Any) -> None:
    migrate = (
        "import sys; from lodestar_services.feedback.database import Database; one = Database(sys.argv[1]); "
        "one.migrate(); one.close()"
    )
    started = [subprocess.Popen([sys.executable, "-c", migrate, str(where)], stderr=subprocess.PIPE) for _ in range(3)]
    said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said


def test_threads_of_a_process_that_migrate_at_once_wait_for_each_other(tmp_path: Path) -> None:
    databases = [Database(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Database.migrate, databases))
    for one in databases:
        one.close()


def test_a_database_of_a_newer_version_is_refused(where: Any) -> None:
    one = Database(where)
    one.migrate()
    with one.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match="migrated to 9999 by a newer Lodestar"):
        one.migrate()
    one.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "postgresql//:", "redis://x"])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    if "://" not in url:
        url = "://" + url
    with pytest.raises(ConfigError):
        Database(url)


def test_an_export_during_writes_is_of_one_moment(page: Any, some_pairs: Any) -> None:
    page.add(Campaign(name="p", form="pair"), some_pairs(40))
    going = threading.Event()

    def answer() -> None:
        browser = page.browser("ada")
        for _ in range(40):
            browser.open("p")
            browser.send("p", choice="a1")
        going.set()

    thread = threading.Thread(target=answer)
    thread.start()
    sizes = []
    while not going.is_set():
        rows = page.site.database.snapshot(export.export, "p")
        assert len({row["id"] for row in rows}) == len(rows)
        sizes.append(len(rows))
    thread.join()
    assert sizes == sorted(sizes)
    assert len(page.site.database.transact(export.export, "p")) == 40
