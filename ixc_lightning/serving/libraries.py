# SPDX-License-Identifier: Apache-2.0
"""What the extra ``serve`` brings, imported here for the whole service: one message says what is missing."""

try:
    from fastapi import APIRouter, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn import Config, Server
except ImportError as error:
    from ixc_lightning.types import InputError

    raise InputError(
        f"the HTTP service needs {error.name}: pip install 'ixc-lightning[serve]' brings all of it"
    ) from error

__all__ = [
    "CONTENT_TYPE_LATEST",
    "APIRouter",
    "ASGIApp",
    "BaseModel",
    "CollectorRegistry",
    "Config",
    "ConfigDict",
    "Counter",
    "Discriminator",
    "FastAPI",
    "Field",
    "Gauge",
    "HTTPException",
    "Histogram",
    "JSONResponse",
    "Message",
    "Receive",
    "Request",
    "RequestValidationError",
    "Response",
    "Scope",
    "Send",
    "Server",
    "Tag",
    "generate_latest",
]
