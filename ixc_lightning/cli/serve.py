# SPDX-License-Identifier: Apache-2.0
"""The command that serves a reward model over HTTP."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from ixc_lightning.scoring import Scorer
from ixc_lightning.serving.app import build_app
from ixc_lightning.serving.given import RequestMedia
from ixc_lightning.serving.libraries import Config, Server
from ixc_lightning.serving.requests import SizeRules
from ixc_lightning.types import InputError

TOKEN_VARIABLE = "IXC_LIGHTNING_TOKEN"
MB = 1_000_000
CHARACTERS_PER_TOKEN = 16
"""A text of more than this for each token that is allowed is refused before its tokens are counted."""
MAX_CONNECTIONS = 1000
MAX_PORT = 65535
"""The system takes a larger one for another port."""


def serve(
    folder: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    dtype: str = "float32",
    attention: str = "sdpa",
    device: str | None = None,
    video_frames: int = 8,
    response_suffix: str = "",
    batch_tokens: int = 16384,
    max_tokens: int = 8192,
    max_responses: int = 256,
    max_requests: int = 256,
    max_media: int = 64,
    max_megapixels: float = 64.0,
    max_clip_megapixels: float = 2000.0,
    max_body_mb: float = 32.0,
    max_held_mb: float = 512.0,
    seconds: float = 60.0,
    media: str | None = None,
    allow_urls: bool = False,
) -> None:
    """Serve a reward model over HTTP: scores, comparisons, rankings, and what OpenRLHF and verl post.

    The page /docs of the service describes its endpoints. If the environment holds IXC_LIGHTNING_TOKEN,
    callers must send it as "Authorization: Bearer TOKEN".

    Args:
        folder: an exported reward model with its processor, or a hub id.
        host: address to listen on; 0.0.0.0 is every one of this machine.
        port: port to listen on; 0 takes a free one.
        dtype: of the backbone's weights; the head is always float32.
        attention: attention implementation, by its name in transformers.
        device: where to compute; null is the GPU, if there is one.
        video_frames: frames taken from each clip; give what the model was trained with.
        response_suffix: text put after every response; give what the model was trained with.
        batch_tokens: most tokens of one forward pass, padding included.
        max_tokens: most tokens of a prompt and one response; what is longer is refused, never cut.
        max_responses: most responses, or conversations, of a request.
        max_requests: requests that may wait or be at work; more are answered 503 with Retry-After.
        max_media: most pictures and clips of a request.
        max_megapixels: most pixels of all pictures of a request together, in millions.
        max_clip_megapixels: most pixels of all frames of all clips of a request together, in millions.
        max_body_mb: size of the largest request that is taken.
        max_held_mb: size of all requests together that are received or at work. Each takes about three times
            its size in memory.
        seconds: time for receiving a request, and again for answering it.
        media: folder below which requests may name files; null refuses all files.
        allow_urls: fetch http(s) URLs that requests name. Whoever may ask the service then reaches whatever
            this machine reaches.

    Raises:
        InputError: the folder holds no reward model or no processor, a limit makes no sense, or the address
            cannot be used.
    """
    limits = {name: value for name, value in locals().items() if name.startswith(("max_", "batch_"))}
    for name, value in {**limits, "seconds": seconds}.items():
        if value <= 0:
            raise InputError(f"--{name} is {value}, but must be more than 0")
    if not 0 <= port <= MAX_PORT:
        raise InputError(f"--port is {port}; ports go from 0, any free one, to {MAX_PORT}")
    if media is not None and not Path(media).is_dir():
        raise InputError(f"--media: there is no folder {media!r}")
    token = os.environ.get(TOKEN_VARIABLE, "")
    with _bind(host, port) as bound:
        scorer = Scorer.from_pretrained(
            folder,
            dtype=dtype,
            attention=attention,
            device=device,
            max_tokens=max_tokens,
            video_frames=video_frames,
            response_suffix=response_suffix,
        )
        app = build_app(
            scorer,
            media=partial(
                RequestMedia,
                max_media=max_media,
                max_bytes=int(max_body_mb * MB),
                max_pixels=int(max_megapixels * 1e6),
                max_clip_pixels=int(max_clip_megapixels * 1e6),
                folder=None if media is None else Path(media),
                allow_urls=allow_urls,
            ),
            rules=SizeRules(max_responses=max_responses, max_characters=CHARACTERS_PER_TOKEN * max_tokens),
            batch_tokens=batch_tokens,
            max_requests=max_requests,
            max_body_bytes=int(max_body_mb * MB),
            max_held_bytes=int(max_held_mb * MB),
            seconds=seconds,
            token=token,
        )
        address = bound.getsockname()
        print(f"serving {folder} on http://{address[0]}:{address[1]}, described at /docs", flush=True)
        if not token and not ipaddress.ip_address(address[0]).is_loopback:
            print(f"everyone who reaches this address may ask: {TOKEN_VARIABLE} is not set", flush=True)
        _run(app, bound, seconds)


def _bind(host: str, port: int) -> socket.socket:
    """The socket, bound before the model is loaded, so that an address in use is told at once."""
    bound = None
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise InputError(
            f"cannot listen on {host}:{port} ({error}); give another --host or --port"
        ) from error
    return bound


def _run(app: object, bound: socket.socket, seconds: float) -> None:
    """Serve until told to stop; then answer what was asked, and end."""
    config = Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(seconds) + 1,
        ws="none",
    )
    with suppress(KeyboardInterrupt):  # is raised once more when the server has stopped in order
        Server(config).run(sockets=[bound])
