"""From endings to the ledger: the poster, the reaper, and deposits back into Redis."""
