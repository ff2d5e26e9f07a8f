"""Frameworks: ``fsworker.contrib.django``, ``.flask``, ``.starlette`` (FastAPI). Each is imported on its own."""
