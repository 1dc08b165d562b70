"""The pages for people: they need nobody but this process, and a browser lets them ask nobody else."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest

from app.core.settings import Settings
from app.web.pages import ASSETS
from tests.app.conftest import Api, running
from tests.app.core.test_http import error_of

PAGES = ["/", "/docs", "/redoc"]
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
_NAMED = re.compile(r"""(?:href|src)="([^"]*)"|url: "([^"]*)"|init\("([^"]*)\"""")


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_names_only_addresses_of_this_service_and_each_answers(api: Api, path: str) -> None:
    nobody = await api.anonymous()
    page = await nobody.get(path, headers=HTML)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    own = [page.text, *(ASSETS[name].read_text() for name in ("docs.js", "redoc.js") if name in page.text)]
    named = [next(filter(None, found)) for text in own for found in _NAMED.findall(text)]
    assert len(named) >= 4
    for address in named:
        assert ":" not in address
        assert not address.startswith("/"), "a prefix that a proxy puts before all addresses would be lost"
        answer = await nobody.get(urljoin(f"http://stillhouse{path}", address))
        assert answer.status_code == 200, address
        assert answer.content


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_forbids_browsers_what_it_does_not_need(api: Api, path: str) -> None:
    page = await (await api.anonymous()).get(path, headers=HTML)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.text, "the policy forbids scripts within the page"
    assert " style=" not in page.text


async def test_every_answer_is_safe_in_a_browser(api: Api) -> None:
    for path in ("/v1/jobs", "/v1/nothing", "/healthz", "/assets/page.css"):
        headers = (await api.client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


async def test_the_front_page_says_what_runs_and_whether_it_is_up(settings: Settings) -> None:
    async with running(settings) as api:
        page = (await api.client.get("/", headers=HTML)).text
        assert api.app.version in page
        assert "It is up." in page
        folder = settings.data_dir / "store"
        folder.rename(settings.data_dir / "elsewhere")
        folder.write_text("in the way")
        api.app.state.health._until = 0.0
        assert "the store can&#x27;t be reached" in (await api.client.get("/", headers=HTML)).text


async def test_the_front_page_is_json_for_a_client_that_wants_that(api: Api) -> None:
    nobody = await api.anonymous()
    told = (await nobody.get("/", headers={"accept": "application/json"})).json()
    assert (told["name"], told["version"], told["status"]) == ("Stillhouse", api.app.version, "ok")
    for link in told["links"].values():
        assert (await nobody.get(link)).status_code == 200


async def test_the_document_is_sent_once_to_those_who_have_it(api: Api) -> None:
    first = await api.client.get("/openapi.json")
    assert first.json()["openapi"].startswith("3.1")
    again = await api.client.get("/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fpages.py", "%2e%2e/pages.py", "docs.js/"])
async def test_nothing_but_the_assets_is_served(api: Api, name: str) -> None:
    answer = await api.client.get(f"/assets/{name}")
    assert answer.status_code == 404
    error_of(answer)
