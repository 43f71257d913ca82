"""A Flask application that tracks in each request."""

import glue
from flask import Flask, Response, request

from hightouch.htevents.contrib.wsgi import ScopeMiddleware

application = Flask(__name__)
application.wsgi_app = ScopeMiddleware(
    application.wsgi_app,
    glue.TRUSTED,
    user_id=lambda environ: environ.get('suite.user'),
)


@application.before_request
def find_user():
    request.environ['suite.user'] = request.headers.get('X-User')


@application.route('/')
def home():
    return 'home'


@application.route('/work')
def work():
    number = request.args['number']
    glue.track_in_threads(number)
    response = Response(glue.body(number))
    response.call_on_close(lambda: glue.tracked('close', number))
    return response
