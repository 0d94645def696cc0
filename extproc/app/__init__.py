"""The processes, and what an operator asks of them. ``compose`` alone names concrete adapters.

===========  ============================================================================================
beginning    ``launch`` → ``supervisor``, which fills each ``post`` with a ``watched`` child, listening at an ``endpoint``
children     ``worker`` and ``settler``, both as a ``process``; ``live`` is what they read again; ``undertaker``: who was killed
all of them  ``logs``; ``ops`` is the port, ``room`` keeps space for its figures
an operator  ``desk``, ``desk_books``, in the texts of ``desk_facts``; ``explain``; ``rebuilding``; ``import_prices``
comparing    ``reconcile``, by hand and for the settler, with the counters of ``backends``
the stack    ``offers``: what ``local`` may know of a catalog
===========  ============================================================================================
"""
