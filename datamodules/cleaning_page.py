# SPDX-License-Identifier: Apache-2.0
"""A page about a cleaned data set for a browser, in one file: histograms, and records with their pictures.

Written record by record, and no larger than ``MAX_BYTES``. As on the page of ``inspection_page``, nothing of
a record is trusted, and there are no scripts: style rules alone show one domain at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Bool, Float

from ixc_lightning.datamodules.cleaning_verdicts import ScoreTable, Verdicts
from ixc_lightning.datamodules.inspection_page import POLICY, STYLE
from ixc_lightning.datamodules.inspection_page import _lines as render_record
from ixc_lightning.datamodules.shards import ShardDataset
from ixc_lightning.types import InputError

MAX_BYTES = 40_000_000
"""Of the page; what does not fit is left out, and the page says so."""
MAX_DOMAINS = 30
"""Domains with a histogram, the largest ones."""
BINS = 40
BAR, HEIGHT = 6, 48
"""Pixels of a histogram: width of a bar, and height."""
OUTLIERS = 0.001
"""Share of the records at each end that the outermost bars of a histogram take in."""
LOOK = """
table { border-collapse: collapse } td, th { padding: .2em .8em .2em 0; text-align: right; font-weight: 400 }
td:first-child, th:first-child { text-align: left } th { color: #57606a }
.why { color: #cf222e } .stays { color: #57606a } rect.k { fill: #8c959f } rect.r { fill: #cf222e }
label { margin-right: .8em; cursor: pointer }
"""


def write_page(
    path: Path,
    dataset: ShardDataset,
    table: ScoreTable,
    verdicts: Verdicts,
    summary: Mapping[str, Any],
    *,
    shown: int,
) -> None:
    """Write the page.

    It shows the lowest of the removed records, and a fourth as many of the lowest that were kept: where the
    limit would go next.

    Args:
        path: the file.
        dataset: the shards.
        table: scores of the records.
        verdicts: what becomes of them.
        summary: counts, and what is known about planted noise.
        shown: removed records on the page at most.
    """
    domains = _largest(table)
    with path.open("w", encoding="utf-8", errors="replace") as page:
        page.write(_head(domains))
        for line in _overview(table, verdicts, summary, domains):
            page.write(line + "\n")
        page.write(_switches(table, domains))
        ranking = verdicts.ranking(table)
        for title, chosen, most in (
            ("Removed", verdicts.removed, shown),
            ("Kept", verdicts.kept, -(-shown // 4)),
        ):
            lowest = _lowest(ranking, chosen, most)
            page.write(f"<h1>{title}: {len(lowest):,} of {chosen.sum():,}, lowest first</h1>\n<main>\n")
            _write_articles(page, dataset, table, verdicts, lowest, domains)
            page.write("</main>\n")
        page.write("</body>\n</html>\n")


def _write_articles(
    page: IO[str],
    dataset: ShardDataset,
    table: ScoreTable,
    verdicts: Verdicts,
    numbers: np.ndarray,
    domains: list[int],
) -> None:
    for place, number in enumerate(numbers.tolist()):
        article = _article(dataset, table, verdicts, number, domains)
        if page.tell() + len(article.encode("utf-8", "replace")) > MAX_BYTES:
            page.write(f"<p>{len(numbers) - place:,} more would make this page too large.</p>\n")
            return
        page.write(article)


def _article(
    dataset: ShardDataset,
    table: ScoreTable,
    verdicts: Verdicts,
    number: int,
    domains: list[int],
) -> str:
    try:
        lines = list(render_record(dataset.record(number)))
    except InputError as error:
        lines = [f'<p class="problem">{escape(str(error))}</p>']
    facts = f"score {table.score[number]:.4g}, robust z-score {verdicts.z_score[number]:.3g}"
    if table.is_contrast:
        facts = f"contrast {table.value[number]:.4g}, {facts}"
    reasons = "; ".join(verdicts.reasons(number, table))
    style = "why" if verdicts.removed[number] else "stays"
    domain = table.domains.codes[number]
    group = domains.index(domain) if domain in domains else "x"
    return (
        f'<article class="g{group}">\n<h2>{escape(dataset.name(number))}</h2>\n'
        f'<div class="{style}">{escape(reasons or facts)}</div>\n<div>{escape(facts)}</div>\n'
        f"{chr(10).join(lines)}\n</article>\n"
    )


def _head(domains: list[int]) -> str:
    groups = [*map(str, range(len(domains))), "x"]
    hidden = "\n".join(
        f"#s{group}:checked ~ main article:not(.g{group}) {{ display: none }}" for group in groups
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>Cleaning</title>\n<style>{STYLE}{LOOK}{hidden}</style>\n</head>\n<body>\n"
    )


def _switches(table: ScoreTable, domains: list[int]) -> str:
    names = {"all": "all domains"} | {str(n): table.domains.names[code] for n, code in enumerate(domains)}
    if len(domains) < len(table.domains.names):
        names["x"] = "other domains"
    return "".join(
        f'<input type="radio" name="domain" id="s{group}"{" checked" if group == "all" else ""}>'
        f'<label for="s{group}">{escape(name)}</label>\n'
        for group, name in names.items()
    )


def _overview(
    table: ScoreTable, verdicts: Verdicts, summary: Mapping[str, Any], domains: list[int]
) -> Iterator[str]:
    yield "<h1>Cleaning</h1>"
    yield (
        f"<p>{summary['records']:,} records: {summary['kept']:,} kept, {summary['removed']:,} removed, "
        f"{summary['unreadable']:,} unreadable. Removed is what is below {escape(str(verdicts.limits))}; "
        f"the lowest come first, by {verdicts.ranked_by(table)}.</p>"
    )
    yield _table(
        ["limit", "records below it"],
        [[escape(name), f"{count:,}"] for name, count in summary["removed_by"].items()],
    )
    good = ~table.is_bad
    edges = _edges(table.value[good])
    rows = []
    for code in domains:
        own = good & (table.domains.codes == code)
        rows.append(
            [
                escape(table.domains.names[code]),
                f"{own.sum():,}",
                f"{(own & verdicts.removed).sum():,}",
                f"{np.median(table.value[own]):.3g}",
                _histogram(table.value[own], verdicts.removed[own], edges),
            ]
        )
    span = f"{table.value_name} from {edges[0]:.3g} to {edges[-1]:.3g}"
    yield _table(["domain", "records", "removed", f"median {table.value_name}", span], rows)
    if len(domains) < len(table.domains.names):
        yield f"<p>{len(table.domains.names) - len(domains):,} smaller domains have no histogram.</p>"
    if summary["planted_noise"]:
        yield from _noise(summary["planted_noise"])


def _noise(found: Mapping[str, Any]) -> Iterator[str]:
    """How much of the planted noise is where."""
    yield "<h1>Planted noise</h1>"
    yield (
        f"<p>Area under the ROC curve: {_number(found['auc'])}, ranked by {found['ranked_by']}. "
        "It is the probability that a noisy record ranks below a sound one.</p>"
    )
    parts = ("ranking", "kind", "domain", "modality")
    areas = [
        [escape(f"{part}: {name}"), _number(area)]
        for part in parts
        for name, area in found[f"auc_by_{part}"].items()
    ]
    yield _table(["", "area"], areas)
    kinds = list(found["noise"])
    points = [(f"at most {point['at_most']:.3g}", point) for point in found["lowest"]]
    rows = [
        [
            label,
            f"{point['removed']:,}",
            _number(point["precision"]),
            _number(point["recall"]),
            *(_number(point["recall_by_kind"].get(kind)) for kind in kinds),
        ]
        for label, point in [*points, ("as removed", found["removed"])]
    ]
    names = [f"recall, {escape(kind)}" for kind in kinds]
    yield _table([found["ranked_by"], "records", "precision", "recall", *names], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    """A table; its cells are HTML."""
    head = "".join(f"<th>{head}</th>" for head in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _histogram(
    values: Float[np.ndarray, " N"], removed: Bool[np.ndarray, " N"], edges: Float[np.ndarray, " E"]
) -> str:
    """Bars as a picture: what is removed red, below what is kept grey."""
    clipped = values.clip(edges[0], edges[-1])
    every, gone = (np.histogram(part, edges)[0] for part in (clipped, clipped[removed]))
    scale = HEIGHT / max(every.max(), 1)
    bars = "".join(
        f'<rect class="{style}" x="{place * BAR}" y="{HEIGHT - top * scale:.1f}" width="{BAR - 1}" '
        f'height="{size * scale:.1f}"/>'
        for place, (all_, red) in enumerate(zip(every.tolist(), gone.tolist(), strict=True))
        for style, top, size in (("k", all_, all_ - red), ("r", red, red))
        if size
    )
    return f'<svg width="{BINS * BAR}" height="{HEIGHT}" role="img">{bars}</svg>'


def _edges(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " E"]:
    low, high = np.quantile(values, [OUTLIERS, 1 - OUTLIERS])
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _largest(table: ScoreTable) -> list[int]:
    """Codes of the domains that have records, the largest first."""
    counts = np.bincount(table.domains.codes[~table.is_bad], minlength=len(table.domains.names))
    return [code for code in np.argsort(-counts, kind="stable")[:MAX_DOMAINS].tolist() if counts[code]]


def _lowest(ranking: Float[np.ndarray, " N"], chosen: Bool[np.ndarray, " N"], most: int) -> np.ndarray:
    numbers = np.flatnonzero(chosen)
    return numbers[np.argsort(ranking[numbers], kind="stable")[:most]]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
