"""Envoy's side: messages ⇄ events and actions, transports, and the driver of one exchange.

============  ===========================================================================================
one exchange  ``driver``, called by a ``transport``; ``envoy_codec`` over ``wire_format``, and for headers the generated ``wire``
its money     ``beats`` (checkpoints), ``closing`` (endings), ``lending`` (while the hold store is away), ``announced`` (prices)
its prompt    ``threads``, ``upstream_tokens``: counted beside the loop
an enquiry    ``answering``
the worker    ``health``; ``pressure``: may anybody come in; ``standing``: what it has open, told to whoever rebuilds
============  ===========================================================================================
"""
