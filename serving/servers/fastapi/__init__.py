"""FastAPI and uvicorn as the second server."""
