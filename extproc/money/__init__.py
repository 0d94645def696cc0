"""Amounts, prices, holds and receipts: pure values and pure functions. Integers of nanos; no float, no clock, no IO.

Reading order: ``amount`` → ``price`` → ``usage`` → ``quote`` → ``receipt`` → ``hold`` → ``posting`` (an ending on its way to the ledger) →
``statement`` (what an owner is told).
"""
