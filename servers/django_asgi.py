"""The Django application of the suite for ASGI."""

import django_app  # noqa: F401
from django.core.asgi import get_asgi_application

application = get_asgi_application()
