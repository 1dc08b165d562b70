"""The front page, the two readers of the OpenAPI document, the document itself, and the files that they need.

All of it comes from this process: the readers' scripts lie in an installed package, and a policy that each page carries
keeps a browser from asking anyone else.
"""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from app.core.errors import NotFound
from app.core.health import Health, HealthCheckDep
from app.web.openapi import written

_HERE = Path(str(files("app.web")))
_READERS = Path(str(files("fastapi_offline"))) / "static"
ASSETS = {
    **{name: _HERE / "static" / name for name in ("page.css", "docs.js", "redoc.js")},
    **{
        name: _READERS / name
        for name in ("favicon.png", "swagger-ui.css", "swagger-ui-bundle.js", "redoc.standalone.js")
    },
}
"""Files of the pages by name."""
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_REDOC_POLICY = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""This reader writes its styles into the page."""
LINKS = {"docs": "/docs", "redoc": "/redoc", "openapi": "/openapi.json", "health": "/healthz", "version": "/v1/version"}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def get_home(request: Request, check: HealthCheckDep) -> Response:
    """The front page; for a client that accepts JSON and no HTML, the same in JSON."""
    health, version = await check(), request.app.version
    accepts = request.headers.get("accept", "")
    if "application/json" in accepts and "text/html" not in accepts:
        body = {
            "object": "service",
            "name": request.app.title,
            "version": version,
            "status": health.status,
            "links": LINKS,
        }
        return JSONResponse(body, headers={"Vary": "Accept"})
    page = _template("home").substitute(version=escape(version), **_shown(health))
    return _page(page, _POLICY, {"Vary": "Accept", "Cache-Control": "no-store"})


def _shown(health: Health) -> dict[str, str]:
    if health.status == "ok":
        return {"state": "up", "status": "It is up."}
    reasons = "; ".join(f"the {part} {reason}" for part, reason in health.reasons.items())
    return {"state": "down", "status": escape(f"It can't work at present: {reasons}.")}


@router.get("/docs")
async def get_docs() -> Response:
    """Swagger UI, in which requests can be tried."""
    return _page(_reader(("swagger-ui-bundle.js", "docs.js"), ("swagger-ui.css",)), _POLICY)


@router.get("/redoc")
async def get_redoc() -> Response:
    """Redoc, in which the interface can be read."""
    return _page(_reader(("redoc.standalone.js", "redoc.js")), _REDOC_POLICY)


@router.get("/openapi.json")
async def get_openapi(request: Request) -> Response:
    """The OpenAPI document, written once."""
    body, etag = written()
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.get("/assets/{name}")
async def get_asset(name: str) -> Response:
    """A style sheet, script or picture of the pages."""
    if name not in ASSETS:
        raise NotFound("asset", name)
    return FileResponse(ASSETS[name], headers={"Cache-Control": "public, max-age=3600"})


@cache
def _template(name: str) -> Template:
    return Template((_HERE / "templates" / f"{name}.html").read_text("utf-8"))


@cache
def _reader(scripts: tuple[str, ...], styles: tuple[str, ...] = ()) -> str:
    return _template("reader").substitute(
        scripts="\n".join(f'<script src="assets/{name}"></script>' for name in scripts),
        styles="\n".join(f'<link rel="stylesheet" href="assets/{name}">' for name in styles),
    )


def _page(content: str, policy: str, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(content, headers={"Content-Security-Policy": policy, **(headers or {})})
