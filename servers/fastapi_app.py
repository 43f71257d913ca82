"""A FastAPI application that tracks in each request. The shop calls it, too."""

from contextlib import asynccontextmanager

import glue
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse

from hightouch.htevents.contrib.asgi import ScopeMiddleware


@asynccontextmanager
async def lifespan(app):
    yield
    await glue.client.aclose(60)


application = FastAPI(lifespan=lifespan)


@application.middleware('http')
async def find_user(request: Request, call_next):
    request.scope['suite.user'] = request.headers.get('X-User')
    return await call_next(request)


# The last one added is the outermost.
application.add_middleware(
    ScopeMiddleware,
    trusted_proxies=glue.TRUSTED,
    user_id=lambda scope: scope.get('suite.user'),
)


@application.get('/')
async def home():
    return 'home'


@application.get('/work')
async def work(number: int, tasks: BackgroundTasks):
    await glue.track_in_tasks(number)
    tasks.add_task(glue.tracked, 'background', number)
    return StreamingResponse(glue.async_body(number), background=tasks)


@application.get('/sync')
def sync(number: int, tasks: BackgroundTasks):
    glue.track_in_threads(number)
    tasks.add_task(glue.tracked, 'background', number)
    return StreamingResponse(glue.body(number), background=tasks)


@application.get('/stock')
async def stock(number: int):
    glue.tracked('Stock Checked', number)
    return 'enough'
