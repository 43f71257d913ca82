"""The Django application of the suite for WSGI."""

import django_app  # noqa: F401
from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
