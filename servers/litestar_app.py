"""A Litestar application that tracks in each request."""

import glue
from litestar import Litestar, get
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream

from hightouch.htevents.contrib.asgi import ScopeMiddleware


@get('/')
async def home() -> str:
    return 'home'


@get('/work')
async def work(number: int) -> Stream:
    await glue.track_in_tasks(number)
    background = BackgroundTask(glue.tracked, 'background', number)
    return Stream(glue.async_body(number), background=background)


application = ScopeMiddleware(
    Litestar([home, work]),
    trusted_proxies=glue.TRUSTED,
    user_id=lambda scope: dict(scope['headers']).get(b'x-user', b'').decode(),
)
