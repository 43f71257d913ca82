# The environment of `make build | test | repl | shell | format`: for developing only.
FROM python:3.11

WORKDIR /app

COPY . .
RUN python -m pip install --no-cache-dir -e '.[dev]'

CMD ["python", "-m", "unittest", "hightouch.htevents.test.all"]
