"""``extproc import-prices``."""

from __future__ import annotations

from pathlib import Path

import click

from extproc.cli.deployment import as_json as with_json
from extproc.cli.output import print_json, say

CONTEXT_TOKENS = 32_768  # what the models that are served the most have, at least
OUTPUT_TOKENS_MAX = 8_192


@click.command("import-prices")
@click.option("--from", "source", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Tables or options as JSON.")
@click.option("--into", type=click.Path(path_type=Path, dir_okay=False), help="A catalog: what it lacks is added. Without it: stdout.")
@click.option("--currency", default="USD", show_default=True, help="Of the catalog.")
@click.option("--usd-rate", help="Units of the currency for a dollar, such as 7.2.")
@click.option("--context-tokens", type=click.IntRange(1), default=CONTEXT_TOKENS, show_default=True, help="Put for every model.")
@click.option("--output-tokens-max", type=click.IntRange(1), default=OUTPUT_TOKENS_MAX, show_default=True, help="Put for every model.")
@with_json
def import_prices(
    *, source: Path, into: Path | None, currency: str, usd_rate: str | None, context_tokens: int, output_tokens_max: int, as_json: bool
) -> None:
    """Ratio tables of one-api or new-api as prices for models.yaml.

    model ratio × group ratio × completion ratio, 500,000 of quota = 1 USD. Groups become tiers. What a price cannot say is told, each by
    its name; what stands in the catalog already is left as it is.
    """
    from extproc.app.import_prices import Wanted
    from extproc.app.import_prices import import_prices as do_import

    wanted = Wanted(currency=currency, usd_rate=usd_rate, context_tokens=context_tokens, output_tokens_max=output_tokens_max)
    done = do_import(source, wanted, into=into)
    if as_json:
        print_json(done)
        return
    if into is None:
        click.echo(done["yaml"], nl=False)
    for note in done["notes"]:
        say(f"note: {note}")
    say(f"{done['tiers']} tiers and {done['models']} models" + (f"; {into} has them" if into else ""))
