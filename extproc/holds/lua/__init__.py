"""The scripts, one verb a file; ``shared/`` holds the snippets that several of them begin with."""
