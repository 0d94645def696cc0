"""Prepaid billing for LLM traffic inside Envoy.

Envoy opens one gRPC stream (ext_proc) to us for every HTTP request. On the request headers we authenticate and take an entry hold; as
soon as the body names the model, the exact worst case is held; from the response we count tokens; at its end the real cost is charged
and the rest given back. Every ending becomes double-entry postings in PostgreSQL.

The tree is the way of a request; imports only go down (``tests/test_imports.py`` holds every package to the table of the design):

=============  ==========================================================================================
``cli``        one file per verb; no logic
``local``      everything on one machine: Valkey, PostgreSQL, Envoy, and a simulator of vLLM
``app``        processes: supervisor, gate workers, settler; ``compose`` alone names concrete adapters
``checks``     config lint: one small function per fault
``settings``   ``extproc.yaml`` and the environment, as one frozen object; ``settings_kit`` reads the keys
``edge``       Envoy's messages ⇄ events and actions; the driver of one exchange; transports
``settlement`` from endings to the ledger and back to Redis: outbox, poster, replay, reaper, witness, sweep, rebuild, reconciler
``ledger``     double entry in PostgreSQL
``holds``      admission and endings in Redis, as atomic scripts
``exchange``   PURE: one HTTP request as a state machine – **start reading at** ``exchange/machine.py``
``accounts``   accounts, keys and their scopes
``catalog``    models, prices, tiers and limits
``tokens``     tokenizers that need no network
``money``      PURE: amounts, prices, holds, receipts
``stores``     what Redis and PostgreSQL adapters share
``metrics``    every series, declared once
``yamlfile``   YAML with a line for every fault
``errors``     the exception tree
=============  ==========================================================================================
"""

__version__ = "0.1.0"
