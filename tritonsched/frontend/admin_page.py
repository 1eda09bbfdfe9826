"""`GET /` on the operator's port: the page. Rule: a fixed list of files that came with the package,
read once; nothing is built, nothing is asked of anybody else.

The page itself holds no data: it reads `/admin/events`, which has its guard. Its headers forbid the
browser every script, style, picture and address but this server's own, and scripts the ways in
which text could become markup (Trusted Types), so that a model or class with a name like
`<script>` stays text whatever the page's code does.
Sources: W3C Content Security Policy Level 3, Trusted Types.
"""

from importlib.resources import files

from aiohttp import web

from tritonsched.frontend.admin_guard import Handler

FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/charts.js": ("charts.js", "text/javascript"),
    "/page/tables.js": ("tables.js", "text/javascript"),
    "/page/words.js": ("words.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page/uPlot.js": ("uPlot.iife.min.js", "text/javascript"),
    "/page/uPlot.css": ("uPlot.min.css", "text/css"),
    "/page/uPlot.LICENSE": ("uPlot.LICENSE", "text/plain"),
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page_routes(app: web.Application) -> None:
    """A route for each file."""
    folder = files("tritonsched.frontend") / "page"
    for path, (name, content_type) in FILES.items():
        app.router.add_get(path, _answers((folder / name).read_bytes(), content_type))


def _answers(body: bytes, content_type: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=HEADERS)

    return answer
