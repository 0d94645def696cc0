"""One HTTP request through Envoy, as a pure state machine: events in, actions out. Nothing here knows the time, a socket or a store.

The files, in the order in which they are best read:

===============  =======================================================================================
``machine``      the table of all transitions, and the prose above it – **start here**
``state``        where a request may stand, and the steps that only lead somewhere
``events``       what may happen
``actions``      what is asked of the driver
``request``      steps: from the headers until it is forwarded
``response``     steps: from the backend's answer until it is charged
``endings``      steps: what cuts it short
``tab``          the facts of one request, and what is made of them for stores, ledger and log
``policy``       what the operator decides
``record``       the one row that it leaves

``doors``        who may come in: method, path, credentials
``answers``      what we answer ourselves: models, and somebody's money
``replies``      what we say when we refuse
``body``         from bytes to an ask
``ask``          an ask, its prompt; a piece of an answer; and what an endpoint must know
``endpoints``    one file each, and what they have in common: ``fields``, ``openai``, ``tooling``, ``pooling``, ``free``
``form``         bodies that are forms
``audio``        how long a recording is
``upstream``     what a model's own server is asked, if only that can count
``sizing``       how much may be used at most
``forwarding``   what the backend gets

``meter``        how much a backend has delivered: what all meters have in common
``meter_stream`` … of a stream
``meter_answer`` … of a JSON answer
``sse``          bytes → events
``shape``        events that need not be read
``splice``       puts the cost into a usage
``figures``      what the second witness is told meanwhile
===============  =======================================================================================
"""
