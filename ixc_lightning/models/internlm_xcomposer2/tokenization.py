# SPDX-License-Identifier: Apache-2.0
"""The released sentencepiece vocabulary as a tokenizer of the ``tokenizers`` library.

The release comes with a tokenizer in Python around the sentencepiece library. Its model is a plain byte-pair
encoding (no normalisation, no prefix, bytes as fallback), so that the same ids come out of ``tokenizers``,
without a further dependency.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.tokenization_utils_base import generate_merges

from ixc_lightning.types import InputError

UNKNOWN, START, END = "<unk>", "<s>", "</s>"
OPEN_TURN, CLOSE_TURN = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"
REWARD_TOKEN = "[UNUSED_TOKEN_130]"
IMAGE_TOKEN = "[UNUSED_TOKEN_131]"
"""The piece of the vocabulary that stands for one image token; the release leaves it unused."""

_SPACE = "▁"
_USER_DEFINED = 4  # the type of sentencepiece for pieces that are always whole


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a released folder, from ``tokenizer.model`` and ``added_tokens.json``.

    Raises:
        InputError: a file is missing or is none of the release.
    """
    path = Path(folder) / "tokenizer.model"
    if not path.is_file():
        raise InputError(f"{path} is not there: download the tokenizer of the release beside its weights")
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, which has no public home
        raise InputError(f"{path} is no sentencepiece model: {error}") from error
    pieces = [piece.piece for piece in proto.pieces]
    whole = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    scores = {
        piece.piece: piece.score
        for piece in proto.pieces
        if piece.type == 1  # ordinary pieces alone merge
    }
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if missing := [
        token for token in (OPEN_TURN, CLOSE_TURN, REWARD_TOKEN, IMAGE_TOKEN) if token not in vocabulary
    ]:
        raise InputError(
            f"{path} lacks {', '.join(missing)}: it is not the vocabulary of InternLM-XComposer2.5"
        )
    extra = Path(folder) / "added_tokens.json"
    added = json.loads(extra.read_text()) if extra.is_file() else {}
    return build_tokenizer(
        vocabulary,
        generate_merges(scores, scores),
        whole=whole,
        added=[token for token, _ in sorted(added.items(), key=lambda item: item[1])],
    )


def build_tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], *, whole: list[str], added: list[str]
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with byte fallback.

    Args:
        vocabulary: pieces and ids, bytes spelt ``<0x00>`` and so on.
        merges: pairs of pieces, the first to be merged first.
        whole: pieces that are never merged with their neighbours.
        added: special tokens behind the vocabulary, in the order of their ids. The model has no embeddings
            for them.
    """
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    )
    if _SPACE in vocabulary:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
    replaced: list[Any] = [decoders.Replace(_SPACE, " ")] if _SPACE in vocabulary else []
    backend.decoder = decoders.Sequence([*replaced, decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (UNKNOWN, START, END)]
    )
    special = [OPEN_TURN, CLOSE_TURN, REWARD_TOKEN, IMAGE_TOKEN]
    backend.add_tokens(
        [AddedToken(token, special=False, normalized=False) for token in whole if token not in special]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    backend.post_processor = TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_specific_special_tokens={"image_token": IMAGE_TOKEN, "reward_token": REWARD_TOKEN},
    )
