"""The HTTP server with OpenAI's API; needs the extra `serve`.

app: the routes. bodies: what requests may say. answering: an answer as JSON or a stream of events. guard:
who may ask, and how much. refusals: errors as OpenAI's clients read them. metrics: what Prometheus reads.
run: all of it for one model, by uvicorn.
"""
